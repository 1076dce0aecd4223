package lifecycle_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"s0.run/api/internal/fakenode"
	"s0.run/api/internal/lifecycle"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
)

func is(status sandbox.State, gen sandbox.Generation) func(store.Sandbox) bool {
	return func(row store.Sandbox) bool { return row.Status == status && row.Generation == gen }
}

func TestPauseAndResume(t *testing.T) {
	t.Parallel()
	f := run(t, time.Hour)
	sb := f.claimed(func(n *store.NewSandbox) { n.TTLSeconds = 3600 })
	if _, err := f.keep.Pause(t.Context(), uuid.New(), sb.ID); !errdefs.Is(err, errdefs.NotFound) {
		t.Fatalf("A01: by a foreign team: %v", err)
	}
	for range 2 { // the second finds it paused
		got, err := f.keep.Pause(t.Context(), f.team, sb.ID)
		if err != nil || !is(sandbox.Paused, 1)(got) || got.ExpiresAt != nil {
			t.Fatalf("%+v: %v", got, err)
		}
	}
	if _, err := f.keep.Resume(t.Context(), uuid.New(), sb.ID); !errdefs.Is(err, errdefs.NotFound) {
		t.Fatalf("A01: by a foreign team: %v", err)
	}
	var all sync.WaitGroup
	for range 10 { // one attempt for all
		all.Go(func() {
			got, err := f.keep.Resume(t.Context(), f.team, sb.ID)
			if err != nil || !is(sandbox.Running, 2)(got) || got.ExpiresAt == nil {
				t.Errorf("%+v: %v", got, err)
			}
		})
	}
	all.Wait()
	if err := f.keep.Delete(t.Context(), f.team, sb.ID); err != nil || !deleted(f.row(sb.ID)) {
		t.Fatalf("%v", err)
	}
	for what, err := range map[string]error{
		"pause":  second(f.keep.Pause(t.Context(), f.team, sb.ID)),
		"resume": second(f.keep.Resume(t.Context(), f.team, sb.ID)),
	} {
		if !errdefs.Is(err, errdefs.NotFound) {
			t.Errorf("%s of what is gone: %v", what, err)
		}
	}
}

func second(_ store.Sandbox, err error) error { return err }

func TestAResumeThatFailsLeavesTheSandboxPaused(t *testing.T) {
	t.Parallel()
	f := run(t, time.Hour)
	sb := f.claimed(nil)
	if _, err := f.keep.Pause(t.Context(), f.team, sb.ID); err != nil {
		t.Fatal(err)
	}
	f.node.Stop()
	if _, err := f.keep.Resume(t.Context(), f.team, sb.ID); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("without its node: %v", err)
	}
	if row := f.row(sb.ID); !is(sandbox.Paused, 1)(row) {
		t.Errorf("%+v", row)
	}
	f.node.Listen(t)
	f.eventually(sb.ID, "it can be resumed again", func(store.Sandbox) bool {
		_, err := f.keep.Resume(t.Context(), f.team, sb.ID)
		return err == nil
	})
}

