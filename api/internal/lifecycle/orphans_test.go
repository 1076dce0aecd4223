package lifecycle_test

import (
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"s0.run/api/internal/fakenode"
	"s0.run/api/internal/lifecycle"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/s0test"
	"s0.run/internal/sandbox"
)

// journal is what a server logged.
type journal struct {
	mu sync.Mutex
	b  strings.Builder
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

// about gives the lines that name a sandbox.
func (j *journal) about(id sandbox.ID) (lines []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for line := range strings.Lines(j.b.String()) {
		if strings.Contains(line, "sandbox="+string(id)) {
			lines = append(lines, line)
		}
	}
	return lines
}

// failover is a server whose database has lost what was committed since a base copy.
type failover struct {
	*fixture
	dsn                 string
	kept, paused, ended store.Sandbox   // of before the copy; since then it was paused, or ended
	lost                []store.Sandbox // claimed since then
	repair              func()          // brings the lost commits back
}

// failOver makes commits, loses them, and serves again, as c says.
func failOver(t *testing.T, c lifecycle.Config) *failover {
	t.Helper()
	pg := s0test.NewPostgresCluster(t, "fsync=off")
	f := &failover{dsn: pg.Database(t)}
	f.fixture = runAt(t, f.dsn, &fakenode.Node{}, lifecycle.Config{Settled: time.Hour, Grace: time.Hour})
	f.kept, f.paused, f.ended = f.claimed(nil), f.claimed(nil), f.claimed(nil)
	fail := pg.Copy(t)
	for range 5 {
		f.lost = append(f.lost, f.claimed(nil))
	}
	if _, err := f.keep.Pause(t.Context(), f.team, f.paused.ID); err != nil {
		t.Fatal(err)
	}
	if err := f.keep.Delete(t.Context(), f.team, f.ended.ID); err != nil {
		t.Fatal(err)
	}
	f.repair = pg.Copy(t)
	f.stop()
	fail()
	f.serve(f.dsn, c)
	return f
}

// told waits until the operator has been told of every lost sandbox.
func (f *failover) told() {
	f.t.Helper()
	fakenode.Eventually(f.t, "the lost ones are seen", func() bool { return f.keep.Orphans() == len(f.lost) })
}

// X37, G09: the database fails over to a copy that has not got its last commits. What it
// lacks runs on, and the operator is told once; what it has goes on, with what its node
// says of it. After the grace the others end.
func TestX37_TheDatabaseHasLostItsLastCommits(t *testing.T) {
	t.Parallel()
	log := &journal{}
	f := failOver(t, lifecycle.Config{Settled: time.Millisecond, Grace: time.Hour, Log: slog.New(slog.NewTextHandler(log, nil))})
	f.told()
	f.eventually(f.paused.ID, "the row follows its node", func(row store.Sandbox) bool { return row.Status == sandbox.Paused })
	f.eventually(f.ended.ID, "the end is seen", failed("its node has no record of it"))
	if row := f.row(f.kept.ID); row.Status != sandbox.Running {
		t.Errorf("what the copy has: %+v", row)
	}
	f.keep.Pass(t.Context()) // tells nobody again
	if ended := f.node.Deleted(); len(ended) != 1 {
		t.Errorf("the node was told to end %v, want %s alone", ended, f.ended.ID)
	}
	for _, sb := range f.lost {
		if lines := log.about(sb.ID); len(lines) != 1 || !strings.Contains(lines[0], "level=WARN") {
			t.Errorf("the operator was told %q", lines)
		}
	}
	f.stop()
	f.serve(f.dsn, lifecycle.Config{Settled: time.Millisecond, Grace: time.Millisecond})
	fakenode.Eventually(t, "after the grace they end", func() bool { return len(f.node.Sandboxes()) == 2 })
	for _, sb := range f.lost {
		if reason := f.node.Deleted()[string(sb.ID)]; reason != "nobody's sandbox" {
			t.Errorf("%s: reason %q", sb.ID, reason)
		}
	}
	fakenode.Eventually(t, "nothing is left to tell", func() bool { return f.keep.Orphans() == 0 })
}

// X37: a database that finds its last commits within the grace has its sandboxes again.
func TestX37_TheLastCommitsComeBack(t *testing.T) {
	t.Parallel()
	f := failOver(t, lifecycle.Config{Settled: time.Millisecond, Grace: time.Hour})
	f.told()
	f.repair() // under the server, which goes on
	fakenode.Eventually(t, "they are somebody's again", func() bool { return f.keep.Orphans() == 0 })
	for _, sb := range f.lost {
		fakenode.Eventually(t, "its row is back", func() bool { // the first calls find connections that were cut
			row, err := f.store.AnySandbox(t.Context(), sb.ID)
			return err == nil && row.Status == sandbox.Running
		})
	}
	if ended := f.node.Deleted(); len(ended) != 1 {
		t.Errorf("the node was told to end %v, want %s alone", ended, f.ended.ID)
	}
}

// X37, R2: the lost commits moved a sandbox to another node, where it runs. It is not
// resumed a second time where the database has it, and it can be deleted.
func TestX37_AMoveIsLost(t *testing.T) {
	t.Parallel()
	pg := s0test.NewPostgresCluster(t, "fsync=off")
	dsn, n2 := pg.Database(t), &fakenode.Node{}
	f, sb := withStoreAt(t, dsn, lifecycle.Config{}, &fakenode.Node{}, n2)
	fail := pg.Copy(t)
	f.node.Stop()
	fakenode.Eventually(t, "the node is lost", func() bool { return !f.table.IsSynced("n1") })
	moved := f.resumeElsewhere(sb.ID)
	f.node.Listen(t)
	fakenode.Eventually(t, "n1's is ended", func() bool { return f.node.Deleted()[string(sb.ID)] != "" })
	f.stop()
	fail()
	f.serve(dsn, lifecycle.Config{Settled: time.Hour, Grace: time.Hour})
	fakenode.Eventually(t, "n2's is listed", func() bool { _, _, ok := f.table.Lookup(sb.ID); return ok })
	if row, err := f.keep.Resume(t.Context(), f.team, sb.ID); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("resumed: %+v, %v", row, err)
	}
	if n := len(f.node.Sandboxes()); n != 0 || n2.Sandboxes()[string(sb.ID)].GetGeneration() != uint64(moved.Generation) {
		t.Errorf("n1 has %d, n2 %v", n, n2.Sandboxes())
	}
	if row := f.row(sb.ID); row.Status != sandbox.Paused || row.Node != "n1" {
		t.Errorf("%s at %s", row.Status, row.Node)
	}
	if err := f.keep.Delete(t.Context(), f.team, sb.ID); err != nil {
		t.Fatal(err)
	}
	fakenode.Eventually(t, "n2's ends with it", func() bool { return len(n2.Sandboxes()) == 0 })
}

