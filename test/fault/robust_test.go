package fault_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"s0.run/internal/s0test"
)

// robustWorkers is how many tenants' programs use the stack at once: enough to meet on
// it, few enough for the smallest machine.
const robustWorkers = 4

// A run is one robustness run: workers use a stack, chaos breaks it, and a history of
// claims grows.
type run struct {
	*stack
	end    time.Time
	places string // file with every failpoint that noded has come by

	mu     sync.Mutex
	rand   *rand.Rand
	hurt   map[string]bool // sandboxes whose own processes chaos has killed: they may fail
	claims []porcupine.Operation
	counts map[string]int // of what was done, for the log
	wrong  []string
}

// TestX51_Robustness: traffic of all kinds while processes are killed at random. Claims
// are linearizable, no acknowledged byte is lost, nothing that was not hurt itself ends,
// and when it is quiet again the oracle has nothing to say. S0_SEED repeats the choices; what
// a failure is to be explained with stays in build/robust.
func TestX51_Robustness(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv("S0_ROBUST_TIME"))
	if err != nil {
		t.Skip("takes as long as S0_ROBUST_TIME says: make test-robust")
	}
	seed, err := strconv.ParseUint(os.Getenv("S0_SEED"), 10, 64)
	if err != nil {
		seed = rand.Uint64()
	}
	t.Logf("S0_SEED=%d S0_ROBUST_TIME=%s", seed, length)
	s := newStackWith(t, 2, true)
	s.keep = filepath.Join(s0test.ModuleRoot(t), "build", "robust", strconv.FormatUint(seed, 10))
	r := &run{
		stack: s, end: time.Now().Add(length), places: s.Root + "/places",
		rand: rand.New(rand.NewPCG(seed, seed)), hurt: map[string]bool{}, counts: map[string]int{},
	}
	s.restartNoded("*=trace(" + r.places + ")")
	began := time.Now()
	workers := make([]*worker, robustWorkers)
	var wg sync.WaitGroup
	for i := range workers {
		workers[i] = &worker{run: r, number: i, began: began}
		wg.Go(workers[i].work)
	}
	r.chaos()
	wg.Wait()
	r.quiet(workers)
}

// quiet is the end: everything runs again, everything is looked at.
func (r *run) quiet(workers []*worker) {
	r.Helper()
	r.Logf("done: %v", r.counts)
	for _, w := range r.wrong {
		r.Error(w)
	}
	if result := porcupine.CheckOperationsTimeout(claimModel, r.claims, time.Minute); result != porcupine.Ok {
		r.Errorf("G01: %s: %d claims have no order in which each was done at once:\n%v", result, len(r.claims), r.claims)
	}
	r.awaitOrphans(orphanTime)
	v := r.check()
	for _, w := range workers {
		for _, b := range w.boxes {
			if rec, ok := v.records[b.id]; !ok {
				r.Errorf("R1: %s is forgotten", b.id)
			} else if rec.State == "failed" && !r.isHurt(b.id) {
				r.Errorf("R3: %s has failed, and nobody has hurt it", b.id)
			} else if rec.State != "failed" {
				w.read(b)
			}
		}
	}
	for _, w := range r.wrong {
		r.Error(w)
	}
	for id, rec := range v.records {
		if rec.State != "slot" {
			r.remove(id)
		}
	}
	r.removeSnapshots(v)
	r.check()
}

// claimed is what porcupine knows of claims: which sandbox each key has.
type claimed map[string]string

// claimModel is a claim by key, done at once: a key's first claim gives a sandbox that
// nobody has had, each later one gives the same. One that failed may have been done.
var claimModel = porcupine.Model{
	Init: func() any { return claimed{} },
	Step: func(state, input, output any) (bool, any) {
		s, key, id := state.(claimed), input.(string), output.(string)
		if id == "" {
			return true, s
		}
		if has, known := s[key]; known {
			return has == id, s
		}
		next := claimed{key: id}
		for k, v := range s {
			if v == id {
				return false, s
			}
			next[k] = v
		}
		return true, next
	},
	Equal:             func(a, b any) bool { return fmt.Sprint(a) == fmt.Sprint(b) },
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("claim(%v) = %v", input, output) },
}

func TestX51_TheModelOfClaims(t *testing.T) {
	t.Parallel()
	op := func(key, id string, call, end int64) porcupine.Operation {
		return porcupine.Operation{Input: key, Output: id, Call: call, Return: end}
	}
	for name, c := range map[string]struct {
		ops  []porcupine.Operation
		want bool
	}{
		"one each":                {[]porcupine.Operation{op("k1", "a", 0, 9), op("k2", "b", 1, 8), op("k1", "a", 10, 11)}, true},
		"a slot for two keys":     {[]porcupine.Operation{op("k1", "a", 0, 9), op("k2", "a", 1, 8)}, false},
		"two sandboxes for a key": {[]porcupine.Operation{op("k1", "a", 0, 9), op("k1", "b", 1, 8)}, false},
	} {
		if got := porcupine.CheckOperations(claimModel, c.ops); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func (r *run) dice(n int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rand.IntN(n)
}

func (r *run) count(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[what]++
}

// report notes what must not be; the test fails with it when it is over.
func (r *run) report(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if what := time.Now().Format("15:04:05.000 ") + fmt.Sprintf(format, args...); len(r.wrong) < 20 {
		r.wrong = append(r.wrong, what)
	}
}

func (r *run) isHurt(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.hurt[id]
}

func (r *run) hurts(ids ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range ids {
		r.hurt[id] = true
	}
}

func (r *run) over() bool { return !time.Now().Before(r.end) }

func (r *run) record(op porcupine.Operation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.claims = append(r.claims, op)
}

func (s *stack) removeSnapshots(v view) {
	s.Helper()
	for id := range v.snapshotRows {
		s.eventuallyDone("a delete of a snapshot", func() error {
			err := s.c.DeleteSandboxSnapshot(s.ctx(), id)
			if isStatus(err, 404) {
				return nil
			}
			return err
		})
	}
}

// picked is one of the run's choices, by weight.
func (r *run) picked(choices []choice) choice {
	total := 0
	for _, c := range choices {
		total += c.weight
	}
	n := r.dice(total)
	i := slices.IndexFunc(choices, func(c choice) bool { n -= c.weight; return n < 0 })
	return choices[i]
}

type choice struct {
	name   string
	weight int
	do     func()
}
