package fault_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"s0.run/api/client"
)

// An operation is what noded is killed in: at its beginning and behind each of its
// steps, which is before the next one.
type operation struct {
	name string
	rows string // of the fault list
	// prepare makes what the operation needs and returns the sandbox, if there is one.
	prepare func(s *stack) (id string)
	// begin asks for the operation, once or, told to wait, again until it is done.
	begin func(s *stack, id string) error
	// verify says what is true when it is done. The sandbox of prepare is id's, with
	// what was left in it; verify returns with nothing left of its own but that.
	verify func(s *stack, id string, tr traces)
}

// coldTemplate has no pool: its claims are creations.
const coldTemplate = "cold"

// claimKey is that of the one claim of a round.
func claimKey(t testing.TB) string { return strings.ReplaceAll(t.Name(), "/", "-") }

var operations = []operation{
	{
		name: "create", rows: "X01–X12",
		begin:  func(s *stack, _ string) error { return s.tryClaim(coldTemplate) },
		verify: func(s *stack, _ string, _ traces) { s.verifyClaim(coldTemplate) },
	},
	{
		name: "claim", rows: "X12",
		begin:  func(s *stack, _ string) error { return s.tryClaim("default") },
		verify: func(s *stack, _ string, _ traces) { s.verifyClaim("default") },
	},
	{
		name: "delete", rows: "X13–X18",
		prepare: func(s *stack) string { return s.claim(claimKey(s), "default") },
		begin: func(s *stack, id string) error {
			err := s.c.DeleteSandbox(s.ctx(), id)
			if isStatus(err, 404) {
				return nil
			}
			return err
		},
		verify: func(s *stack, id string, _ traces) {
			if sb, err := s.c.GetSandbox(s.ctx(), id); !isStatus(err, 404) {
				s.Errorf("it was deleted and is %+v (%v)", sb, err)
			}
		},
	},
	{
		name: "pause", rows: "X19–X23",
		prepare: func(s *stack) string { return s.claim(claimKey(s), "default") },
		begin:   func(s *stack, id string) error { _, err := s.c.PauseSandbox(s.ctx(), id); return err },
		verify: func(s *stack, id string, tr traces) {
			if sb, err := s.c.GetSandbox(s.ctx(), id); err != nil || !sb.Paused {
				s.Errorf("it was paused and is %+v (%v)", sb, err)
			}
			s.check()
			s.resume(id)
			s.wantTraces(id, tr)
			s.wantGeneration(id, 2)
		},
	},
	{
		name: "pausefiles", rows: "X19–X23, without memory",
		prepare: func(s *stack) string { return s.claim(claimKey(s), "default") },
		begin:   func(s *stack, id string) error { _, err := s.c.PauseSandboxFiles(s.ctx(), id); return err },
		verify: func(s *stack, id string, tr traces) {
			s.check()
			s.resume(id)
			s.wantFile(id, tr)
			s.eventuallyDone("its process by its id", func() error { _, err := s.c.GetContext(s.ctx(), id, tr.context); return err })
			s.wantGeneration(id, 2)
		},
	},
	{
		name: "fetch", rows: "X24, X43, from the object store",
		prepare: func(s *stack) string { return s.claim(claimKey(s), "default") },
		begin:   func(s *stack, id string) error { _, err := s.c.ResumeSandbox(s.ctx(), id); return err },
		verify: func(s *stack, id string, tr traces) {
			s.wantTraces(id, tr)
			s.wantGeneration(id, 2)
		},
	},
	{
		name: "begin", rows: "X01–X12, with a snapshot's files",
		prepare: func(s *stack) string { return s.claim("source-of-"+claimKey(s), "default") },
		begin:   func(s *stack, id string) error { _, err := s.beginWith(id); return err },
		verify: func(s *stack, id string, tr traces) {
			child, err := s.beginWith(id)
			s.must(err)
			s.wantFile(child, tr)
			s.wantTraces(id, tr)
			s.check()
			s.remove(child)
			s.wantSnapshots(id, tr)
		},
	},
	{
		name: "resume", rows: "X24",
		prepare: func(s *stack) string { return s.claim(claimKey(s), "default") },
		begin:   func(s *stack, id string) error { _, err := s.c.ResumeSandbox(s.ctx(), id); return err },
		verify: func(s *stack, id string, tr traces) {
			s.wantTraces(id, tr)
			s.wantGeneration(id, 2)
		},
	},
	{
		name: "snapshot", rows: "X19–X22, of files alone",
		prepare: func(s *stack) string { return s.claim(claimKey(s), "default") },
		begin: func(s *stack, id string) error {
			_, err := s.c.CreateSandboxSnapshot(s.ctx(), id, client.CreateSandboxRootFSSnapshotRequest{})
			return err
		},
		verify: func(s *stack, id string, tr traces) {
			s.wantTraces(id, tr)
			s.wantSnapshots(id, tr)
		},
	},
	{
		name: "restore", rows: "X19–X22, back to a snapshot",
		prepare: func(s *stack) string { return s.claim(claimKey(s), "default") },
		begin: func(s *stack, id string) error {
			list, err := s.c.ListSandboxSnapshots(s.ctx(), id)
			if err == nil {
				_, err = s.c.RestoreSandboxRootFS(s.ctx(), id, list.Snapshots[0].ID)
			}
			return err
		},
		verify: func(s *stack, id string, tr traces) {
			s.resume(id)
			s.wantFile(id, tr)
			s.wantSnapshots(id, tr)
		},
	},
	{
		name: "fork", rows: "X19–X24, of a sandbox that runs, with memory",
		prepare: func(s *stack) string { return s.claim(claimKey(s), "default") },
		begin:   func(s *stack, id string) error { _, err := s.fork(id); return err },
		verify: func(s *stack, id string, tr traces) {
			s.wantTraces(id, tr)
			s.verifyFork(id, tr)
		},
	},
}

