package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/failpoint"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/channel"
	"s0.run/noded/internal/journal"
)

// ClaimRequest asks for a sandbox: the free slot that it names, or a cold start
// of its spec when it names none.
type ClaimRequest struct {
	ClaimID     string // the same id always answers the same sandbox
	Slot        sandbox.ID
	PoolKey     string
	Spec        sandbox.Spec // of a cold start
	Snapshot    string       // whose files a cold start begins with; empty: the image's alone
	Team, User  string
	Env         map[string]string
	MemoryBytes int64 // 0: the spec's
	CPUMillis   int64 // 0: the spec's
	Events      *journal.Events
	Network     *journal.Network // nil: the default policy
	Mounts      []journal.Mount
}

const maxNameBytes = 256 // of ids that others chose

func (r ClaimRequest) validate() error {
	for name, v := range map[string]string{"claim_id": r.ClaimID, "team": r.Team} {
		if v == "" {
			return errdefs.New(errdefs.InvalidArgument, "claim: %s is required", name)
		}
	}
	for name, v := range map[string]string{"claim_id": r.ClaimID, "team": r.Team, "user": r.User, "pool_key": r.PoolKey} {
		if len(v) > maxNameBytes {
			return errdefs.New(errdefs.InvalidArgument, "claim: %s of more than %d bytes", name, maxNameBytes)
		}
	}
	if r.Snapshot != "" && (r.Slot != "" || r.Spec.RuntimeClass != sandbox.GVisor) {
		return errdefs.New(errdefs.InvalidArgument, "claim: a snapshot is for a cold start of runtime class %q", sandbox.GVisor)
	}
	if r.Slot == "" {
		if err := r.Spec.Validate(); err != nil {
			return errdefs.New(errdefs.InvalidArgument, "claim: %v", err)
		}
		if err := checkMachine(r.Spec, r.MemoryBytes); err != nil {
			return err
		}
	}
	if err := validateLimits(r.MemoryBytes, r.CPUMillis); err != nil {
		return err
	}
	if err := validateEvents(r.Events); err != nil {
		return err
	}
	if err := validateNetwork(r.Network); err != nil {
		return err
	}
	if err := validateMounts(r.Mounts); err != nil {
		return err
	}
	return validateEnv(r.Env)
}

func validateLimits(memory, cpu int64) error {
	if memory != 0 && (memory < sandbox.MinMemoryBytes || memory > sandbox.MaxMemoryBytes) {
		return errdefs.New(errdefs.InvalidArgument, "memory of %d bytes: want %d to %d", memory, sandbox.MinMemoryBytes, sandbox.MaxMemoryBytes)
	}
	if cpu < 0 {
		return errdefs.New(errdefs.InvalidArgument, "cpu of %d millicores: want more than 0", cpu)
	}
	return nil
}

func validateEnv(env map[string]string) error {
	size := 0
	for k, v := range env {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(v, "\x00") {
			return errdefs.New(errdefs.InvalidArgument, "environment variable %.64q: want a name without '=' and no NUL", k)
		}
		size += len(k) + len(v) + 2
	}
	if size > procapi.MaxArgBytes {
		return errdefs.New(errdefs.InvalidArgument, "environment of %d bytes: want at most %d", size, procapi.MaxArgBytes)
	}
	return nil
}

// claimed is a claim by its id: under way until done is closed, then for good.
type claimed struct {
	done chan struct{}
	id   sandbox.ID
	err  error
}

// Claim makes a sandbox a tenant's. When it has answered, the claim is durable
// and procd has the tenant's environment; when it has failed, the slot is gone
// for good unless it never was this claim's. cold reports whether a start was
// needed.
func (m *Manager) Claim(ctx context.Context, req ClaimRequest) (sb Sandbox, cold bool, err error) {
	if err := req.validate(); err != nil {
		return Sandbox{}, false, err
	}
	if err := errors.Join(m.checkEgress(req.Network), m.checkVolumes(req.Mounts)); err != nil {
		return Sandbox{}, false, err
	}
	begin := time.Now()
	c, first := m.enter(req.ClaimID)
	if !first {
		sb, err = m.repeated(ctx, c)
		return sb, false, err
	}
	defer func() {
		m.leave(req.ClaimID, c, sb.ID, err)
		m.cfg.Metrics.claim(cold, time.Since(begin), err)
	}()
	if req.Slot == "" {
		sb, err = m.claimCold(ctx, req)
		return sb, true, err
	}
	sb, err = m.claimSlot(ctx, req)
	return sb, false, err
}

