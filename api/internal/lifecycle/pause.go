package lifecycle

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"s0.run/api/internal/nodes"
	"s0.run/api/internal/store"
	"s0.run/api/internal/volumes"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
)

const (
	// pauseTimeout and resumeTimeout are for sandboxes with all the memory that one
	// may have.
	pauseTimeout  = 10 * time.Minute
	resumeTimeout = 5 * time.Minute
	// pauseLease is when a pause by ttl that did not happen is tried again. An attempt
	// ends before that: what the row says of its ttl then is not another attempt's.
	pauseLease, expiredTimeout = time.Minute, 55 * time.Second
	// renewals of a resume's lease fit into it: one that the database missed is no end.
	renewals = 6
)

// Pause saves a sandbox of a team and answers when its state is durable on its node.
// One that is paused stays so. A client that leaves does not stop it.
func (k *Keeper) Pause(ctx context.Context, team uuid.UUID, id sandbox.ID) (store.Sandbox, error) {
	return k.pauseNow(ctx, team, id, false)
}

// PauseFiles is Pause without the sandbox's processes and memory.
func (k *Keeper) PauseFiles(ctx context.Context, team uuid.UUID, id sandbox.ID) (store.Sandbox, error) {
	return k.pauseNow(ctx, team, id, true)
}

func (k *Keeper) pauseNow(ctx context.Context, team uuid.UUID, id sandbox.ID, filesOnly bool) (store.Sandbox, error) {
	row, err := k.cfg.Store.Sandbox(ctx, team, id)
	if err != nil || row.Status == sandbox.Paused {
		return row, err
	}
	if row.Status != sandbox.Running {
		return store.Sandbox{}, errdefs.New(errdefs.Conflict, "the sandbox is %s", row.Status)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pauseTimeout)
	defer cancel()
	return k.pause(ctx, row, filesOnly)
}

func (k *Keeper) pause(ctx context.Context, row store.Sandbox, filesOnly bool) (store.Sandbox, error) {
	gen, err := k.pauseAtNode(ctx, row, filesOnly)
	if err != nil {
		return store.Sandbox{}, err
	}
	paused, changed, err := k.cfg.Store.SetPaused(ctx, row.TeamID, row.ID, row.ClaimID, gen)
	if err != nil {
		return store.Sandbox{}, err // the next pass finds it paused
	}
	if !changed {
		return k.cfg.Store.Sandbox(ctx, row.TeamID, row.ID)
	}
	k.logPause(paused)
	return paused, nil
}

func (k *Keeper) pauseAtNode(ctx context.Context, row store.Sandbox, filesOnly bool) (sandbox.Generation, error) {
	rpc, err := k.cfg.Nodes.RPC(row.Node)
	if err != nil {
		return 0, err
	}
	sb, err := rpc.Pause(ctx, &nodeapi.PauseRequest{Id: string(row.ID), Generation: uint64(row.Generation), FilesOnly: filesOnly})
	if err != nil {
		k.catchUp(ctx, row, err)
		return 0, switchError(err, "the sandbox can't be paused in its present state", "the sandbox could not be paused")
	}
	return sandbox.Generation(sb.GetGeneration()), nil
}

func (k *Keeper) logPause(row store.Sandbox) {
	k.cfg.Log.Info("paused a sandbox", "sandbox", row.ID, "gen", row.Generation, "team", row.TeamID, "node", row.Node)
}

// Resume lets a paused sandbox of a team run again, as its next generation, and
// answers when it serves. One that runs stays as it is. All who ask at a time share
// one attempt, which goes on when they leave. An attempt that was refused may have begun
// before the pause that its latest callers have seen the end of: it is made once more.
func (k *Keeper) Resume(ctx context.Context, team uuid.UUID, id sandbox.ID) (store.Sandbox, error) {
	row, shared, err := k.shareResume(ctx, team, id)
	if shared && errdefs.Is(err, errdefs.Conflict) {
		row, _, err = k.shareResume(ctx, team, id)
	}
	return row, err
}

func (k *Keeper) shareResume(ctx context.Context, team uuid.UUID, id sandbox.ID) (row store.Sandbox, shared bool, err error) {
	flight := k.resumes.DoChan(team.String()+"/"+string(id), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resumeTimeout)
		defer cancel()
		return k.resume(ctx, team, id)
	})
	select {
	case r := <-flight:
		row, _ = r.Val.(store.Sandbox)
		return row, r.Shared, r.Err
	case <-ctx.Done():
		return store.Sandbox{}, false, ctx.Err()
	}
}