func TestASandboxThatFailedIsNeitherPausedNorResumed(t *testing.T) {
	t.Parallel()
	f := run(t, time.Hour)
	sb := f.claimed(nil)
	f.node.Fail(string(sb.ID), "oom")
	f.eventually(sb.ID, "the failure is recorded", failed("oom"))
	for what, err := range map[string]error{
		"pause":  second(f.keep.Pause(t.Context(), f.team, sb.ID)),
		"resume": second(f.keep.Resume(t.Context(), f.team, sb.ID)),
	} {
		if !errdefs.Is(err, errdefs.Conflict) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// X39: an api that died between its node's answer and its row leaves a row that the
// next pass puts right, in either direction.
func TestX39_ARowFollowsItsNode(t *testing.T) {
	t.Parallel()
	f := run(t, time.Hour)
	sb := f.claimed(nil)
	f.node.Switch(string(sb.ID), "paused", 1)
	f.eventually(sb.ID, "the pause is recorded", is(sandbox.Paused, 1))
	f.node.Switch(string(sb.ID), "running", 2)
	f.eventually(sb.ID, "the resume is recorded", is(sandbox.Running, 2))
	if _, ok, err := f.store.SetPaused(t.Context(), f.team, sb.ID, sb.ClaimID, 1); ok || err != nil {
		t.Errorf("R2: word of an older instance is believed: %v, %v", ok, err)
	}
	f.node.Switch(string(sb.ID), "paused", 2)
	f.eventually(sb.ID, "the pause is recorded", is(sandbox.Paused, 2))
	if _, ok, err := f.store.BeginResume(t.Context(), f.team, sb.ID, uuid.New(), time.Hour); !ok || err != nil {
		t.Fatal(ok, err)
	}
	f.eventually(sb.ID, "a resume that nobody went on with is undone", is(sandbox.Paused, 2))
}

// X34: a sandbox that was resumed and has failed while nothing could be recorded has failed
// as what its node knows, not as what the row knew.
func TestX34_AFailureIsOfTheNodesGeneration(t *testing.T) {
	t.Parallel()
	f := run(t, time.Hour)
	for name, known := range map[string]string{"resumed": "paused", "resumed, paused and resumed": "running"} {
		sb := f.claimed(nil)
		f.node.Switch(string(sb.ID), known, 1)
		f.eventually(sb.ID, name+": what is known", is(sandbox.State(known), 1))
		f.node.Switch(string(sb.ID), "failed", 3)
		f.eventually(sb.ID, name+": the failure is recorded", is(sandbox.Failed, 3))
	}
}

// G02: a soft ttl pauses, once for all replicas, and a hard one deletes what is paused.
func TestG02_TTLs(t *testing.T) {
	t.Parallel()
	f := run(t, time.Hour)
	sb := f.claimed(func(n *store.NewSandbox) { n.TTLSeconds, n.HardTTLSeconds = 3600, 7200 })
	f.expire(sb.ID, "expires_at")
	f.eventually(sb.ID, "the ttl pauses it", is(sandbox.Paused, 1))
	if list, err := f.store.LeaseSoftExpired(t.Context(), time.Minute, 10); err != nil || len(list) != 0 {
		t.Errorf("what is paused expires again: %v, %v", list, err)
	}
	if _, err := f.keep.Resume(t.Context(), f.team, sb.ID); err != nil {
		t.Fatal(err)
	}
	f.expire(sb.ID, "expires_at")
	f.eventually(sb.ID, "the next ttl pauses it again", is(sandbox.Paused, 2))
	f.expire(sb.ID, "hard_expires_at")
	f.eventually(sb.ID, "the hard ttl ends what is paused", deleted)
}

// G02: of a reaper and a refresh at the same time one wins, by the database.
func TestG02_RefreshOrPause(t *testing.T) {
	t.Parallel()
	f := run(t, time.Hour)
	sb := f.claimed(func(n *store.NewSandbox) { n.TTLSeconds = 3600 })
	if _, err := f.store.RefreshSandbox(t.Context(), f.team, sb.ID, nil); err != nil {
		t.Fatal(err)
	}
	if list, err := f.store.LeaseSoftExpired(t.Context(), time.Minute, 10); err != nil || len(list) != 0 {
		t.Errorf("what was refreshed is leased: %v, %v", list, err)
	}
	if row := f.row(sb.ID); !is(sandbox.Running, 1)(row) {
		t.Errorf("%+v", row)
	}
}

// G02: who is told that a sandbox goes on while it is being paused has it running.
func TestG02_RefreshDuringThePause(t *testing.T) {
	t.Parallel()
	pausing, refreshed := make(chan struct{}), make(chan struct{})
	node := &fakenode.Node{AfterPause: func(string) {
		pausing <- struct{}{}
		<-refreshed
	}}
	f := runWith(t, node, lifecycle.Config{})
	sb := f.claimed(func(n *store.NewSandbox) { n.TTLSeconds = 3600 })
	f.expire(sb.ID, "expires_at")
	<-pausing
	if row, err := f.store.RefreshSandbox(t.Context(), f.team, sb.ID, nil); err != nil || row.Status != sandbox.Running {
		t.Errorf("%+v: %v", row, err)
	}
	close(refreshed)
	f.eventually(sb.ID, "it runs again", is(sandbox.Running, 2))
}

// asking tells when somebody has begun to wait.
type asking struct {
	context.Context
	waits func()
}

func (a asking) Done() <-chan struct{} {
	a.waits()
	return a.Context.Done()
}

// Who asks for a resume when a pause was answered is not refused by an attempt that began
// before it.
func TestAResumeIsOfWhatIsPausedByThen(t *testing.T) {
	t.Parallel()
	early, refuse := make(chan struct{}), make(chan struct{})
	var once sync.Once
	node := &fakenode.Node{OnResume: func(*nodeapi.ResumeRequest) (err error) {
		once.Do(func() {
			close(early)
			<-refuse
			err = connect.NewError(connect.CodeFailedPrecondition, errors.New("it is being paused"))
		})
		return err
	}}
	f := runWith(t, node, lifecycle.Config{})
	sb := f.claimed(nil)
	resume := func(ctx context.Context) <-chan error {
		ended := make(chan error, 1)
		go func() {
			_, err := f.keep.Resume(ctx, f.team, sb.ID)
			ended <- err
		}()
		return ended
	}
	first := resume(t.Context())
	<-early
	if _, err := f.keep.Pause(t.Context(), f.team, sb.ID); err != nil {
		t.Fatal(err)
	}
	joined := make(chan struct{})
	second := resume(asking{t.Context(), sync.OnceFunc(func() { close(joined) })})
	<-joined
	close(refuse)
	if err := errors.Join(<-first, <-second); err != nil {
		t.Error(err)
	}
	if row := f.row(sb.ID); !is(sandbox.Running, 2)(row) {
		t.Errorf("%+v", row)
	}
}

// X39: an api that died before it recorded a pause that another has ended by a resume
// leaves a row that knows an older instance; so does one that is slow.
func TestX39_ARowLearnsOfANewInstance(t *testing.T) {
	t.Parallel()
	f := run(t, time.Hour)
	sb := f.claimed(nil)
	f.node.Switch(string(sb.ID), "running", 2)
	f.eventually(sb.ID, "the generation is recorded", is(sandbox.Running, 2))
	if _, ok, err := f.store.SetPaused(t.Context(), f.team, sb.ID, sb.ClaimID, 1); ok || err != nil {
		t.Errorf("R2: the pause of an older instance is recorded: %v, %v", ok, err)
	}
}

// R6: what was read of a node before a pause, and is heeded after it, does not have the
// sandbox run. Nor does it hide from the quota the instance that does.
func TestR6_OldNewsIsNoResume(t *testing.T) {
	t.Parallel()
	f := run(t, time.Hour)
	sb := f.claimed(nil)
	paused, err := f.keep.Pause(t.Context(), f.team, sb.ID)
	if err != nil {
		t.Fatal(err)
	}
	if row, ok, err := f.store.SetResumed(t.Context(), f.team, sb.ID, sb.ClaimID, paused.Generation); ok || err != nil {
		t.Errorf("it runs as it did before: %+v, %v", row, err)
	}
}

// A15: a sandbox whose resume nobody has recorded does not run beyond its team's quota.
func TestA15_AResumeThatTheQuotaRefusesIsUndone(t *testing.T) {
	t.Parallel()
	f := run(t, time.Hour)
	sb := f.claimed(nil)
	if _, err := f.keep.Pause(t.Context(), f.team, sb.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := f.conn.Exec(t.Context(), `WITH u AS (INSERT INTO users (email, name, password_hash) VALUES ('a@b.c', 'a', '') RETURNING id)
		INSERT INTO teams (id, name, slug, owner_id, home_region_id) SELECT $1, 'a', 'a', id, '' FROM u`, f.team); err != nil {
		t.Fatal(err)
	}
	if err := f.store.SetQuota(t.Context(), f.team, store.Quota{Dimension: store.QuotaSandboxes, Limit: new(int64(0))}); err != nil {
		t.Fatal(err)
	}
	f.node.Switch(string(sb.ID), "running", 2)
	f.eventually(sb.ID, "it is paused again", is(sandbox.Paused, 2))
	if got, _, _ := f.table.Lookup(sb.ID); got.State != sandbox.Paused {
		t.Errorf("on its node it is %s", got.State)
	}
}

// R6: a paused sandbox that its node has lost is not shown as one that can be resumed.
func TestX46_APausedSandboxThatItsNodeLost(t *testing.T) {
	t.Parallel()
	f := run(t, time.Hour)
	sb := f.claimed(nil)
	if _, err := f.keep.Pause(t.Context(), f.team, sb.ID); err != nil {
		t.Fatal(err)
	}
	f.node.Stop()
	f.node.Forget(string(sb.ID)) // with its disk
	f.node.Listen(t)
	f.eventually(sb.ID, "the loss is recorded", failed("its node has no record of it"))
}

func (f *fixture) expire(id sandbox.ID, column string) {
	f.t.Helper()
	if _, err := f.conn.Exec(f.t.Context(), "UPDATE sandboxes SET "+column+" = now() WHERE id = $1", id); err != nil {
		f.t.Fatal(err)
	}
}
