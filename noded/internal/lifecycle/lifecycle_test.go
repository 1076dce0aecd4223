package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/events"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/lifecycle"
	"s0.run/noded/internal/noop"
	"s0.run/noded/internal/snapshots"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

var spec = sandbox.Spec{Image: "img", Env: map[string]string{"A": "template"}, MemoryBytes: 256 << 20, CPUMillis: 500, RuntimeClass: sandbox.GVisor}

// machine is what outlives a noded.
type machine struct {
	t    testing.TB
	node *noop.Node
	dir  string
}

func newMachine(t testing.TB) *machine {
	m := &machine{t: t, node: noop.New(), dir: t.TempDir()}
	t.Cleanup(m.node.Close)
	return m
}

// noded is one run of a manager on a machine.
type noded struct {
	*lifecycle.Manager
	*machine
	hub     *events.Hub
	journal *journal.Journal
	stop    func()
}

func (m *machine) prepare(mutate ...func(*lifecycle.Config)) *noded {
	m.t.Helper()
	j, err := journal.Open(filepath.Join(m.dir, "journal.db"))
	if err != nil {
		m.t.Fatal(err)
	}
	n := &noded{machine: m, hub: events.NewHub(), journal: j}
	cfg := lifecycle.Config{
		Cluster: "local", Scope: "test", Max: 200, ColdStarts: 2,
		DataDir: filepath.Join(m.dir, "data"), ImageDir: filepath.Join(m.dir, "images"), Snapshots: snapshots.NewStore(filepath.Join(m.dir, "snapshots")), RunDir: filepath.Join(m.dir, "run"), BinDir: "/bin",
		Journal: j, Runtime: noop.Runtime{Node: m.node}, Images: noop.Images{Node: m.node}, Disk: noop.Disk{Node: m.node},
		Network: noop.Network{Node: m.node}, Egress: noop.Egress{}, Groups: noop.Groups{Node: m.node},
		Hub: n.hub, Metrics: lifecycle.NewMetrics(prometheus.NewRegistry()), Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	for _, f := range mutate {
		f(&cfg)
	}
	n.Manager = lifecycle.New(cfg)
	return n
}

func (m *machine) boot(mutate ...func(*lifecycle.Config)) *noded {
	m.t.Helper()
	n := m.prepare(mutate...)
	n.run()
	n.Adopt(m.t.Context())
	return n
}

// run loads the journal and works, but does not look for what lives yet.
func (n *noded) run() {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	jctx, jcancel := context.WithCancel(context.Background())
	var wg, jwg sync.WaitGroup
	jwg.Go(func() { _ = n.journal.Run(jctx) })
	if err := n.Load(); err != nil {
		n.t.Fatal(err)
	}
	wg.Go(func() { _ = n.Run(ctx) })
	n.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		jcancel()
		jwg.Wait()
	})
	n.t.Cleanup(n.stop)
}

func (n *noded) ctx() context.Context {
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	n.t.Cleanup(cancel)
	return ctx
}

func (n *noded) warm(count int) []sandbox.ID {
	n.t.Helper()
	for range count {
		if err := n.Create(n.ctx(), "pool", spec, nil); err != nil {
			n.t.Fatal(err)
		}
	}
	return n.free()
}

func (n *noded) free() []sandbox.ID { return n.inState(lifecycle.Free) }

func (n *noded) inState(s lifecycle.SlotState) []sandbox.ID {
	var ids []sandbox.ID
	for _, slot := range n.Slots() {
		if slot.State == s {
			ids = append(ids, slot.ID)
		}
	}
	return ids
}

// R1: a claim whose node died is undone when the node is back. By then its slot may be
// somebody else's.
func TestX12_DeleteOfAnotherClaim(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot()
	slots := n.warm(2)
	n.claim(slots[0])
	for _, id := range slots {
		if err := n.DeleteOf(n.ctx(), id, 1, "of before", "its claim failed"); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "the slot is given up", func() bool { return n.Holding() == 1 })
	if sb, err := n.Get(slots[0]); err != nil || sb.State() != sandbox.Running {
		t.Errorf("the other claim's: %s (%v)", sb.State(), err)
	}
	if err := n.DeleteOf(n.ctx(), slots[0], 1, "claim-"+string(slots[0]), "its claim failed"); err != nil {
		t.Error(err)
	}
	n.nothingLeft()
}

