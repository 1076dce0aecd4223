package lifecycle

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/failpoint"
	"s0.run/internal/policy"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/cgroup"
	"s0.run/noded/internal/channel"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/trust"
)

// defaultPids bounds a sandbox's tasks on the host where its spec does not.
const defaultPids = 4096

// shimGroup is how many sandboxes share a shim.
const shimGroup = 16

// Create warms a slot of a pool. It returns when the slot is free, or when it is
// decided that it will not be; the rest of a failed one is cleared in the background.
// It calls started, unless that is nil, when all that is left to do is to wait for
// the slot's warm processes.
func (m *Manager) Create(ctx context.Context, poolKey string, spec sandbox.Spec, started func()) error {
	image, err := m.image(ctx, spec)
	if err != nil {
		return err
	}
	_, err = m.warmUp(ctx, image, startRequest{poolKey: poolKey, spec: spec, idle: true, started: started})
	return err
}

// warmUp starts a sandbox and makes it a free slot.
func (m *Manager) warmUp(ctx context.Context, image string, req startRequest) (*instance, error) {
	inst, err := m.start(ctx, image, req)
	if err != nil {
		return nil, err
	}
	m.change(inst, func() {
		inst.ready = true
		inst.endTurn() // before anybody is told: a claim only tries the turn
	})
	m.log(m.record(inst)).Info("slot is free", "pool", req.poolKey)
	m.keepWarm(inst)
	return inst, nil
}

// startRequest is what a start needs to know.
type startRequest struct {
	poolKey string
	pod     string // that stands for the slot; empty: none
	spec    sandbox.Spec
	env     map[string]string // of the claim that it is for
	idle    bool              // yields the CPU to everything else until it is claimed
	started func()            // see Create

	snapshot, team string // of the team, whose files it begins with; empty: none
}

// image makes sure of the spec's image, however long its pull takes.
func (m *Manager) image(ctx context.Context, spec sandbox.Spec) (string, error) {
	image, err := m.cfg.Images.Ensure(ctx, spec.Image)
	if err != nil {
		return "", fmt.Errorf("image %s: %w", spec.Image, err)
	}
	return image, nil
}

// start brings up a sandbox and returns it with its turn taken.
func (m *Manager) start(ctx context.Context, image string, req startRequest) (*instance, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	inst, err := m.reserve(req, cancel)
	if err != nil {
		return nil, err
	}
	err = m.bringUp(ctx, inst, image, req)
	m.mu.Lock()
	inst.cancel = nil // from here on an end waits for the turn
	m.mu.Unlock()
	if err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		m.cfg.Metrics.startFailures.Inc()
		m.abandon(ctx, inst, fmt.Sprintf("start failed: %v", err))
		inst.endTurn()
		return nil, fmt.Errorf("starting %s: %w", inst.id, err)
	}
	return inst, nil
}

// bringUp takes the steps of a creation and waits for the warm processes.
func (m *Manager) bringUp(ctx context.Context, inst *instance, image string, req startRequest) error {
	begin := time.Now()
	limit := startTimeout
	if req.snapshot != "" {
		limit = imageTimeout // which may have to be fetched
	}
	starting, timeout := context.WithTimeout(ctx, limit)
	defer timeout()
	if err := m.runSteps(starting, "create", m.createSteps(inst, image, req)); err != nil {
		return because(starting, err)
	}
	m.cfg.Metrics.startSeconds.Observe(time.Since(begin).Seconds())
	if req.started != nil {
		req.started()
	}
	if err := m.awaitWarm(ctx, inst); err != nil {
		return because(ctx, fmt.Errorf("warm: %w", err))
	}
	return nil
}

// because adds why a step was interrupted, if it was: its error alone does not say.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("%w (%w)", cause, err)
	}
	return err
}

// reserve makes the instance, with its turn taken, its id and its index.
func (m *Manager) reserve(req startRequest, cancel context.CancelCauseFunc) (*instance, error) {
	if err := m.cfg.Disk.Room(); err != nil {
		return nil, err // a slot that is warm has its place and may still be claimed
	}
	id, err := sandbox.NewID(m.cfg.Cluster)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	index, err := m.takeIndex()
	if err != nil {
		return nil, err
	}
	inst := newInstance(journal.Record{
		ID: id, Generation: 1, State: journal.Slot, PoolKey: req.poolKey, Pod: req.pod, Spec: req.spec,
		NetIndex: index, IP: m.cfg.Network.Slot(id, index).IP, Created: time.Now().UTC(),
	})
	if req.snapshot != "" {
		inst.rec.Image = inst.rec.Generation // which also says that it is a team's: see adopt
	}
	inst.tryTurn()
	inst.cancel = cancel
	inst.binding = !req.idle // what is started for a claim is no slot for another
	m.instances[id] = inst
	m.kick()
	return inst, nil
}

