package lifecycle_test

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/fakenode"
	"s0.run/api/internal/lifecycle"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/s0test"
	"s0.run/internal/sandbox"
)

// A fork's children are where they were made, wherever their source went meanwhile.
func TestAForksChildrenAreOnTheNodeThatMadeThem(t *testing.T) {
	t.Parallel()
	var f *fixture
	var sb store.Sandbox
	n1 := &fakenode.Node{AfterFork: func(*nodeapi.ForkRequest) error {
		_, err := f.conn.Exec(t.Context(), "UPDATE sandboxes SET node = 'n2', generation = generation + 2 WHERE id = $1", sb.ID)
		return err
	}}
	f, sb = withStore(t, n1, &fakenode.Node{})
	made, err := f.keep.Fork(t.Context(), lifecycle.ForkRequest{TeamID: f.team, UserID: uuid.New(), Source: sb.ID, Count: 2})
	if err != nil {
		t.Fatal(err)
	}
	for _, child := range made {
		if child.Node != "n1" || f.row(sb.ID).Node != "n2" {
			t.Errorf("%s is on %s by its row, made on n1; its source is on %s", child.ID, child.Node, f.row(sb.ID).Node)
		}
	}
}

// X24: what a fork could not undo ends when its node can be told, however often it could not,
// and not after the grace.
func TestX24_AForkIsUndoneWhenItsNodeListens(t *testing.T) {
	t.Parallel()
	var deaf atomic.Int32
	deaf.Store(3)
	f := runWith(t, &fakenode.Node{
		AfterFork: func(*nodeapi.ForkRequest) error { return errors.New("its answer is lost") },
		OnDelete: func(context.Context) {
			if deaf.Add(-1) >= 0 {
				panic(http.ErrAbortHandler) // hangs up
			}
		},
	}, lifecycle.Config{Settled: time.Millisecond, Grace: time.Hour})
	sb := f.claimed(nil)
	if made, err := f.keep.Fork(t.Context(), lifecycle.ForkRequest{TeamID: f.team, UserID: uuid.New(), Source: sb.ID}); err == nil {
		t.Fatalf("%+v", made)
	}
	fakenode.Eventually(t, "the child is gone", func() bool { return len(f.node.Sandboxes()) == 1 && deaf.Load() < 0 })
}

// X39, X24: what the node of a server that died has made is ended by another server, which
// never heard of it, and not after the grace.
func TestX39_AForkOfAServerThatDied(t *testing.T) {
	t.Parallel()
	dsn := s0test.Postgres(t)
	mortal, err := store.Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(mortal.Close)
	made := 0
	f := runAt(t, dsn, &fakenode.Node{AfterFork: func(req *nodeapi.ForkRequest) error {
		made = len(req.GetChildren())
		mortal.Close()
		return nil
	}}, lifecycle.Config{Settled: time.Millisecond, Grace: time.Hour})
	sb := f.claimed(nil)
	if got, err := f.keep.Beside(mortal).Fork(t.Context(), f.fork(sb, 2)); err == nil || made != 2 {
		t.Fatalf("%d made, answered %+v", made, got)
	}
	f.alone(sb)
}

// X26: what a server stores so late that its fork was given up is not stored.
func TestX26_AForkThatWasGivenUp(t *testing.T) {
	t.Parallel()
	var f *fixture
	f = runWith(t, &fakenode.Node{AfterFork: func(req *nodeapi.ForkRequest) error {
		for _, c := range req.GetChildren() {
			fakenode.Eventually(t, "a pass ends it", func() bool { return f.node.Deleted()[c.GetId()] != "" })
		}
		return nil
	}}, lifecycle.Config{Settled: time.Millisecond, Grace: time.Hour})
	sb := f.claimed(nil)
	if made, err := f.keep.Fork(t.Context(), f.fork(sb, 2)); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("%+v: %v", made, err)
	}
	f.alone(sb)
	if rows := f.count("sandboxes"); rows != 1 {
		t.Errorf("%d rows", rows)
	}
	if rows := f.count("fork_children"); rows != 0 {
		t.Errorf("%d children are remembered that their node has never again", rows)
	}
}

// A pass leaves a fork alone whose server is about to store it, and nothing is remembered of
// one that is stored.
func TestAForkUnderWayIsLeftAlone(t *testing.T) {
	t.Parallel()
	var f *fixture
	f = runWith(t, &fakenode.Node{AfterFork: func(req *nodeapi.ForkRequest) error {
		fakenode.Eventually(t, "it is listed", func() bool {
			_, _, ok := f.table.Lookup(sandbox.ID(req.GetChildren()[0].GetId()))
			return ok
		})
		f.keep.Pass(t.Context())
		f.keep.Pass(t.Context())
		return nil
	}}, lifecycle.Config{Settled: time.Hour, Grace: time.Hour})
	if _, err := f.keep.Fork(t.Context(), f.fork(f.claimed(nil), 1)); err != nil {
		t.Fatal(err)
	}
	if n, rows := len(f.node.Sandboxes()), f.count("fork_children"); n != 2 || rows != 0 {
		t.Errorf("the node has %d sandboxes, and %d children are remembered", n, rows)
	}
}

// X24: children that a node makes after it has hung up on who asked for them end, too.
func TestX24_AForkThatIsMadeAfterItWasUndone(t *testing.T) {
	t.Parallel()
	var child *nodeapi.ForkChild
	f := runWith(t, &fakenode.Node{AfterFork: func(req *nodeapi.ForkRequest) error {
		child = req.GetChildren()[0]
		panic(http.ErrAbortHandler)
	}}, lifecycle.Config{Settled: time.Hour, Grace: time.Hour})
	sb := f.claimed(nil)
	if made, err := f.keep.Fork(t.Context(), f.fork(sb, 1)); err == nil {
		t.Fatalf("%+v", made)
	}
	f.alone(sb)
	f.revive(child.GetId(), child.GetClaimId())
	f.alone(sb)
}

func (f *fixture) fork(of store.Sandbox, count int) lifecycle.ForkRequest {
	return lifecycle.ForkRequest{TeamID: f.team, UserID: uuid.New(), Source: of.ID, Count: count}
}

// alone waits until a node has one sandbox and nothing else.
func (f *fixture) alone(sb store.Sandbox) {
	f.t.Helper()
	fakenode.Eventually(f.t, "there is one sandbox", func() bool { return len(f.node.Sandboxes()) == 1 })
	if f.node.Sandboxes()[string(sb.ID)] == nil || f.row(sb.ID).Status != sandbox.Running {
		f.t.Error("it is another one")
	}
}

func (f *fixture) count(table string) (n int) {
	f.t.Helper()
	if err := f.conn.QueryRow(f.t.Context(), "SELECT count(*) FROM "+table).Scan(&n); err != nil {
		f.t.Fatal(err)
	}
	return n
}