func (k *Keeper) resume(ctx context.Context, team uuid.UUID, id sandbox.ID) (store.Sandbox, error) {
	by, begin := uuid.New(), time.Now()
	row, begun, err := k.cfg.Store.BeginResume(ctx, team, id, by, k.cfg.Lease)
	if err == nil && !begun {
		row, err = k.cfg.Store.Sandbox(ctx, team, id)
	}
	if err != nil {
		return store.Sandbox{}, err
	}
	if row.Status != sandbox.Starting && row.Status != sandbox.Running {
		return store.Sandbox{}, errdefs.New(errdefs.Conflict, "the sandbox is %s", row.Status)
	}
	if row.Status == sandbox.Starting && row.Stored != nil && !begun {
		return store.Sandbox{}, errBeingResumed // maybe at another node
	}
	if begun && row.Stored != nil {
		leased, stop := k.renewResume(ctx, id, by, begin.Add(k.cfg.Lease))
		defer stop()
		ctx = leased
	}
	if begun && k.isAhead(row) {
		k.cfg.Log.Error("a sandbox is later at another node than in the database", "sandbox", id, "gen", row.Generation, "team", team, "node", row.Node)
		k.stayPaused(ctx, row, by)
		return store.Sandbox{}, errAhead
	}
	sb, err := k.resumeAt(ctx, row, begun)
	if err != nil && begun {
		row, sb, err = k.resumeElsewhere(ctx, row, by, err)
	}
	if err != nil {
		if begun {
			k.stayPaused(ctx, row, by)
		}
		return store.Sandbox{}, switchError(err, "the sandbox can't be resumed in its present state", "the sandbox could not be resumed")
	}
	resumed, changed, err := k.cfg.Store.SetResumed(ctx, team, id, row.ClaimID, sandbox.Generation(sb.GetGeneration()))
	if err != nil {
		return store.Sandbox{}, err // the next pass finds it running
	}
	if !changed {
		return k.cfg.Store.Sandbox(ctx, team, id)
	}
	k.cfg.Log.Info("resumed a sandbox", "sandbox", id, "gen", resumed.Generation, "team", team, "node", row.Node)
	return resumed, nil
}

// renewResume says that a resume is under way, until it is stopped. until is when the lease
// is over that it has: counted from before the database was asked, so never later than
// there. A server that can't say so in time stops what it does before then, also while the
// database says nothing at all: afterwards the sandbox is another's.
func (k *Keeper) renewResume(ctx context.Context, id sandbox.ID, by uuid.UUID, until time.Time) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ours := true; ours; {
			until, ours = k.renewOnce(ctx, id, by, until)
		}
		cancel(errBeingResumed)
	}()
	return ctx, func() {
		cancel(nil)
		<-done
	}
}

// renewOnce waits for a moment, as long as the lease allows, and renews it. It reports false
// when nobody may go on with the resume: the lease is over or lost, or it is stopped.
func (k *Keeper) renewOnce(ctx context.Context, id sandbox.ID, by uuid.UUID, until time.Time) (time.Time, bool) {
	pause := k.cfg.Lease / renewals
	ctx, cancel := context.WithDeadline(ctx, until.Add(-pause)) // there is a moment to stop in
	defer cancel()
	select {
	case <-time.After(pause):
	case <-ctx.Done():
		return until, false
	}
	begin := time.Now()
	ours, err := k.cfg.Store.RenewResume(ctx, id, by, k.cfg.Lease)
	if err != nil {
		k.logFailure(ctx, "could not renew a resume's lease", err)
		return until, true
	}
	return begin.Add(k.cfg.Lease), ours
}

// stayPaused undoes an attempt's decision that a sandbox shall run. If the database
// does not take it, a pass finds what its node says.
func (k *Keeper) stayPaused(ctx context.Context, row store.Sandbox, by uuid.UUID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	if err := k.cfg.Store.EndResume(ctx, row, by); err != nil {
		k.logFailure(ctx, "could not undo a resume", err)
	}
}

// switchError says what a tenant may know of a node's refusal.
func switchError(err error, state, failed string) error {
	if e := differs(err); e != nil {
		return e
	}
	if stale(err) {
		return errdefs.New(errdefs.Unavailable, "the sandbox is being paused, resumed or restored").WithRetryAfter(time.Second).WithCause(err)
	}
	if e := volumes.Refused(err); e != nil {
		return e
	}
	if errors.Is(err, errDrained) {
		return errdefs.New(errdefs.Unavailable, "the sandbox's node gets nothing new at the moment, and no other one has the sandbox").WithRetryAfter(time.Second)
	}
	if ours, ok := errors.AsType[*errdefs.Error](err); ok {
		return ours
	}
	switch connect.CodeOf(err) {
	case connect.CodeFailedPrecondition, connect.CodeNotFound:
		return errdefs.New(errdefs.Conflict, "%s", state).WithCause(err)
	case connect.CodeResourceExhausted:
		return errdefs.New(errdefs.Exhausted, "too many sandboxes are starting or running on its node").WithRetryAfter(time.Second).WithCause(err)
	case connect.CodeDeadlineExceeded:
		return errdefs.New(errdefs.GatewayTimeout, "%s in time", failed).WithCause(err)
	case connect.CodeUnavailable, connect.CodeInternal:
		return errdefs.New(errdefs.Unavailable, "%s", failed).WithRetryAfter(time.Second).WithCause(err)
	}
	return nodes.ErrUnreachable.WithCause(err)
}

