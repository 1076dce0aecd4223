// Package volumesync keeps volumes and directories on people's machines, their replicas,
// alike: it keeps a journal of what happens to a volume's files, takes replicas' changes
// into it, and refuses those that another change was there before.
//
// The files of the volume are the truth. A change of a replica is made first and is an
// entry then; what sandboxes and file calls did becomes entries when a look finds that the
// tree is not what the journal says (see session.look). A change that was made and not
// stored, by a process that died in between, is found by the next look, and the replica
// that sends it again finds it done. So nothing that was answered is lost, and two writers
// of one path never overwrite each other unseen: who comes second has a conflict, and what
// he wrote is kept beside (see push.refuse).
//
// Only who has a volume's lock, which ends by itself, looks or changes: see enter. The
// package owns no state but counts of what runs; the journal is package store's, the files
// are reached through package dataplane.
package volumesync

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/audit"
	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/inflight"
	"s0.run/api/internal/store"
	"s0.run/api/internal/volumes"
	"s0.run/internal/errdefs"
)

const (
	// replicaLease is how long a replica may change the volume after it was heard of.
	replicaLease = 5 * time.Minute
	// workTime bounds what is done under a volume's lock, and lockLease outlives it: who
	// has lost the lock does nothing any more.
	workTime, lockLease = 90 * time.Second, 2 * time.Minute
	// lockWait is how long a change waits for the lock, with a try every lockEvery, and
	// seatWait how long who has it waits for a seat: with workTime it is within lockLease.
	lockWait, lockEvery = 20 * time.Second, 50 * time.Millisecond
	seatWait            = 15 * time.Second
	// giveBack bounds what is undone, and saveTime what is stored behind an error: both
	// end before the lock does.
	giveBack, saveTime = 5 * time.Second, 10 * time.Second
	// bootstrapLife is how long what a replica begins with is kept: it is read at once.
	bootstrapLife = 24 * time.Hour

	// kept entries are a journal. A push that has made maxPushed of them begins no other
	// change: they are in memory until its end.
	kept, maxPushed = 100_000, kept / 2

	// partBytes of files are read by a call, and then stored.
	partBytes = 128 << 20

	// Who works on trees holds them in memory.
	sessions, sessionsOfTeam = 8, 4
)

// Bounds of a request.
const (
	MaxChanges      = 500
	MaxContent      = 32 << 20 // bytes of all changes' content together
	MaxMetadata     = 4 << 10  // bytes of JSON of one change
	DefaultLimit    = 256
	MaxLimit        = 2048
	maxIssues       = 100
	maxArtifactName = 200
)

// Why a request is refused, in its error's details.
const (
	reasonReseed       = "reseed_required"
	reasonNamespace    = "namespace_incompatible"
	reasonLease        = "lease_expired"
	reasonAhead        = "base_seq_ahead"
	reasonBehindCursor = "base_seq_behind_cursor"
)

// Config names what a Keeper works with.
type Config struct {
	Store   *store.Store
	Plane   *dataplane.Plane
	Volumes *volumes.Keeper
	Log     *slog.Logger
}

// Keeper is safe for concurrent use.
type Keeper struct {
	cfg   Config
	seats chan struct{}
	teams *inflight.Counter[uuid.UUID]
}

// New makes a Keeper.
func New(cfg Config) *Keeper {
	return &Keeper{cfg: cfg, seats: make(chan struct{}, sessions), teams: inflight.New[uuid.UUID](sessionsOfTeam)}
}

// Of names a volume of a team.
type Of struct{ Team, Volume uuid.UUID }

var (
	errBusy  = errdefs.New(errdefs.Unavailable, "the volume is being looked at or changed").WithRetryAfter(time.Second)
	errTeams = errdefs.New(errdefs.Exhausted, "the team's volumes are being looked at by %d calls, the most at a time", sessionsOfTeam).WithRetryAfter(time.Second)
)

// session is the work of who has a volume's lock.
type session struct {
	k     *Keeper
	of    Of
	token uuid.UUID
	sync  store.Sync
	tree  tree
	rows  map[string]*store.SyncPath // what the journal says, what is gone too; nil: not read
	found *found                     // by the latest look
	next  pending
}

