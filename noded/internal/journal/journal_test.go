package journal

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"s0.run/internal/sandbox"
)

// open opens the journal at path and runs it until the test or stop ends it.
func open(t testing.TB, path string) (j *Journal, stop func()) {
	t.Helper()
	j, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- j.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("closing the journal: %v", err)
		}
	})
	t.Cleanup(stop)
	return j, stop
}

func record(t testing.TB) Record {
	t.Helper()
	id, err := sandbox.NewID("local")
	if err != nil {
		t.Fatal(err)
	}
	return Record{
		ID: id, Generation: 1, State: Claimed, PoolKey: "default-1",
		Spec:     sandbox.Spec{Image: "img", MemoryBytes: 1 << 28, CPUMillis: 500, RuntimeClass: sandbox.GVisor},
		NetIndex: 7, IP: netip.MustParseAddr("10.77.0.8"), Created: time.Unix(1, 2).UTC(),
		Claim: &Claim{ClaimID: "c1", Team: "t1", Env: map[string]string{"A": "1"}, MemoryBytes: 1 << 28, CPUMillis: 500, Time: time.Unix(3, 4).UTC()},
	}
}

func TestPutSurvivesReopen(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.db")
	j, stop := open(t, path)
	kept, gone := record(t), record(t)
	for _, r := range []Record{kept, gone} {
		if err := j.Put(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Delete(t.Context(), gone.ID); err != nil {
		t.Fatal(err)
	}
	if err := j.Delete(t.Context(), gone.ID); err != nil {
		t.Fatalf("deleting what is gone: %v", err)
	}
	stop()
	j, _ = open(t, path)
	all, err := j.All()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 1 || !reflect.DeepEqual(all[0], kept) {
		t.Fatalf("after reopen: %+v, want only %+v", all, kept)
	}
}

func TestWriteAfterCloseFails(t *testing.T) {
	t.Parallel()
	j, stop := open(t, filepath.Join(t.TempDir(), "journal.db"))
	stop()
	if err := j.Put(t.Context(), record(t)); !errors.Is(err, ErrClosed) {
		t.Fatalf("Put after close: %v, want ErrClosed", err)
	}
}

func TestWaitEndsWithContext(t *testing.T) {
	t.Parallel()
	j, err := Open(filepath.Join(t.TempDir(), "journal.db")) // nobody runs it
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := j.Put(ctx, record(t)); !errors.Is(err, context.Canceled) {
		t.Fatalf("Put without a writer: %v, want context.Canceled", err)
	}
	if err := j.Run(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestNewerFormatIsRefused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.db")
	j, stop := open(t, path)
	if err := j.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(metaBucket).Put(formatKey, []byte("2"))
	}); err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), `format "2"`) {
		t.Fatalf("opening a newer format: %v", err)
	}
}

func TestUnreadableRecordFailsTheRead(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]string{"garbage": "{", "another id": `{"id":"x"}`} {
		t.Run(name, func(t *testing.T) {
			j, _ := open(t, filepath.Join(t.TempDir(), "journal.db"))
			if err := j.db.Update(func(tx *bbolt.Tx) error {
				return tx.Bucket(sandboxesBucket).Put([]byte("local-x"), []byte(value))
			}); err != nil {
				t.Fatal(err)
			}
			if all, err := j.All(); err == nil {
				t.Fatalf("read %+v from a broken record", all)
			}
		})
	}
}

// A child process writes from many goroutines, says which writes were
// acknowledged, and is killed in the middle: none of those may be missing.
func TestX50_AcknowledgedWritesSurviveKill(t *testing.T) {
	if path := os.Getenv("S0_TEST_JOURNAL"); path != "" {
		writeForever(t, path)
		return
	}
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.db")
	for round := range 3 {
		acked := killedWriter(t, path)
		j, stop := open(t, path)
		all, err := j.All()
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		have := map[string]bool{}
		for _, r := range all {
			have[string(r.ID)] = true
		}
		for _, id := range acked {
			if !have[id] {
				t.Errorf("round %d: acknowledged %s is missing", round, id)
			}
		}
		t.Logf("round %d: %d acknowledged, %d found", round, len(acked), len(all))
		stop()
	}
}

func writeForever(t *testing.T, path string) {
	j, _ := open(t, path)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for {
				r := record(t)
				if err := j.Put(context.Background(), r); err != nil {
					panic(err)
				}
				fmt.Printf("acked %s\n", r.ID) // one write(2) per line
			}
		})
	}
	wg.Wait()
}

// killedWriter runs the writer until it has acknowledged enough, kills it, and
// returns what it acknowledged.
func killedWriter(t *testing.T, path string) []string {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestX50_AcknowledgedWritesSurviveKill$")
	cmd.Env = append(os.Environ(), "S0_TEST_JOURNAL="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var acked []string
	var line string
	for {
		_, err := fmt.Fscanf(out, "acked %s\n", &line)
		if err != nil {
			break
		}
		if acked = append(acked, line); len(acked) == 200 {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = cmd.Wait() // killed on purpose
	if len(acked) < 200 {
		t.Fatalf("the writer ended after %d writes", len(acked))
	}
	return acked
}

func BenchmarkPut(b *testing.B) {
	for _, writers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			j, _ := open(b, filepath.Join(b.TempDir(), "journal.db"))
			live := make([]Record, 1000) // a node's worth of records beside the written ones
			for i := range live {
				live[i] = record(b)
			}
			inParallel(64, live, func(r Record) { _ = j.Put(b.Context(), r) })
			took := make([]time.Duration, b.N)
			work := make([]Record, b.N)
			for i := range work {
				work[i] = live[i%len(live)]
			}
			b.ResetTimer()
			next := make(chan int)
			var wg sync.WaitGroup
			for range writers {
				wg.Go(func() {
					for i := range next {
						start := time.Now()
						if err := j.Put(b.Context(), work[i]); err != nil {
							b.Error(err)
						}
						took[i] = time.Since(start)
					}
				})
			}
			for i := range work {
				next <- i
			}
			close(next)
			wg.Wait()
			b.StopTimer()
			report(b, took)
		})
	}
}

func inParallel(n int, rs []Record, f func(Record)) {
	next := make(chan Record)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for r := range next {
				f(r)
			}
		})
	}
	for _, r := range rs {
		next <- r
	}
	close(next)
	wg.Wait()
}

func report(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

func TestX24_RecordsOfOneWriteAreAllThereOrNone(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.db")
	j, stop := open(t, path)
	a, b, c := record(t), record(t), record(t)
	if err := j.Put(t.Context(), a, b); err != nil {
		t.Fatal(err)
	}
	bad := c
	bad.ID = "" // a key that the store refuses
	if err := j.Put(t.Context(), c, bad); err == nil {
		t.Fatal("a write that failed in part is acknowledged")
	}
	stop()
	j, _ = open(t, path)
	all, err := j.All()
	if err != nil || len(all) != 2 || slices.ContainsFunc(all, func(r Record) bool { return r.ID == c.ID }) {
		t.Errorf("%+v, %v", all, err)
	}
}