// beginWith claims a sandbox with the files of another one's only snapshot, once however
// often it has to be asked for.
func (s *stack) beginWith(source string) (id string, err error) {
	list, err := s.c.ListSandboxSnapshots(s.ctx(), source)
	if err != nil {
		return "", err
	}
	sb, err := s.c.CreateSandboxOnce(s.ctx(), claimKey(s), client.ClaimRequest{Template: "default", SnapshotID: &list.Snapshots[0].ID})
	if err != nil {
		return "", err
	}
	return sb.SandboxID, nil
}

// drop takes a paused sandbox's image off the node's disk, once the object store has it. On
// a disk that is crowded the node may have been faster.
func (s *stack) drop(id string) {
	s.Helper()
	s.untilStored(id)
	dir := filepath.Join(s.paused(), id)
	if err := os.Rename(dir, filepath.Join(s.Root, "dropped")); !errors.Is(err, fs.ErrNotExist) {
		s.must(err)
	}
	s.must(os.RemoveAll(filepath.Join(s.Root, "dropped")))
}

func (s *stack) untilStored(id string) {
	s.Helper()
	s.eventually("the object store to have it", func() error {
		v, err := s.view()
		if err == nil && (v.records[id].Stored == 0 || v.rows[id].Stored != v.records[id].Stored) {
			err = fmt.Errorf("record %+v, row %+v", v.records[id], v.rows[id])
		}
		return err
	})
}

// fork asks for two children, once however often it has to be asked for.
func (s *stack) fork(id string) ([]string, error) {
	memory, count := true, 2
	res, err := s.c.ForkSandboxOnce(s.ctx(), id, claimKey(s)+"-fork", client.ForkRequest{Config: &client.ForkConfig{Memory: &memory}, Count: &count})
	if err != nil {
		return nil, err
	}
	var children []string
	for _, sb := range res.Sandboxes {
		children = append(children, sb.ID)
	}
	return children, nil
}

