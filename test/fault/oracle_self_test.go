package fault_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"s0.run/internal/s0test"
	"s0.run/internal/sandbox"
)

// sound is a machine with one sandbox of each settled state.
func sound() (view, shape) {
	v := view{
		rows: map[string]row{"clmd1": {Status: "running", Generation: 1}, "psd1": {Status: "paused", Generation: 2}, "fld1": {Status: "failed", Generation: 1}},
		records: map[string]record{
			"slot1": {ID: "slot1", State: "slot", Generation: 1, NetIndex: 1}, "clmd1": {ID: "clmd1", State: "claimed", Generation: 1, NetIndex: 2},
			"psd1": {ID: "psd1", State: "paused", Generation: 2, Image: 2}, "fld1": {ID: "fld1", State: "failed", Generation: 1},
		},
		node:   map[string]string{"slot1": "slot", "clmd1": "sandbox", "psd1": "sandbox", "fld1": "sandbox"},
		images: map[string][]image{"psd1": {{2, true}}}, snapshotRows: map[string]string{"n": "ready"}, snapshotDirs: map[string]bool{"n": true},
		netd:   map[string]uint64{"slot1": 1, "clmd1": 1},
		traces: []s0test.Trace{{Kind: "shim", Name: "77 containerd-shim-s0-v1"}},
	}
	for i, id := range []string{"slot1", "clmd1"} {
		v.traces = append(v.traces, s0test.Trace{Kind: "sentry", Name: fmt.Sprint(10+i, " runsc ", id), ID: id},
			s0test.Trace{Kind: "link", Name: fmt.Sprint("sx", i+1, " ", id), ID: id}, s0test.Trace{Kind: "file", Name: "/d/" + id, ID: id})
	}
	return v, shape{"sentry runsc <id>": 1, "link sx <id>": 1, "file /d/<id>": 1}
}

// The oracle finds everything that differs, and nothing else.
func TestOracleCompares(t *testing.T) {
	t.Parallel()
	if v, whole := sound(); v.compare(whole) != nil {
		t.Fatalf("a sound machine: %v", v.compare(whole))
	}
	for want, damage := range map[string]func(v *view){
		"x: the journal has no record":                              func(v *view) { v.traces = append(v.traces, s0test.Trace{Kind: "file", Name: "/d/x", ID: "x"}) },
		"it has 2 of file /d/<id>, want 1":                          func(v *view) { v.traces = append(v.traces, s0test.Trace{Kind: "file", Name: "/d/clmd1", ID: "clmd1"}) },
		"it has 0 of sentry runsc <id>, want 1":                     func(v *view) { v.traces = v.without("sentry", "clmd1") },
		"psd1: it has 1 of file /d/<id>, want 0":                    func(v *view) { v.traces = append(v.traces, s0test.Trace{Kind: "file", Name: "/d/psd1", ID: "psd1"}) },
		"its link is sx9 clmd1, its record has index 2":             func(v *view) { v.move("clmd1", 9) },
		"slot1: netd has its generation 0, want 1":                  func(v *view) { delete(v.netd, "slot1") },
		"clmd1: netd has its generation 3, want 1":                  func(v *view) { v.netd["clmd1"] = 3 },
		"psd1: netd has its generation 2, want 0":                   func(v *view) { v.netd["psd1"] = 2 },
		"y: the journal has no record":                              func(v *view) { v.netd["y"] = 1 },
		"0 shims for 1 groups":                                      func(v *view) { v.traces = v.without("shim", "") },
		"clmd1: the database has no row":                            func(v *view) { delete(v.rows, "clmd1") },
		"slot1: the database has it as running":                     func(v *view) { v.rows["slot1"] = row{Status: "running", Generation: 1} },
		"want running of 1":                                         func(v *view) { v.rows["clmd1"] = row{Status: "paused", Generation: 1} },
		"of generation 3, want paused of 2":                         func(v *view) { v.rows["psd1"] = row{Status: "paused", Generation: 3} },
		"x: the journal has no record\nof a row":                    func(v *view) { v.rows["x"] = row{Status: "running", Generation: 1} },
		`the node tells of ""`:                                      func(v *view) { delete(v.node, "slot1") },
		`the journal has it as "slot", the node tells of "sandbox"`: func(v *view) { v.node["slot1"] = "sandbox" },
		"it is terminating, on the way":                             func(v *view) { v.records["slot1"] = record{ID: "slot1", State: "terminating", NetIndex: 1} },
		"have one address":                                          func(v *view) { v.records["fld1"] = record{ID: "fld1", State: "failed", Generation: 1, NetIndex: 2} },
		`it is "claimed" and has images`:                            func(v *view) { v.images["clmd1"] = []image{{1, true}} },
		`it is "failed" and has images`:                             func(v *view) { v.images["fld1"] = nil },
		"it is paused with image 2 and has [{2 false}]":             func(v *view) { v.images["psd1"] = []image{{2, false}} },
		"it is paused with image 2 and has [{1 true} {2":            func(v *view) { v.images["psd1"] = []image{{1, true}, {2, true}} },
		"it is paused with image 2 and has []":                      func(v *view) { delete(v.images, "psd1") },
		"snapshot n has no directory":                               func(v *view) { delete(v.snapshotDirs, "n") },
		"snapshot m is nobody's":                                    func(v *view) { v.snapshotDirs["m"] = true },
		"snapshot n is creating":                                    func(v *view) { v.snapshotRows["n"] = "creating" },
	} {
		v, whole := sound()
		damage(&v)
		want, _, _ = strings.Cut(want, "\n")
		if err := v.compare(whole); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got: %v", want, err)
		}
	}
}