// takeIndex finds a place for one more instance. It is called with mu held.
func (m *Manager) takeIndex() (uint32, error) {
	if m.occupied() >= m.cfg.Max {
		return 0, errFull.WithRetryAfter(coldRetryAfter)
	}
	index := m.indexes.take(time.Now())
	if index == 0 {
		return 0, errFull.WithRetryAfter(indexRest)
	}
	return index, nil
}

// indexAgain is takeIndex for a sandbox that is resumed. One whose last teardown could not
// be recorded has its index still, as the journal says, and nobody else has it.
func (m *Manager) indexAgain(rec journal.Record) (uint32, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if rec.NetIndex == 0 {
		return m.takeIndex()
	}
	if m.occupied() >= m.cfg.Max {
		return 0, errFull.WithRetryAfter(coldRetryAfter)
	}
	return rec.NetIndex, nil
}

// occupied counts what takes room; one that failed or is paused and holds only its
// record does not. It is called with mu held.
func (m *Manager) occupied() int {
	n := 0
	for _, inst := range m.instances {
		if !atRest(inst.rec) || inst.disposing {
			n++
		}
	}
	return n
}

var errFull = errdefs.New(errdefs.Exhausted, "the node is full")

// A step of an operation; the sandbox's teardown undoes those of a creation.
type step struct {
	name string
	do   func(context.Context) error
}

func (m *Manager) createSteps(inst *instance, image string, req startRequest) []step {
	rec := inst.rec // nobody else changes it while the creation has the turn
	id := rec.ID
	c := m.container(rec, image)
	files, started := []step(nil), []step(nil)
	if req.snapshot != "" {
		c.Checkpoint = m.imageDir(rec)
		files = []step{{"files", func(ctx context.Context) error { return m.beginWith(ctx, rec, req.snapshot, req.team) }}}
		started = []step{{"drop", func(ctx context.Context) error { return m.removeImages(ctx, id) }}}
	}
	return slices.Concat([]step{
		{"intent", func(ctx context.Context) error { return m.cfg.Journal.Put(ctx, rec) }},
		{"dirs", func(context.Context) error { return m.makeDirs(rec) }},
		{"netns", func(ctx context.Context) error { return m.addNetwork(ctx, rec) }},
		{"cgroup", func(context.Context) error { return m.cfg.Groups.Create(id, limits(rec.Spec, nil, req.idle)) }},
	}, files, []step{
		{"listen", func(context.Context) error { return m.listen(inst) }},
		{"start", func(ctx context.Context) error { return m.cfg.Runtime.Start(ctx, c) }},
		{"handshake", func(ctx context.Context) error { return m.handshake(ctx, inst, req.env) }},
	}, started)
}

// runSteps takes the steps of an operation, each with a failpoint behind it; what is
// before the first has one of its own.
func (m *Manager) runSteps(ctx context.Context, operation string, steps []step) error {
	if err := failpoint.Hit(operation + ".begin"); err != nil {
		return err
	}
	for _, s := range steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		begin := time.Now()
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		m.cfg.Metrics.stepSeconds.WithLabelValues(operation, s.name).Observe(time.Since(begin).Seconds())
		if err := failpoint.Hit(operation + ".after-" + s.name); err != nil {
			return err
		}
	}
	return nil
}

// makeDirs makes what the sandbox has on the host's disk, before its network: who answers
// it there is written into the slot's directory.
func (m *Manager) makeDirs(rec journal.Record) error {
	id := rec.ID
	// What is in the slot's directory is for every user inside: outside, the one above is ours.
	for dir, mode := range map[string]os.FileMode{m.slotDir(id): 0o711, m.overlayDir(id): 0o700} {
		if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
			return err
		}
		if err := os.Mkdir(dir, mode); err != nil {
			return err
		}
	}
	if err := m.believed().Begin(id); err != nil {
		return err
	}
	for _, dir := range []string{m.binDir(id), m.portalPoint(id)} { // what BinDir and the portal are mounted on, inside
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if m.cfg.Volumes != nil {
		if err := m.cfg.Volumes.Prepare(id); err != nil {
			return err
		}
	}
	if isMachine(rec.Spec) {
		if err := m.makeToken(id); err != nil {
			return err
		}
	}
	return os.WriteFile(m.instanceFile(id), fmt.Appendf(nil, "%s %d\n", id, rec.Generation), 0o444)
}

// instanceFile is procapi.InstanceFile as the host sees it.
func (m *Manager) instanceFile(id sandbox.ID) string {
	return filepath.Join(m.slotDir(id), filepath.Base(procapi.InstanceFile))
}