// Who has not heard of its sandbox's id gives it up by its claim's.
func TestX12_DeleteClaim(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	slots := n.warm(2)
	for i, id := range slots {
		if _, _, err := n.Claim(n.ctx(), claimOf(id, fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	n.stop()
	n = m.boot()
	for _, claim := range []string{"0", "0", "of nothing"} {
		if err := n.DeleteClaim(n.ctx(), claim, "test"); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "one is left", func() bool { return n.Holding() == 1 })
	if sb, err := n.Get(slots[1]); err != nil || sb.State() != sandbox.Running {
		t.Errorf("the other: %s (%v)", sb.State(), err)
	}
}

func claimOf(slot sandbox.ID, claimID string) lifecycle.ClaimRequest {
	return lifecycle.ClaimRequest{ClaimID: claimID, Slot: slot, PoolKey: "pool", Team: "team", User: "user", Env: map[string]string{"A": "claim"}}
}

func (n *noded) claim(slot sandbox.ID) lifecycle.Sandbox {
	n.t.Helper()
	sb, cold, err := n.Claim(n.ctx(), claimOf(slot, "claim-"+string(slot)))
	if err != nil || cold || sb.ID != slot {
		n.t.Fatalf("claim of %s: %+v, cold %v, %v", slot, sb, cold, err)
	}
	return sb
}

// eventually waits for a condition that no event announces.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// nothingLeft waits until no trace of any sandbox is there: memory, journal, machine and disk.
func (n *noded) nothingLeft() {
	n.t.Helper()
	var why []string
	eventually(n.t, "nothing left", func() bool {
		why = n.node.Left()
		records, err := n.journal.All()
		if err != nil {
			n.t.Fatal(err)
		}
		for _, r := range records {
			why = append(why, fmt.Sprint("record ", r.ID, " ", r.State))
		}
		for _, dir := range []string{"data", "images", "run"} {
			entries, err := os.ReadDir(filepath.Join(n.dir, dir))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				n.t.Fatal(err)
			}
			for _, e := range entries {
				why = append(why, dir+"/"+e.Name())
			}
		}
		for _, s := range n.Slots() {
			why = append(why, fmt.Sprintf("slot %s", s.ID))
		}
		return len(why) == 0
	})
}

// watch collects events from now on; until waits for one.
type watch struct {
	t   testing.TB
	sub *events.Subscription
}

func (n *noded) watch() (map[string]string, *watch) {
	initial, sub := n.hub.Subscribe()
	n.t.Cleanup(sub.Cancel)
	picture := map[string]string{}
	for _, e := range initial {
		id, what := describe(e)
		picture[id] = what
	}
	return picture, &watch{t: n.t, sub: sub}
}

func describe(e *nodeapi.Event) (id, what string) {
	switch e := e.Event.(type) {
	case *nodeapi.Event_SlotFree:
		return e.SlotFree.Id, "free"
	case *nodeapi.Event_SlotTaken:
		return e.SlotTaken, "taken"
	case *nodeapi.Event_Sandbox:
		return e.Sandbox.Id, e.Sandbox.State
	case *nodeapi.Event_SandboxGone:
		return e.SandboxGone, "gone"
	}
	return "", ""
}

func (w *watch) until(id sandbox.ID, want string) *nodeapi.Event {
	w.t.Helper()
	var seen []string
	for {
		select {
		case e := <-w.sub.C():
			gotID, got := describe(e)
			if gotID == string(id) {
				if seen = append(seen, got); got == want {
					return e
				}
			}
		case <-time.After(patience):
			w.t.Fatalf("%s did not become %s, only %v", id, want, seen)
		}
	}
}

func kind(t *testing.T, err error, want errdefs.Kind) {
	t.Helper()
	if !errdefs.Is(err, want) {
		t.Errorf("error %v: want kind %d", err, want)
	}
}

func TestLifeOfASandbox(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot()
	_, w := n.watch()
	id := n.warm(1)[0]
	w.until(id, "free")
	groups := noop.Groups{Node: n.node}
	if env := (noop.Runtime{Node: n.node}).Env(id); env["A"] != "template" || env[procapi.EnvSandboxID] != string(id) {
		t.Errorf("environment of a slot: %v", env)
	}
	if !groups.Limits(id).Idle {
		t.Error("a free slot competes for CPU")
	}
	if _, err := n.Get(id); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("a slot is shown as a sandbox: %v", err)
	}
	if _, err := n.Proc(id, 0); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("a slot can be used: %v", err)
	}

	sb := n.claim(id)
	w.until(id, "taken")
	e := w.until(id, "running")
	if env := e.GetSandbox().Env; env != nil {
		t.Errorf("every watcher is told the tenant's variables: %v", env)
	}
	if env := sb.Wire().Env; env["A"] != "claim" {
		t.Errorf("the claim's answer lacks its variables: %v", env)
	}
	if s := e.GetSandbox(); s.Team != "team" || s.ClaimId != sb.Claim.ClaimID || s.MemoryBytes != spec.MemoryBytes || s.Generation != 1 {
		t.Errorf("event %v", s)
	}
	if l := groups.Limits(id); l.Idle || l.MemoryBytes != spec.MemoryBytes {
		t.Errorf("limits of a claimed sandbox: %+v", l)
	}
	if env := (noop.Runtime{Node: n.node}).Env(id); env["A"] != "claim" || env[procapi.EnvSandboxID] != string(id) {
		t.Errorf("environment of a claimed sandbox: %v", env)
	}
	if _, err := n.Proc(id, sb.Generation); err != nil {
		t.Error(err)
	}
	_, err := n.Proc(id, sb.Generation+1)
	kind(t, err, errdefs.Conflict)

	if err := n.Delete(n.ctx(), id, 7, "stale"); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("delete with another generation: %v", err)
	}
	for range 2 {
		if err := n.Delete(n.ctx(), id, sb.Generation, "asked to"); err != nil {
			t.Fatal(err)
		}
	}
	w.until(id, "terminating")
	w.until(id, "gone")
	n.nothingLeft()
	if err := n.Delete(n.ctx(), id, 0, "again"); err != nil {
		t.Errorf("delete of what is gone: %v", err)
	}
	_, err = n.Get(id)
	kind(t, err, errdefs.NotFound)
}