// enter takes a volume's lock; leave gives it back. Without wait it fails with
// store.ErrSyncLocked where somebody else has it.
func (k *Keeper) enter(ctx context.Context, of Of, wait bool) (s *session, leave func(), err error) {
	free, ok := k.teams.Enter(of.Team)
	if !ok {
		return nil, nil, errTeams
	}
	defer func() {
		if err != nil {
			free()
		}
	}()
	s = &session{k: k, of: of, token: uuid.New(), tree: k.treeOf(of)}
	if s.sync, err = k.lock(ctx, of, s.token, wait); err != nil {
		return nil, nil, err
	}
	if err = k.sit(ctx); err != nil { // only who can work does
		k.unlock(ctx, of, s.token)
		return nil, nil, err
	}
	return s, func() {
		k.unlock(ctx, of, s.token)
		<-k.seats
		free()
	}, nil
}

// sit takes a seat, which is given back by receiving of seats.
func (k *Keeper) sit(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, seatWait)
	defer cancel()
	select {
	case k.seats <- struct{}{}:
		return nil
	case <-ctx.Done():
		return errBusy.WithCause(ctx.Err())
	}
}

func (k *Keeper) treeOf(of Of) tree {
	return tree{k.cfg.Plane, dataplane.Target{Team: of.Team, Volume: of.Volume}}
}

func (k *Keeper) lock(ctx context.Context, of Of, token uuid.UUID, wait bool) (store.Sync, error) {
	ctx, cancel := context.WithTimeout(audit.Without(ctx), lockWait)
	defer cancel()
	tick := time.NewTicker(lockEvery)
	defer tick.Stop()
	for {
		locked, err := k.tryLock(ctx, of, token)
		if !wait || !errors.Is(err, store.ErrSyncLocked) {
			return locked, err
		}
		if _, err := k.cfg.Store.Sync(ctx, of.Team, of.Volume); errdefs.Is(err, errdefs.NotFound) {
			return locked, err // it was deleted
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return locked, errBusy.WithCause(ctx.Err())
		}
	}
}

// tryLock tries once. Its client's leaving does not end it, for what the database does then
// would have to be guessed.
func (k *Keeper) tryLock(ctx context.Context, of Of, token uuid.UUID) (store.Sync, error) {
	once, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveBack)
	defer cancel()
	locked, err := k.cfg.Store.LockSync(once, of.Team, of.Volume, token, lockLease)
	if err != nil && !errors.Is(err, store.ErrSyncLocked) { // it may have been taken
		k.unlock(ctx, of, token)
	}
	return locked, err
}

func (k *Keeper) unlock(ctx context.Context, of Of, token uuid.UUID) {
	ctx, cancel := context.WithTimeout(audit.Without(context.WithoutCancel(ctx)), giveBack)
	defer cancel()
	if err := k.cfg.Store.UnlockSync(ctx, of.Volume, token); err != nil {
		k.cfg.Log.Warn("a volume's journal stays locked until its lease is over", "volume", of.Volume, "team", of.Team, "err", err)
	}
}

// within runs work under a volume's lock. What has begun goes on when its client leaves.
func (k *Keeper) within(ctx context.Context, of Of, work func(context.Context, *session) error) error {
	s, leave, err := k.enter(ctx, of, true)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), workTime)
	defer cancel()
	defer leave()
	return work(ctx, s)
}

// begin gives a volume its journal, which a volume in a bucket can't have.
func (k *Keeper) begin(ctx context.Context, of Of) error {
	v, err := k.cfg.Store.Volume(ctx, of.Team, of.Volume)
	if err == nil {
		err = volumes.Copyable(v)
	}
	if err == nil {
		err = k.cfg.Store.BeginSync(ctx, of.Team, of.Volume)
	}
	return err
}

// reseed tells a replica to begin anew: what it knows is older than the journal.
func reseed(s store.Sync) error {
	return errdefs.New(errdefs.Conflict, "the journal does not go back that far: begin anew").
		WithDetails(map[string]any{"reason": reasonReseed, "retained_after_seq": s.Floor, "head_seq": s.Head})
}