// enter registers a claim id; first is false when it is known already.
func (m *Manager) enter(claimID string) (c *claimed, first bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.claims[claimID]; c != nil {
		return c, false
	}
	c = &claimed{done: make(chan struct{})}
	m.claims[claimID] = c
	return c, true
}

// leave settles a claim id. One that failed may be tried again.
func (m *Manager) leave(claimID string, c *claimed, id sandbox.ID, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c.id, c.err = id, err
	if err != nil || m.instances[id] == nil { // the latter ended in the meantime
		delete(m.claims, claimID)
	}
	close(c.done)
}

func (m *Manager) repeated(ctx context.Context, c *claimed) (Sandbox, error) {
	select {
	case <-c.done:
	case <-ctx.Done():
		return Sandbox{}, ctx.Err()
	}
	if c.err != nil {
		return Sandbox{}, c.err
	}
	return m.Get(c.id)
}

func (m *Manager) claimSlot(ctx context.Context, req ClaimRequest) (Sandbox, error) {
	inst := m.find(req.Slot)
	if inst == nil || !inst.tryTurn() {
		return Sandbox{}, errTaken(req.Slot)
	}
	defer inst.endTurn()
	if err := checkMachine(m.record(inst).Spec, req.MemoryBytes); err != nil {
		return Sandbox{}, err
	}
	if !m.takeSlot(inst, req.PoolKey) {
		return Sandbox{}, errTaken(req.Slot)
	}
	return m.bind(ctx, inst, req)
}

// takeSlot is the compare-and-swap that decides who gets a slot.
func (m *Manager) takeSlot(inst *instance, poolKey string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if inst.rec.State != journal.Slot || !inst.ready || poolKey != "" && poolKey != inst.rec.PoolKey {
		return false
	}
	inst.ready, inst.binding = false, true
	m.tell(inst)
	return true
}

func errTaken(id sandbox.ID) error {
	return errdefs.WithCode(errdefs.Conflict, CodeSlotTaken, "slot %s is not free", id)
}

// claimCold starts a sandbox for this claim, within the node's bound. Waiting for
// an image is no start: it keeps nobody else from one.
func (m *Manager) claimCold(ctx context.Context, req ClaimRequest) (Sandbox, error) {
	if req.Snapshot != "" {
		from, err := m.findSnapshot(ctx, req.Snapshot, req.Team)
		if err != nil {
			return Sandbox{}, err
		}
		req.Spec.Image = from.manifest.Image // of which the files are changes, whatever the template says by now
	}
	image, err := m.image(ctx, req.Spec)
	if err != nil {
		return Sandbox{}, startError(err)
	}
	end, err := m.beginCold(req.Team)
	if err != nil {
		return Sandbox{}, err
	}
	defer end()
	inst, err := m.start(ctx, image, startRequest{poolKey: req.PoolKey, spec: req.Spec, env: req.Env, snapshot: req.Snapshot, team: req.Team})
	if err != nil {
		return Sandbox{}, startError(err)
	}
	defer inst.endTurn()
	defer m.keepWarm(inst)
	return m.bind(ctx, inst, req)
}

// startError keeps what is already meant for callers and hides the rest.
func startError(err error) error {
	var typed *errdefs.Error
	if errors.As(err, &typed) {
		return err
	}
	return errdefs.New(errdefs.Unavailable, "the sandbox could not be started").WithCause(err)
}