// G01: any number of claimants, each slot has one owner.
func TestG01_ConcurrentClaims(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot()
	slots := n.warm(20)
	var mu sync.Mutex
	owners := map[sandbox.ID]string{}
	var wg sync.WaitGroup
	for c := range 50 {
		wg.Go(func() {
			for i := range slots {
				slot := slots[(i+c)%len(slots)]
				claimID := fmt.Sprint("c", c, "-", i)
				sb, _, err := n.Claim(n.ctx(), claimOf(slot, claimID))
				if err != nil {
					if errdefs.From(err).Code != lifecycle.CodeSlotTaken {
						t.Errorf("claim: %v", err)
					}
					continue
				}
				mu.Lock()
				if other := owners[sb.ID]; other != "" {
					t.Errorf("%s belongs to %s and %s", sb.ID, other, claimID)
				}
				owners[sb.ID] = claimID
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(owners) != len(slots) {
		t.Errorf("%d of %d slots were claimed", len(owners), len(slots))
	}
	for id, claimID := range owners {
		if sb, err := n.Get(id); err != nil || sb.Claim.ClaimID != claimID {
			t.Errorf("%s is %+v (%v), want %s's", id, sb.Claim, err, claimID)
		}
	}
}

// A16 at the node: the same claim id is the same sandbox, also at the same time and after a restart.
func TestA16_ClaimIsIdempotent(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	slots := n.warm(2)
	var wg sync.WaitGroup
	got := make([]sandbox.ID, 20)
	for i := range got {
		wg.Go(func() {
			sb, _, err := n.Claim(n.ctx(), claimOf(slots[0], "same"))
			if err != nil {
				t.Error(err)
			}
			got[i] = sb.ID
		})
	}
	wg.Wait()
	n.stop()
	n = m.boot()
	sb, _, err := n.Claim(n.ctx(), claimOf(slots[1], "same")) // another slot, the same claim
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range append(got, sb.ID) {
		if id != slots[0] {
			t.Errorf("claim answered %s, want %s", id, slots[0])
		}
	}
	if free := n.free(); !slices.Equal(free, slots[1:]) {
		t.Errorf("free after one claim: %v, want %v", free, slots[1:])
	}
}

func TestClaimRefusals(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot()
	slot := n.warm(1)[0]
	other, _ := sandbox.NewID("local")
	for name, c := range map[string]struct {
		mutate func(*lifecycle.ClaimRequest)
		kind   errdefs.Kind
	}{
		"unknown slot":    {func(r *lifecycle.ClaimRequest) { r.Slot = other }, errdefs.Conflict},
		"another pool":    {func(r *lifecycle.ClaimRequest) { r.PoolKey = "other" }, errdefs.Conflict},
		"no claim id":     {func(r *lifecycle.ClaimRequest) { r.ClaimID = "" }, errdefs.InvalidArgument},
		"no team":         {func(r *lifecycle.ClaimRequest) { r.Team = "" }, errdefs.InvalidArgument},
		"little memory":   {func(r *lifecycle.ClaimRequest) { r.MemoryBytes = 1 }, errdefs.InvalidArgument},
		"negative cpu":    {func(r *lifecycle.ClaimRequest) { r.CPUMillis = -1 }, errdefs.InvalidArgument},
		"bad env name":    {func(r *lifecycle.ClaimRequest) { r.Env = map[string]string{"A=B": ""} }, errdefs.InvalidArgument},
		"NUL in env":      {func(r *lifecycle.ClaimRequest) { r.Env = map[string]string{"A": "\x00"} }, errdefs.InvalidArgument},
		"huge env":        {func(r *lifecycle.ClaimRequest) { r.Env = map[string]string{"A": string(make([]byte, 2<<20))} }, errdefs.InvalidArgument},
		"cold, no spec":   {func(r *lifecycle.ClaimRequest) { r.Slot = "" }, errdefs.InvalidArgument},
		"endless user id": {func(r *lifecycle.ClaimRequest) { r.User = string(make([]byte, 1000)) }, errdefs.InvalidArgument},
	} {
		req := claimOf(slot, "refused")
		c.mutate(&req)
		_, _, err := n.Claim(n.ctx(), req)
		if !errdefs.Is(err, c.kind) {
			t.Errorf("%s: %v, want kind %d", name, err, c.kind)
		}
	}
	n.claim(slot) // none of that took it
}

func TestColdStart(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	release := make(chan struct{})
	m.node.Fault = func(effect string, _ sandbox.ID) error {
		if effect == "runtime.Start" {
			<-release
		}
		return nil
	}
	n := m.boot()
	results := make(chan error, 10)
	for i := range 10 {
		go func() {
			req := claimOf("", fmt.Sprint("cold", i))
			req.Spec = spec
			sb, cold, err := n.Claim(n.ctx(), req)
			if err == nil && (!cold || sb.State() != sandbox.Running) {
				err = fmt.Errorf("cold %v, state %s", cold, sb.State())
			}
			results <- err
		}()
	}
	for range 8 { // two are under way, the others are told to come back
		err := <-results
		if e := errdefs.From(err); e == nil || e.Kind != errdefs.Exhausted || e.RetryAfter <= 0 {
			t.Errorf("beyond the bound: %v", err)
		}
	}
	close(release)
	for range 2 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if free := n.free(); len(free) != 0 {
		t.Errorf("cold starts were free for others: %v", free)
	}
}

// D12: a claim that waits for an image's pull takes no place from the others.
func TestD12_PullTakesNoColdStart(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	pulling, release := make(chan struct{}, 10), make(chan struct{})
	var first atomic.Int64
	m.node.Fault = func(effect string, _ sandbox.ID) error {
		if effect == "images.Ensure" && first.Add(1) <= 2 {
			pulling <- struct{}{}
			<-release
		}
		return nil
	}
	n := m.boot() // 2 cold starts at a time
	cold := func(claimID string) error {
		req := claimOf("", claimID)
		req.Spec = spec
		_, _, err := n.Claim(n.ctx(), req)
		return err
	}
	results := make(chan error, 2)
	for i := range 2 {
		go func() { results <- cold(fmt.Sprint("pulls", i)) }()
		<-pulling
	}
	if err := cold("has its image"); err != nil {
		t.Errorf("a cold start while others wait for their images: %v", err)
	}
	close(release)
	for range 2 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
}

func TestNodeIsFull(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot(func(c *lifecycle.Config) { c.Max = 2 })
	ids := n.warm(2)
	kind(t, n.Create(n.ctx(), "pool", spec, nil), errdefs.Exhausted)
	if err := n.Delete(n.ctx(), ids[0], 0, "room"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "room for another", func() bool { return n.Create(n.ctx(), "pool", spec, nil) == nil })
}

// D04, X41: on a full disk nothing new begins; what is warm may be claimed, and
// what runs may be ended.
func TestD04_FullDiskRefusesNewWork(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	var full atomic.Bool
	m.node.Fault = func(effect string, _ sandbox.ID) error {
		if effect == "disk.Room" && full.Load() {
			return errdefs.New(errdefs.Exhausted, "the disk is full").WithRetryAfter(time.Second)
		}
		return nil
	}
	n := m.boot()
	id := n.warm(1)[0]
	full.Store(true)
	kind(t, n.Create(n.ctx(), "pool", spec, nil), errdefs.Exhausted)
	cold := claimOf("", "cold")
	cold.Spec = spec
	_, _, err := n.Claim(n.ctx(), cold)
	kind(t, err, errdefs.Exhausted)
	n.claim(id)
	if err := n.Delete(n.ctx(), id, 0, "room"); err != nil {
		t.Fatal(err)
	}
	n.nothingLeft()
	full.Store(false)
	n.claim(n.warm(1)[0])
}

func TestUpdate(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	id := n.warm(1)[0]
	sb := n.claim(id)
	up := lifecycle.UpdateRequest{ID: id, Generation: 1, ReplaceEnv: true, Env: map[string]string{"B": "1"}, MemoryBytes: 512 << 20}
	got, err := n.Update(n.ctx(), up)
	if err != nil {
		t.Fatal(err)
	}
	if got.Claim.MemoryBytes != 512<<20 || got.Claim.CPUMillis != spec.CPUMillis || got.Claim.Env["B"] != "1" || got.Claim.ClaimID != sb.Claim.ClaimID {
		t.Errorf("after the update: %+v", got.Claim)
	}
	if l := (noop.Groups{Node: m.node}).Limits(id); l.MemoryBytes != 512<<20 {
		t.Errorf("limits %+v", l)
	}
	up.Generation = 9
	_, err = n.Update(n.ctx(), up)
	kind(t, err, errdefs.Conflict)
	n.stop()
	n = m.boot()
	if again, err := n.Get(id); err != nil || again.Claim.MemoryBytes != 512<<20 {
		t.Errorf("after a restart: %+v (%v)", again.Claim, err)
	}
}

// judging is an egress that keeps the last policy it was told.
type judging struct {
	noop.Egress
	policies chan string
}

func (j judging) SetPolicy(_ context.Context, _ sandbox.ID, _ string, n *journal.Network) error {
	if n != nil {
		j.policies <- string(n.Policy)
	}
	return nil
}

func TestE21_ASandboxCannotHoldUpItsPolicy(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	told := judging{policies: make(chan string, 8)}
	n := m.boot(func(c *lifecycle.Config) { c.Egress = told })
	id := n.warm(1)[0]
	n.claim(id)
	noop.Runtime{Node: m.node}.Deafen(id)
	for _, policy := range []string{`{"mode":"block-all"}`, `{"mode":"allow-all"}`} {
		up := lifecycle.UpdateRequest{ID: id, Network: &journal.Network{Policy: []byte(policy)}}
		if _, err := n.Update(n.ctx(), up); err != nil || <-told.policies != policy {
			t.Errorf("a policy alone: %v", err)
		}
	}
	both := lifecycle.UpdateRequest{ID: id, ReplaceEnv: true, Network: &journal.Network{Policy: []byte(`{"mode":"block-all"}`)}}
	if _, err := n.Update(n.ctx(), both); err == nil || <-told.policies != `{"mode":"block-all"}` {
		t.Errorf("a policy with an environment that procd does not take: %v", err)
	}
}

func openJournal(m *machine) (*journal.Journal, error) {
	return journal.Open(filepath.Join(m.dir, "journal.db"))
}

// BenchmarkClaim is a claim without wire and sandbox: compare-and-swap, journal,
// and a procd that answers at once.
func BenchmarkClaim(b *testing.B) {
	m := newMachine(b)
	n := m.boot(func(c *lifecycle.Config) { c.Max = 1 << 15 })
	took := make([]time.Duration, 0, b.N)
	for range b.N {
		if err := n.Create(n.ctx(), "pool", spec, nil); err != nil {
			b.Fatal(err)
		}
	}
	slots := n.free()
	b.ResetTimer()
	for _, slot := range slots {
		begin := time.Now()
		n.claim(slot)
		took = append(took, time.Since(begin))
	}
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[0].Microseconds()), "min-µs")
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}
