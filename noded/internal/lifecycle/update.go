package lifecycle

import (
	"context"
	"errors"
	"maps"
	"net/http"

	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/channel"
	"s0.run/noded/internal/journal"
)

// UpdateRequest changes a claimed sandbox; zero fields stay as they are.
type UpdateRequest struct {
	ID          sandbox.ID
	Generation  sandbox.Generation // 0: any
	ReplaceEnv  bool
	Env         map[string]string // the claim's own, if ReplaceEnv
	MemoryBytes int64
	CPUMillis   int64
	Network     *journal.Network // without a policy: newer credentials alone
}

// Update changes a running sandbox's environment and limits. It answers when the
// change is durable and in force. If it fails in between, what is durable comes
// into force with the same update again, or with the node's next start.
func (m *Manager) Update(ctx context.Context, req UpdateRequest) (Sandbox, error) {
	if err := validateLimits(req.MemoryBytes, req.CPUMillis); err != nil {
		return Sandbox{}, err
	}
	if err := validateEnv(req.Env); err != nil {
		return Sandbox{}, err
	}
	if err := validateNetworkChange(req.Network); err != nil {
		return Sandbox{}, err
	}
	inst := m.find(req.ID)
	if inst == nil {
		return Sandbox{}, notFound(req.ID)
	}
	if err := inst.takeTurn(ctx); err != nil {
		return Sandbox{}, errdefs.New(errdefs.Unavailable, "sandbox %s is busy", req.ID).WithCause(err)
	}
	defer inst.endTurn()
	old := m.record(inst)
	paused := old.State == journal.Paused
	if err := usable(old); err != nil && !paused {
		return Sandbox{}, err
	}
	if err := checkGeneration(old, req.Generation); err != nil {
		return Sandbox{}, err
	}
	if err := checkMachine(old.Spec, req.MemoryBytes); err != nil {
		return Sandbox{}, err
	}
	rec := req.apply(old)
	if paused { // comes into force when it is resumed
		rec.Stored = 0 // what is in the object store knows nothing of it
		if err := m.commit(ctx, inst, rec); err != nil {
			return Sandbox{}, err
		}
		return m.Get(req.ID)
	}
	if err := m.checkEgress(req.Network); err != nil {
		return Sandbox{}, err
	}
	if err := m.checkShrink(old, rec); err != nil {
		return Sandbox{}, err
	}
	if err := m.commitUpdate(ctx, old, rec); err != nil {
		return Sandbox{}, err
	}
	m.change(inst, func() { inst.rec = rec })
	if err := m.enforceUpdate(ctx, inst, rec, req); err != nil {
		return Sandbox{}, errdefs.New(errdefs.Unavailable, "sandbox %s could not be changed", rec.ID).WithCause(err)
	}
	return m.Get(req.ID)
}

// enforceUpdate brings what changed into force, the policy first: a sandbox whose
// procd does not answer can put off its environment, and never a policy that is
// tightened or a credential that is taken away.
func (m *Manager) enforceUpdate(ctx context.Context, inst *instance, rec journal.Record, req UpdateRequest) error {
	if req.Network == nil {
		return m.enforce(ctx, inst, rec, false)
	}
	err := m.setPolicy(ctx, rec)
	// Another policy may have other processes to come told whom to believe.
	if req.ReplaceEnv || req.MemoryBytes != 0 || req.CPUMillis != 0 || !maps.Equal(inst.told, environment(rec)) {
		err = errors.Join(err, m.enforce(ctx, inst, rec, false))
	}
	return err
}

// commitUpdate makes the update durable. The kernel may refuse less memory than is
// in use, so it is asked first: nothing may become durable that can't be in force.
func (m *Manager) commitUpdate(ctx context.Context, old, rec journal.Record) error {
	before, after := limits(old.Spec, old.Claim, false), limits(rec.Spec, rec.Claim, false)
	shrinks := after.MemoryBytes < before.MemoryBytes
	if shrinks {
		if err := m.cfg.Groups.Set(rec.ID, before, after); err != nil {
			return errdefs.New(errdefs.Conflict, "sandbox %s can't do with %d bytes of memory now", rec.ID, after.MemoryBytes).WithCause(err)
		}
	}
	err := m.cfg.Journal.Put(ctx, rec)
	if err != nil && shrinks {
		err = errors.Join(err, m.cfg.Groups.Set(rec.ID, after, before))
	}
	return err
}