func (m *Manager) portalPoint(id sandbox.ID) string {
	return filepath.Join(m.slotDir(id), filepath.Base(procapi.Portal))
}

func (m *Manager) binDir(id sandbox.ID) string {
	return filepath.Join(m.slotDir(id), filepath.Base(filepath.Dir(procapi.Binary)))
}

// listen opens the sandbox's channel, under Run's care.
func (m *Manager) listen(inst *instance) error {
	life := m.lifeOf(inst)
	cfg := channel.Config{
		Dir: m.slotDir(inst.id), Grace: redialGrace,
		Lost: func(silent bool) { m.background(func(ctx context.Context) { m.lost(ctx, inst, life, silent) }) },
	}
	if isMachine(m.record(inst).Spec) {
		cfg.Dial = func(ctx context.Context) (net.Conn, error) { return m.dialGuest(ctx, inst.id) }
	}
	ch, err := channel.Listen(cfg)
	if err != nil {
		return err
	}
	m.mu.Lock()
	ended, old := atRest(inst.rec), inst.channel // an exit may have come before an adoption
	if !ended {
		inst.channel = ch
	}
	m.mu.Unlock()
	if ended {
		ch.Close()
		return errEnded
	}
	if old != nil {
		old.Close()
	}
	m.background(func(ctx context.Context) { _ = ch.Run(ctx) })
	return nil
}

// handshake tells procd all that is known already, so that a claim need not: of a
// cold start that is everything.
func (m *Manager) handshake(ctx context.Context, inst *instance, env map[string]string) error {
	ch, err := m.channelOf(inst)
	if err != nil {
		return err
	}
	if _, err = ch.WaitHello(ctx); err != nil {
		return err
	}
	rec := m.record(inst)
	if env != nil {
		rec.Claim = &journal.Claim{Env: env}
	}
	return m.introduce(ctx, inst, rec)
}

// introduce tells procd which sandbox it is. Once it knows, it heeds no repetition.
func (m *Manager) introduce(ctx context.Context, inst *instance, rec journal.Record) error {
	ch, err := m.channelOf(inst)
	if err != nil {
		return err
	}
	timeout := envTimeout
	if len(inst.kept) > 0 {
		timeout = startTimeout // interpreters have to be started
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	inst.told = environment(rec)
	return ch.Init(ctx, procapi.Init{
		SandboxID: string(rec.ID), Generation: uint64(rec.Generation), Env: inst.told, Hostname: string(rec.ID), Now: time.Now(),
		Mounts: procdMounts(rec), Warm: rec.Spec.Warm, Kept: inst.kept,
	})
}

// environment is what every process sees: where it finds whom to believe, the template's
// variables, the claim's over them, and the sandbox's id.
func environment(rec journal.Record) map[string]string {
	env := map[string]string{}
	if rec.Claim != nil && rec.Claim.Network != nil {
		if p, err := policy.Parse(rec.Claim.Network.Policy); err == nil { // it was validated before it became durable
			env = trust.Environment(p)
		}
	}
	maps.Copy(env, rec.Spec.Env)
	if rec.Claim != nil {
		maps.Copy(env, rec.Claim.Env)
	}
	env[procapi.EnvSandboxID] = string(rec.ID)
	return env
}

func (m *Manager) container(rec journal.Record, image string) Container {
	portal := ""
	if m.cfg.Volumes != nil && rec.Spec.RuntimeClass == sandbox.GVisor {
		portal = m.cfg.Volumes.Dir(rec.ID)
	}
	return Container{
		PortalDir: portal,
		ID:        rec.ID, Image: image, Spec: rec.Spec, Hostname: string(rec.ID),
		SlotDir: m.slotDir(rec.ID), BinDir: m.cfg.BinDir, OverlayDir: m.overlayDir(rec.ID),
		NetNS: m.cfg.Network.Path(rec.ID), CgroupPath: m.cfg.Groups.Path(rec.ID),
		Group: fmt.Sprintf("%s-%d", m.cfg.Scope, rec.NetIndex/shimGroup),
	}
}

// limits are what the spec gives a slot and the claim a sandbox.
func limits(spec sandbox.Spec, claim *journal.Claim, idle bool) cgroup.Limits {
	l := cgroup.Limits{MemoryBytes: spec.MemoryBytes, CPUMillis: spec.CPUMillis, Pids: spec.PidsLimit, Idle: idle}
	if l.Pids == 0 {
		l.Pids = defaultPids
	}
	if claim != nil {
		l.MemoryBytes, l.CPUMillis = claim.MemoryBytes, claim.CPUMillis
	}
	if isMachine(spec) {
		l.MemoryBytes += machineOverhead
	}
	return l
}