// stale reports whether a node refused because it knows another generation.
func stale(err error) bool {
	refused, ok := errors.AsType[*connect.Error](err)
	return ok && refused.Meta().Get(nodeapi.CodeHeader) == nodeapi.CodeStaleGeneration
}

// catchUp brings a row in line at once with a node that knows a later generation: whoever
// made it died, or is about to record it. The next attempt then means the right one.
func (k *Keeper) catchUp(ctx context.Context, row store.Sandbox, refused error) {
	rpc, err := k.cfg.Nodes.RPC(row.Node)
	if err != nil || !stale(refused) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	sb, err := rpc.Get(ctx, &nodeapi.GetRequest{Id: string(row.ID)})
	if err != nil || sb.GetClaimId() != row.ClaimID.String() {
		return
	}
	k.settleState(ctx, row, sandbox.State(sb.GetState()), sandbox.Generation(sb.GetGeneration()))
}

// pauseExpired pauses the sandboxes whose soft ttl is over, so many at a time.
func (k *Keeper) pauseExpired(ctx context.Context) {
	list, err := k.cfg.Store.LeaseSoftExpired(ctx, pauseLease, atOnce)
	if err != nil {
		k.logFailure(ctx, "could not look for sandboxes whose ttl is over", err)
		return
	}
	var g errgroup.Group
	for _, row := range list {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, expiredTimeout)
			defer cancel()
			if err := k.pauseLeased(ctx, row); err != nil {
				k.cfg.Log.Warn("could not pause a sandbox whose ttl is over", "sandbox", row.ID, "gen", row.Generation, "team", row.TeamID, "node", row.Node, "err", err)
			}
			return nil
		})
	}
	g.Wait()
}

// pauseLeased pauses a sandbox whose ttl is over. Whoever refreshed it before that was
// recorded has been told that it goes on: so it does.
func (k *Keeper) pauseLeased(ctx context.Context, leased store.Sandbox) error {
	gen, err := k.pauseAtNode(ctx, leased, false)
	if err != nil {
		return err
	}
	paused, changed, err := k.cfg.Store.SetExpired(ctx, leased, gen)
	if changed {
		k.logPause(paused)
	}
	if changed || err != nil {
		return err
	}
	row, err := k.cfg.Store.Sandbox(ctx, leased.TeamID, leased.ID)
	if err != nil || row.Status != sandbox.Running || row.Generation != gen {
		return err
	}
	_, err = k.Resume(ctx, row.TeamID, row.ID)
	return err
}

// sleepAgain has a sandbox paused whose resume can't be recorded: what is in no quota
// does not run.
func (k *Keeper) sleepAgain(ctx context.Context, row store.Sandbox, gen sandbox.Generation) error {
	ctx, cancel := context.WithTimeout(ctx, expiredTimeout)
	defer cancel()
	row.Generation = gen
	_, err := k.pauseAtNode(ctx, row, false)
	return err
}

// settleState brings a row in line with what its node says of pauses and resumes that
// nobody recorded, both of them included. A state of an older generation than the row's
// is old news.
func (k *Keeper) settleState(ctx context.Context, row store.Sandbox, state sandbox.State, gen sandbox.Generation) {
	var changed bool
	var err error
	switch {
	case state == sandbox.Paused && row.Status == sandbox.Starting && k.rests(ctx, row):
	case state == sandbox.Paused && (row.Status != sandbox.Paused || gen > row.Generation):
		_, changed, err = k.cfg.Store.SetPaused(ctx, row.TeamID, row.ID, row.ClaimID, gen)
	case state == sandbox.Running && gen > row.Generation:
		_, changed, err = k.cfg.Store.SetResumed(ctx, row.TeamID, row.ID, row.ClaimID, gen)
	}
	if errdefs.Is(err, errdefs.Exhausted) { // nobody was told that it runs, and its team has no room for it
		err = k.sleepAgain(ctx, row, gen)
	}
	if err != nil {
		k.logFailure(ctx, "could not settle a sandbox's state", err)
	}
	if changed {
		k.cfg.Log.Info("settled a sandbox's state", "sandbox", row.ID, "gen", gen, "team", row.TeamID, "node", row.Node, "state", state)
	}
}
