package runtime

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"s0.run/internal/sandbox"
	"s0.run/internal/shimapi"
)

// leftovers is a Runtime without containerd, with files of runsc's.
func leftovers(t *testing.T) *Runtime {
	t.Helper()
	rt, err := New(Config{
		Socket: filepath.Join(t.TempDir(), "none"), Namespace: "test", Snapshotter: "overlayfs",
		Runsc: "/none", RunscRoot: t.TempDir(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rt.Close() })
	return rt
}

func (r *Runtime) put(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(r.cfg.RunscRoot, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func newID(t *testing.T) sandbox.ID {
	t.Helper()
	id, err := sandbox.NewID("test")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// X29: the files of one sandbox go, all of them, and nobody else's.
func TestX29_RemainsOfOneAreRemoved(t *testing.T) {
	t.Parallel()
	rt, id, other := leftovers(t), newID(t), newID(t)
	rt.put(t, shimapi.RunscFiles(string(id))...)
	rt.put(t, shimapi.RunscFiles(string(other))[1])
	foreign := []string{"null-netns", "runsc-x.sock", "x_sandbox:x.state", string(id), string(id) + "_sandbox:" + string(other) + ".state"}
	rt.put(t, foreign...)
	found, err := rt.Remains()
	if slices.Sort(found); err != nil || !slices.Equal(found, slices.Sorted(slices.Values([]sandbox.ID{id, other}))) {
		t.Errorf("found %v (%v), want %s and %s", found, err, id, other)
	}
	for range 2 { // idempotent
		if err := rt.RemoveRemains(id); err != nil {
			t.Fatal(err)
		}
	}
	if found, err := rt.Remains(); err != nil || !slices.Equal(found, []sandbox.ID{other}) {
		t.Errorf("then there are %v (%v), want %s", found, err, other)
	}
	for _, name := range foreign {
		if _, err := os.Stat(filepath.Join(rt.cfg.RunscRoot, name)); err != nil {
			t.Error(err)
		}
	}
	rt.cfg.RunscRoot = filepath.Join(rt.cfg.RunscRoot, "none")
	if found, err := rt.Remains(); err != nil || len(found) > 0 {
		t.Errorf("before the first sandbox: %v (%v)", found, err)
	}
}

// X29: what may still be used stays.
func TestX29_RemainsOfTheLivingStay(t *testing.T) {
	t.Parallel()
	rt, id := leftovers(t), newID(t)
	rt.put(t, shimapi.RunscFiles(string(id))...)
	for root, inUse := range map[string]bool{rt.cfg.RunscRoot: true, "/another": false} {
		rt.put(t, shimapi.RunscFiles(string(id))...)
		end := standIn(t, "--root="+root, "delete", string(id))
		if err := rt.RemoveRemains(id); (err != nil) != inUse {
			t.Errorf("beside a process on %s: %v", root, err)
		}
		if found, err := rt.Remains(); err != nil || (len(found) == 1) != inUse {
			t.Errorf("beside a process on %s there is %v (%v)", root, found, err)
		}
		end()
		if err := rt.RemoveRemains(id); err != nil {
			t.Errorf("after its end: %v", err)
		}
	}
}

// standIn runs a process with these arguments until it is ended.
func standIn(t *testing.T, args ...string) (end func()) {
	t.Helper()
	cmd := exec.Command("sh", append([]string{"-c", "echo ready; read end", "runsc"}, args...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil { // it has become the shell
		t.Fatal(err)
	}
	return func() {
		in.Close()
		_ = cmd.Wait() // its read fails
	}
}
