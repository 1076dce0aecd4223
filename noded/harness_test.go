package noded_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"s0.run/internal/nodeapi"
	"s0.run/internal/nodeapi/nodeapiconnect"
	"s0.run/internal/sandbox"
	"s0.run/noded"
)

// patience is how long a test waits for what must happen.
const patience = 60 * time.Second

// daemon is one run of a noded.
type daemon struct {
	t    testing.TB
	cfg  noded.Config
	stop func() // waits until it is gone
	http *http.Client
	rpc  nodeapiconnect.NodeClient
}

// simulated is a noded without real sandboxes, in directories of its own.
func simulated(t testing.TB) noded.Config {
	dir := shortDir(t)
	return noded.Config{
		Simulate: true, DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run"), Socket: filepath.Join(dir, "s"),
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

// shortDir is a temporary directory whose path leaves room for a socket's name.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "noded-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// run starts a noded and waits until it is ready.
func run(t testing.TB, cfg noded.Config) *daemon {
	t.Helper()
	d := &daemon{t: t, cfg: cfg}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	cfg.Ready = func() { close(ready) }
	go func() { ended <- noded.Run(ctx, cfg) }()
	select {
	case <-ready:
	case err := <-ended:
		cancel()
		t.Fatalf("noded ended: %v", err)
	case <-time.After(patience):
		t.Fatal("noded is not ready")
	}
	d.connect()
	d.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("noded: %v", err)
		}
		d.http.CloseIdleConnections()
	})
	t.Cleanup(d.stop)
	return d
}

func (d *daemon) connect() {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	d.http = &http.Client{Transport: &http.Transport{
		Protocols:   protocols,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", d.cfg.Socket) },
	}}
	d.rpc = nodeapiconnect.NewNodeClient(d.http, "http://node")
}

func (d *daemon) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	d.t.Cleanup(cancel)
	return ctx
}

func (d *daemon) setPool(spec sandbox.Spec, size int) {
	d.t.Helper()
	if err := d.trySetPool(spec, size); err != nil {
		d.t.Fatal(err)
	}
}

// trySetPool is setPool for a noded that may die before it answers.
func (d *daemon) trySetPool(spec sandbox.Spec, size int) error {
	req := &nodeapi.SetPoolsRequest{}
	if size > 0 {
		req.Pools = append(req.Pools, &nodeapi.Pool{Key: "p", Spec: nodeapi.SpecToWire(spec), MinIdle: uint32(size), MaxIdle: uint32(size)})
	}
	_, err := d.rpc.SetPools(d.ctx(), req)
	return err
}

// picture is what a watcher knows.
type picture struct {
	free      map[string]bool
	sandboxes map[string]string // state by id
	pool      *nodeapi.PoolStatus
}

// until watches until the picture is as wanted, and returns it.
func (d *daemon) until(what string, done func(p *picture) bool) *picture {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	stream, err := d.rpc.Watch(ctx, &nodeapi.WatchRequest{})
	if err != nil {
		d.t.Fatal(err)
	}
	defer stream.Close()
	p := &picture{free: map[string]bool{}, sandboxes: map[string]string{}}
	synced := false
	for stream.Receive() {
		switch e := stream.Msg().Event.(type) {
		case *nodeapi.Event_SlotFree:
			p.free[e.SlotFree.Id] = true
		case *nodeapi.Event_SlotTaken:
			delete(p.free, e.SlotTaken)
		case *nodeapi.Event_Sandbox:
			p.sandboxes[e.Sandbox.Id] = e.Sandbox.State
		case *nodeapi.Event_SandboxGone:
			delete(p.sandboxes, e.SandboxGone)
		case *nodeapi.Event_Pool:
			p.pool = e.Pool
		case *nodeapi.Event_Synced:
			synced = true
		}
		if synced && done(p) {
			return p
		}
	}
	d.t.Fatalf("%s: did not come to be: %v; free %d, sandboxes %v, pool %v", what, stream.Err(), len(p.free), p.sandboxes, p.pool)
	return nil
}

func (d *daemon) untilFree(n int) []string {
	d.t.Helper()
	p := d.until("free slots", func(p *picture) bool { return len(p.free) >= n })
	var ids []string
	for id := range p.free {
		ids = append(ids, id)
	}
	return ids
}

func (d *daemon) claim(slot string) *nodeapi.Sandbox {
	d.t.Helper()
	resp, err := d.rpc.Claim(d.ctx(), &nodeapi.ClaimRequest{ClaimId: "claim-" + slot, Slot: slot, PoolKey: "p", Team: "team"})
	if err != nil {
		d.t.Fatalf("claim of %s: %v", slot, err)
	}
	return resp.GetSandbox()
}

func (d *daemon) delete(id string) {
	d.t.Helper()
	if _, err := d.rpc.Delete(d.ctx(), &nodeapi.DeleteRequest{Id: id}); err != nil {
		d.t.Fatalf("delete of %s: %v", id, err)
	}
}