func (v *view) without(kind, id string) []s0test.Trace {
	return slices.DeleteFunc(slices.Clone(v.traces), func(t s0test.Trace) bool { return t.Kind == kind && t.ID == id })
}

func (v *view) move(id string, link int) {
	v.traces = append(v.without("link", id), s0test.Trace{Kind: "link", Name: fmt.Sprint("sx", link, " ", id), ID: id})
}

// findsWhatIsPlanted: on a real machine, too, what is planted is found wherever that is,
// and when it is taken away again all is well.
func (s *stack) findsWhatIsPlanted() {
	s.Helper()
	id := s.claim("planted", "default")
	s.check()
	stranger, err := sandbox.NewID(s.Cluster)
	s.must(err)
	for name, plant := range s.plants(id, string(stranger)) {
		take := plant()
		v, err := s.view()
		s.must(err)
		if v.compare(s.shape) == nil {
			s.Errorf("not found: %s", name)
		}
		take()
		s.check()
	}
	s.remove(id)
	s.check()
}

// plants are what is left behind, each with its removal.
func (s *stack) plants(id, stranger string) map[string]func() func() {
	dir := func(path string) func() func() {
		return func() func() {
			s.must(os.MkdirAll(path, 0o700))
			return func() { s.must(os.Remove(path)) }
		}
	}
	ctr := func(add, remove []string) func() func() {
		return func() func() {
			s.ctr(add...)
			return func() { s.ctr(remove...) }
		}
	}
	groups := slices.DeleteFunc(s.globbed(filepath.Join("/sys/fs/cgroup/pids", s.CgroupParent, "*")), func(path string) bool {
		info, err := os.Stat(path)
		return err != nil || !info.IsDir()
	})
	return map[string]func() func(){
		"an upper layer":                dir(filepath.Join(s.nodedData(), "sandboxes", stranger)),
		"a slot's directory":            dir(filepath.Join(s.nodedRun(), "sandboxes", stranger)),
		"an image of what is not there": dir(filepath.Join(s.paused(), stranger)),
		"an image of what runs":         dir(filepath.Join(s.paused(), id)),
		"a control group":               dir(filepath.Join(groups[0], stranger)),
		"a lease":                       ctr([]string{"leases", "create", "--id", stranger}, []string{"leases", "delete", stranger}),
		"a snapshot":                    ctr([]string{"snapshots", "prepare", stranger}, []string{"snapshots", "remove", stranger}),
		"a mount":                       s.plantMount(stranger),
		"a row of another generation":   s.plantRow(id),
	}
}

func (s *stack) globbed(pattern string) []string {
	s.Helper()
	found, err := filepath.Glob(pattern)
	s.must(err)
	return found
}

func (s *stack) ctr(args ...string) {
	s.Helper()
	out, err := exec.Command(filepath.Join(s.BinDir, "ctr"), append([]string{"-a", s.ContainerdSocket, "-n", s.Namespace}, args...)...).CombinedOutput()
	if err != nil {
		s.Fatalf("ctr %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

func (s *stack) plantMount(id string) func() func() {
	return func() func() {
		path := filepath.Join(s.RunDir, id)
		s.must(os.Mkdir(path, 0o700))
		s.must(unix.Mount("tmpfs", path, "tmpfs", 0, "size=1m"))
		return func() {
			s.must(unix.Unmount(path, 0))
			s.must(os.Remove(path))
		}
	}
}

func (s *stack) plantRow(id string) func() func() {
	exec := func(sql string, args ...any) {
		s.Helper()
		ctx := s.ctx()
		db, err := pgx.Connect(ctx, s.dsn)
		s.must(err)
		defer db.Close(ctx)
		_, err = db.Exec(ctx, sql, args...)
		s.must(err)
	}
	return func() func() {
		exec(`UPDATE sandboxes SET generation = generation + 7 WHERE id = $1`, id)
		return func() { exec(`UPDATE sandboxes SET generation = generation - 7 WHERE id = $1`, id) }
	}
}

func TestTheOracleKnowsOrphans(t *testing.T) {
	t.Parallel()
	v := view{
		rows:    map[string]row{"owned": {Status: "paused"}},
		records: map[string]record{"owned": {State: "paused"}, "slot": {State: "slot"}, "saved": {State: "paused"}, "runs": {State: "claimed"}, "ended": {State: "failed"}},
	}
	if got := slices.Sorted(slices.Values(v.orphans())); !slices.Equal(got, []string{"ended", "runs", "saved"}) {
		t.Errorf("orphans %v", got)
	}
}