// X37, R6: the database has a sandbox running at the node that it was on before the lost
// commits moved it: it has not failed. When the other node's ends, it has.
func TestX37_WhatRunsElsewhereHasNotFailed(t *testing.T) {
	t.Parallel()
	n2 := &fakenode.Node{Name: "n2"}
	f := runWith(t, &fakenode.Node{}, lifecycle.Config{Settled: time.Hour, Grace: time.Hour}, n2)
	sb := f.claimed(nil)
	n2.Adopt(&nodeapi.Sandbox{Id: string(sb.ID), Generation: 4, State: "running", Team: f.team.String(), ClaimId: sb.ClaimID.String()})
	fakenode.Eventually(t, "n2's is listed", func() bool { at, _, ok := f.table.Lookup(sb.ID); return ok && at.Node == "n2" })
	f.node.Gone(string(sb.ID))
	if _, err := f.conn.Exec(t.Context(), "UPDATE sandboxes SET updated_at = now() - interval '2 hours'"); err != nil {
		t.Fatal(err)
	}
	f.keep.Pass(t.Context())
	if row := f.row(sb.ID); row.Status != sandbox.Running {
		t.Errorf("%s: %s", row.Status, row.Reason)
	}
	n2.Gone(string(sb.ID))
	f.eventually(sb.ID, "the end is recorded", func(row store.Sandbox) bool { return row.Status == sandbox.Failed })
}