// enforce brings limits, environment and the keeping of events in line with the
// record.
func (m *Manager) enforce(ctx context.Context, inst *instance, rec journal.Record, restartWarm bool) error {
	if err := m.cfg.Groups.Create(rec.ID, limits(rec.Spec, rec.Claim, rec.State == journal.Slot)); err != nil {
		return err
	}
	if err := m.setEnv(ctx, inst, changes(rec, restartWarm)); err != nil {
		return err
	}
	return m.keepEvents(ctx, inst, rec)
}

func (req UpdateRequest) apply(rec journal.Record) journal.Record {
	claim, before := *rec.Claim, environment(rec)
	if req.ReplaceEnv {
		claim.Env = req.Env
	}
	if req.MemoryBytes != 0 {
		claim.MemoryBytes = req.MemoryBytes
	}
	if req.CPUMillis != 0 {
		claim.CPUMillis = req.CPUMillis
	}
	if req.Network != nil {
		claim.Network = withNetwork(claim.Network, *req.Network)
	}
	rec.Claim = &claim
	claim.EnvReplaced = claim.EnvReplaced || !maps.Equal(before, environment(rec))
	return rec
}

// checkShrink refuses a memory limit below what is in use: on v2 the kernel
// would kill for it.
func (m *Manager) checkShrink(old, rec journal.Record) error {
	if rec.Claim.MemoryBytes >= old.Claim.MemoryBytes {
		return nil
	}
	usage, err := m.cfg.Groups.Stats(rec.ID)
	if err != nil {
		return err
	}
	if usage.MemoryBytes > rec.Claim.MemoryBytes {
		return errdefs.New(errdefs.Conflict, "sandbox %s uses %d bytes of memory, more than %d", rec.ID, usage.MemoryBytes, rec.Claim.MemoryBytes)
	}
	return nil
}

// Proc gives the way to a claimed sandbox's procd, for a caller that knows its
// generation (0: any).
func (m *Manager) Proc(id sandbox.ID, gen sandbox.Generation) (http.RoundTripper, error) {
	inst := m.find(id)
	if inst == nil {
		return nil, notFound(id)
	}
	rec := m.record(inst)
	if err := usable(rec); err != nil {
		return nil, err
	}
	if err := checkGeneration(rec, gen); err != nil {
		return nil, err
	}
	m.mu.Lock()
	back := inst.back
	m.mu.Unlock()
	if back != nil {
		return returning{m, inst, back}, nil
	}
	return m.channelOf(inst)
}

// usable says why a sandbox can't be used, if it can't.
func usable(rec journal.Record) error {
	switch rec.State {
	case journal.Claimed:
		return nil
	case journal.Paused:
		return errdefs.WithCode(errdefs.Conflict, CodePaused, "sandbox %s is paused", rec.ID)
	case journal.Pausing, journal.Resuming:
		return errdefs.WithCode(errdefs.Conflict, CodePaused, "sandbox %s is being paused or resumed", rec.ID)
	case journal.Failed:
		return errdefs.New(errdefs.Conflict, "sandbox %s has failed: %s", rec.ID, rec.Reason)
	case journal.Terminating:
		if rec.Claim != nil {
			return errdefs.New(errdefs.Gone, "sandbox %s has ended", rec.ID)
		}
	case journal.Slot: // nobody's: nobody may know of it
	}
	return notFound(rec.ID)
}

func (m *Manager) channelOf(inst *instance) (*channel.Channel, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if inst.channel == nil {
		return nil, channel.ErrDisconnected
	}
	return inst.channel, nil
}
