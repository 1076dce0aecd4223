package runtime

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
	"s0.run/internal/volumeapi"
	"s0.run/noded/internal/volumes"
)

// directories is a volumed whose volumes are directories.
type directories struct {
	volumeapi.Server // what is not asked here
	dir              string
}

func (d directories) Use(_ context.Context, req volumeapi.Use) (volumeapi.Mounted, error) {
	return volumeapi.Mounted{Path: filepath.Join(d.dir, req.Volume.ID)}, nil
}

func (directories) Leave(context.Context, volumeapi.Leave) error { return nil }

func (directories) Commit(context.Context, string) (volumeapi.Committed, error) {
	return volumeapi.Committed{Clean: true}, nil
}

// portals opens an agent in a directory, with volumes v1 to v3 there, of which the last is
// small, each with a file that has its name.
func (n *node) portals(at string) *volumes.Agent {
	n.Helper()
	for _, v := range []string{"v1", "v2", "v3"} {
		n.ok(os.Mkdir(filepath.Join(at, v), 0o700))
		if v == "v3" { // is small
			n.ok(unix.Mount("tmpfs", filepath.Join(at, v), "tmpfs", 0, "size=1m"))
		}
		n.ok(os.WriteFile(filepath.Join(at, v, "name"), []byte(v), 0o600))
	}
	ln, err := net.Listen("unix", filepath.Join(at, "sock"))
	n.ok(err)
	srv := &http.Server{Handler: volumeapi.Handler(directories{dir: at}, func(string, error) {})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	agent, err := volumes.Open(filepath.Join(at, "portals"), filepath.Join(at, "sock"))
	n.ok(err)
	n.Cleanup(func() {
		_ = srv.Close()
		<-done
		for _, mounted := range []string{"portals/base", "portals", "v3"} {
			if err := unix.Unmount(filepath.Join(at, mounted), unix.MNT_DETACH); err != nil {
				n.Error(err)
			}
		}
	})
	return agent
}

func volume(id string, readOnly bool) volumes.Mount {
	return volumes.Mount{ID: "m", ReadOnly: readOnly, Volume: volumeapi.Volume{ID: id, Team: "t", Epoch: 1}}
}

// C06: a sandbox sees in its portal what is mounted there at any time, may write to volumes
// and to nothing else of it, and finds all again when it was saved and restored.
func TestC06_PortalFromInside(t *testing.T) {
	n := newNode(t)
	portals := n.portals(dir(t))
	b := n.newBox(sandbox.GVisor)
	n.Cleanup(func() { _ = n.rt.Remove(context.Background(), b.c.ID) }) // it has failed
	begin := func() *agent {
		t.Helper()
		n.ok(os.MkdirAll(filepath.Join(b.c.SlotDir, filepath.Base(procapi.Portal)), 0o755))
		n.ok(portals.Prepare(b.c.ID))
		b.c.PortalDir = portals.Dir(b.c.ID)
		n.ok(n.rt.Start(n.ctx(), b.c))
		return b.accept()
	}
	a := begin()
	n.ok(portals.Attach(n.ctx(), b.c.ID, volume("v1", false)))
	n.ok(portals.Attach(n.ctx(), b.c.ID, volume("v2", true)))
	n.looksInside(a)
	n.ok(portals.Attach(n.ctx(), b.c.ID, volume("v3", false)))
	a.do("mkdir", "/former")
	if out, code := a.do("fill", procapi.Portal+"/v3~m/big", "4"); code == 0 || !strings.Contains(out, "no space") { // D04
		t.Errorf("writing more than a volume has room for: %q, status %d", out, code)
	}
	for volume, at := range map[string]string{"v1": "/workspace", "v3": "/former"} {
		if out, code := a.do("bind", procapi.Portal+"/"+volume+"~m", at); code != 0 {
			t.Fatal(out)
		}
	}
	a.wantOut("v1", "read", "/workspace/name")
	a.conn.Close()
	image := dir(t)
	n.ok(n.rt.Checkpoint(n.ctx(), b.c.ID, image))
	n.ok(n.rt.Remove(n.ctx(), b.c.ID))
	n.ok(portals.DetachAll(n.ctx(), b.c.ID))

	b.c.Checkpoint = image
	b.relisten()
	n.ok(portals.Prepare(b.c.ID))
	n.ok(portals.Attach(n.ctx(), b.c.ID, volume("v1", false)))
	n.ok(portals.Attach(n.ctx(), b.c.ID, volume("v2", true)))
	n.ok(portals.StandIn(b.c.ID, volume("v3", false))) // it was taken away meanwhile
	a = begin()
	n.looksInside(a)
	a.wantOut("new", "read", "/workspace/new")
	a.wantOut("", "ls", "/former")
	if out, code := a.do("umount", "/workspace"); code != 0 {
		t.Error(out)
	}
	look := func(context.Context) error {
		a.do("ls", procapi.Portal+"/v1~m")
		return nil
	}
	pid, _ := a.do("hold", procapi.Portal+"/v1~m/held")
	if err := portals.Detach(n.ctx(), b.c.ID, volume("v1", false), look); !errors.Is(err, volumes.ErrBusy) {
		t.Errorf("a detach with an open file: %v", err)
	}
	n.ok(portals.Attach(n.ctx(), b.c.ID, volume("v1", false)))
	n.looksInside(a)
	a.do("kill", strings.TrimSpace(pid))
	n.ok(portals.Detach(n.ctx(), b.c.ID, volume("v1", false), look))
	if out, _ := a.do("ls", procapi.Portal); out != "v2~m\nv3~m\n" {
		t.Errorf("after a detach: %q", out)
	}
	n.ok(n.rt.Remove(n.ctx(), b.c.ID))
	n.ok(portals.DetachAll(n.ctx(), b.c.ID))
	n.wantNothing()
}

// looksInside tries what a sandbox can do in its portal with v1 and v2, the latter read-only.
func (n *node) looksInside(a *agent) {
	n.Helper()
	v1, v2 := procapi.Portal+"/v1~m", procapi.Portal+"/v2~m"
	a.wantOut("v1", "read", v1+"/name")
	a.wantOut("v2", "read", v2+"/name")
	if out, code := a.do("write", v1+"/new", "new"); code != 0 {
		n.Errorf("writing to a volume: %s", out)
	}
	for at, want := range map[string]os.FileMode{"": 0o755, "v2~m": 0o700} {
		a.do("chmod", filepath.Join(procapi.Portal, at)) // which the sandbox's kernel may believe
		fi, err := os.Stat(filepath.Join(a.c.PortalDir, at))
		n.ok(err)
		if fi.Mode().Perm() != want {
			n.Errorf("mode of %q: %v", at, fi.Mode())
		}
	}
	for _, args := range [][]string{
		{"write", procapi.Portal + "/new", "x"}, {"mkdir", procapi.Portal + "/new"}, {"symlink", "/", procapi.Portal + "/new"},
		{"rm", v1}, {"write", v2 + "/new", "x"},
	} {
		if out, code := a.do(args...); code == 0 {
			n.Errorf("%q: %s", args, out)
		}
	}
}

// relisten forgets who has dialled and was not answered: it is of a life that is over.
func (b *box) relisten() {
	b.Helper()
	at := b.ln.Addr().String()
	b.ln.Close()
	ln, err := net.Listen("unix", at)
	b.ok(err)
	b.Cleanup(func() { ln.Close() })
	b.ln = ln
}