// bind gives a running slot, whose turn the caller has, to a tenant: the CPU
// share first, then journal and environment at the same time. Both or the slot
// ends.
func (m *Manager) bind(ctx context.Context, inst *instance, req ClaimRequest) (Sandbox, error) {
	before := m.record(inst)
	rec := before
	rec.State, rec.Claim, rec.Image = journal.Claimed, req.claim(rec.Spec), 0
	err := m.bindSteps(ctx, inst, before, rec)
	if err != nil {
		m.abandon(ctx, inst, fmt.Sprintf("claim failed: %v", err))
		return Sandbox{}, mountError(err, errdefs.New(errdefs.Unavailable, "sandbox %s could not be claimed", rec.ID))
	}
	m.change(inst, func() { inst.rec, inst.binding = rec, false })
	return Sandbox{Record: rec}, nil
}

func (m *Manager) bindSteps(ctx context.Context, inst *instance, before, rec journal.Record) error {
	if err := failpoint.Hit("claim.after-take"); err != nil {
		return err
	}
	if err := m.cfg.Groups.Set(rec.ID, limits(before.Spec, nil, true), limits(rec.Spec, rec.Claim, false)); err != nil {
		return err
	}
	committed := inBackground(func() error {
		if err := m.cfg.Journal.Put(ctx, rec); err != nil {
			return err
		}
		return failpoint.Hit("claim.after-journal")
	})
	judged := inBackground(func() error { return m.setPolicy(ctx, rec) })
	var err error
	if len(rec.Claim.Mounts) > 0 { // no volume enters what the next noded would take for a free slot (C15)
		if err = m.attachWhen(ctx, rec, committed); err == nil {
			err = failpoint.Hit("claim.after-attach")
		}
	}
	if err == nil {
		err = m.claimEnv(ctx, inst, rec)
	}
	if err == nil {
		err = m.keepEvents(ctx, inst, rec)
	}
	if err == nil {
		err = failpoint.Hit("claim.after-env")
	}
	return cmp.Or(committed(), judged(), err)
}

// inBackground does something beside the caller, who has to wait for it.
func inBackground(do func() error) (wait func() error) {
	done := make(chan error, 1)
	go func() { done <- do() }()
	return sync.OnceValue(func() error { return <-done })
}

// claimEnv gives procd the claim's environment and mounts. Where nothing changes there
// is no round trip, which costs more than the rest of a claim: there procd's open
// connection is proof enough, for nothing of a tenant's has run beside it yet. What
// changes restarts the warm processes that would see it.
func (m *Manager) claimEnv(ctx context.Context, inst *instance, rec journal.Record) error {
	change := changes(rec, true)
	if len(change.Mounts) > 0 || !maps.Equal(inst.told, change.Env) {
		return m.setEnv(ctx, inst, change)
	}
	if !m.connected(inst) {
		return channel.ErrDisconnected
	}
	return nil
}

// changes is what procd is told of a record after the introduction.
func changes(rec journal.Record, restartWarm bool) procapi.Env {
	return procapi.Env{Env: environment(rec), Mounts: procdMounts(rec), RestartWarm: restartWarm}
}

// setEnv gives procd an environment and what is to be mounted. The caller has the turn.
func (m *Manager) setEnv(ctx context.Context, inst *instance, env procapi.Env) error {
	ch, err := m.channelOf(inst)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, envTimeout+time.Duration(len(env.Mounts))*mountTimeout)
	defer cancel()
	inst.told = nil // until procd has it, nobody knows what it has
	if err := ch.SetEnv(ctx, env); err != nil {
		return err
	}
	inst.told = env.Env
	return nil
}

func (r ClaimRequest) claim(spec sandbox.Spec) *journal.Claim {
	c := &journal.Claim{
		ClaimID: r.ClaimID, Team: r.Team, User: r.User, Env: r.Env,
		MemoryBytes: r.MemoryBytes, CPUMillis: r.CPUMillis, Time: time.Now().UTC(), Events: r.Events, Network: r.Network, Mounts: r.Mounts,
	}
	if c.MemoryBytes == 0 {
		c.MemoryBytes = spec.MemoryBytes
	}
	if c.CPUMillis == 0 {
		c.CPUMillis = spec.CPUMillis
	}
	return c
}