func (s *stack) verifyFork(id string, tr traces) {
	s.Helper()
	var children, others []string
	s.eventuallyDone("the children", func() (err error) { children, err = s.fork(id); return err })
	s.eventuallyDone("the children again", func() (err error) { others, err = s.fork(id); return err })
	if len(children) != 2 || !slices.Equal(children, others) {
		s.Fatalf("R2: one fork has made %v and %v", children, others)
	}
	for _, child := range children {
		s.resume(child)
		s.wantTraces(child, tr)
	}
	s.check()
	for _, child := range children {
		s.remove(child)
	}
}

// wantSnapshots: what each snapshot of a sandbox holds is what it did. They are deleted.
func (s *stack) wantSnapshots(id string, tr traces) {
	s.Helper()
	list, err := s.c.ListSandboxSnapshots(s.ctx(), id)
	s.must(err)
	if list.Count == 0 {
		s.Error("no snapshot")
	}
	for _, snap := range list.Snapshots {
		var child string
		s.eventuallyDone("a claim from a snapshot", func() error {
			sb, err := s.c.CreateSandboxOnce(s.ctx(), claimKey(s)+snap.ID, client.ClaimRequest{Template: "default", SnapshotID: &snap.ID})
			if err == nil {
				child = sb.SandboxID
			}
			return err
		})
		s.wantFile(child, tr)
		s.remove(child)
		s.eventuallyDone("a delete of a snapshot", func() error { return s.c.DeleteSandboxSnapshot(s.ctx(), snap.ID) })
	}
}

func (s *stack) tryClaim(template string) error {
	_, err := s.c.CreateSandboxOnce(s.ctx(), claimKey(s), client.ClaimRequest{Template: template})
	return err
}

// verifyClaim: whoever asks again gets the same one, which serves.
func (s *stack) verifyClaim(template string) {
	s.Helper()
	id := s.claim(claimKey(s), template)
	if other := s.claim(claimKey(s), template); other != id {
		s.Errorf("R2: one claim has got %s and %s", id, other)
	}
	s.mustServe(id)
	s.check()
	s.remove(id)
}

func (s *stack) wantGeneration(id string, want int64) {
	s.Helper()
	if sb, err := s.c.GetSandbox(s.ctx(), id); err != nil || sb.RuntimeGeneration != want {
		s.Errorf("%s: %+v (%v), want generation %d", id, sb, err, want)
	}
}

func (s *stack) makeColdTemplate() {
	s.Helper()
	zero, memory := int32(0), "256Mi"
	_, err := s.c.CreateTemplate(s.ctx(), coldTemplate, client.TemplateSpec{
		MainContainer: client.ContainerSpec{Image: s.image, Resources: client.ResourceSpec{Memory: &memory}}, Pool: &client.PoolSpec{MinIdle: zero, MaxIdle: zero},
	})
	s.must(err)
}

// TestX01_Matrix kills noded at every place of every operation, as often as there are
// places, and after each kill asks the oracle.
func TestX01_Matrix(t *testing.T) {
	needFaults(t)
	for _, op := range operations {
		t.Run(op.name, func(t *testing.T) {
			s := newMatrixStack(t)
			places := s.placesOf(op)
			t.Logf("%s: %d places: %s", op.rows, len(places), strings.Join(places, " "))
			for _, place := range places {
				sound := t.Run(place, func(t *testing.T) {
					s.TB = t
					s.killAt(op, place)
				})
				if s.TB = t; !sound {
					s = newMatrixStack(t) // what one place has broken is none of the next one's
				}
			}
		})
	}
}

func newMatrixStack(t testing.TB) *stack {
	t.Helper()
	s := newStackWith(t, 1, true, objectStore(t)...)
	s.makeColdTemplate()
	return s
}

// TestX10_KilledInTheMiddle is the quick selection: the oracle proves itself, then one
// place of each kind, those at which most is lost if they are handled wrongly, and of parts
// one that ends a sandbox with its image written, not read, and one that ends none.
func TestX10_KilledInTheMiddle(t *testing.T) {
	s := newMatrixStack(t)
	s.findsWhatIsPlanted()
	for _, at := range []struct{ operation, place string }{
		{"create", "start.after-task"}, {"claim", "claim.after-journal"}, {"pause", "checkpoint.after-freeze"},
		{"resume", "resume.after-commit"}, {"fork", "fork.after-freeze"}, {"fetch", "fetch.after-data"},
	} {
		i := slices.IndexFunc(operations, func(op operation) bool { return op.name == at.operation })
		t.Run(at.place, func(t *testing.T) {
			s.TB = t
			s.killAt(operations[i], at.place)
		})
		s.TB = t
	}
	for _, at := range []struct{ operation, place, part string }{
		{"pause", "pause.after-manifest", "procd"}, {"pause", "checkpoint.after-files", "procd"}, {"resume", "resume.after-start", "sentry"}, {"fork", "fork.after-save", "containerd"},
		{"resume", "resume.after-netns", "netd"},
	} {
		i := slices.IndexFunc(operations, func(op operation) bool { return op.name == at.operation })
		t.Run("X29, X31: "+at.part+" at "+at.place, func(t *testing.T) {
			s.TB = t
			s.harmAt(operations[i], at.place, at.part)
		})
		s.TB = t
	}
	t.Run("X31: netd is away", func(t *testing.T) {
		s.TB = t
		s.netdIsAway()
	})
	s.TB = t
}

// ready makes what the operation works on.
func (s *stack) ready(op operation) (id string, tr traces) {
	s.Helper()
	if op.prepare == nil {
		return "", traces{}
	}
	id = op.prepare(s)
	tr = s.leaveTraces(id)
	if op.name == "restore" || op.name == "begin" {
		s.eventuallyDone("a snapshot", func() error {
			_, err := s.c.CreateSandboxSnapshot(s.ctx(), id, client.CreateSandboxRootFSSnapshotRequest{})
			return err
		})
	}
	if op.name == "resume" || op.name == "restore" || op.name == "fetch" {
		s.pause(id)
	}
	if op.name == "fetch" {
		s.drop(id)
	}
	return id, tr
}

// placesOf runs an operation once, with a trace of the places that it comes by. What a
// start of noded comes by with the same sandboxes is no place of the operation: it
// would die before it serves.
func (s *stack) placesOf(op operation) []string {
	s.Helper()
	id, tr := s.ready(op)
	s.check()
	file := filepath.Join(s.Root, "trace-"+op.name)
	s.restartNoded("*=trace(" + file + ")")
	s.check()
	before, err := os.ReadFile(file)
	if err != nil && !os.IsNotExist(err) {
		s.Fatal(err)
	}
	s.eventuallyDone(op.name, func() error { return op.begin(s, id) })
	after, err := os.ReadFile(file)
	s.must(err)
	op.verify(s, id, tr)
	if id != "" {
		s.remove(id)
	}
	s.check()
	if op.name == "delete" {
		after, err = os.ReadFile(file)
		s.must(err)
	}
	return strings.Fields(strings.TrimPrefix(string(after), string(before)))
}

// killAt kills noded at a place of an operation. What was asked for comes to be, once.
func (s *stack) killAt(op operation, place string) {
	s.Helper()
	id, tr := s.ready(op)
	s.check()
	s.restartNoded(place + "=exit")
	s.check() // else a restart's own work and not the operation would die
	answered := make(chan error, 1)
	go func() { answered <- op.begin(s, id) }()
	s.noded.died(fmt.Sprintf("%s did not come by %s", op.name, place))
	first := <-answered
	s.startNoded("")
	s.Logf("answered with noded dead: %v", first)
	s.eventuallyDone(op.name+", asked again", func() error { return op.begin(s, id) })
	s.check()
	op.verify(s, id, tr)
	if id != "" {
		s.remove(id)
	}
	s.check()
}

// needFaults keeps what takes minutes out of `make test`.
func needFaults(t testing.TB) {
	t.Helper()
	if os.Getenv("S0_FAULTS") == "" {
		t.Skip("takes minutes: make test-faults")
	}
}
