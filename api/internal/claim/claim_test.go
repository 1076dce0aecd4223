package claim_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"s0.run/api/internal/claim"
	"s0.run/api/internal/fakenode"
	"s0.run/api/internal/nodes"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/placement"
	"s0.run/api/internal/store"
	"s0.run/api/internal/templates"
	"s0.run/api/internal/volumes"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/s0test"
	"s0.run/internal/sandbox"
)

// replica is an API server as far as claims go.
type replica struct {
	*claim.Claimer
	store   *store.Store
	catalog *templates.Catalog
	table   *placement.Table
	volumes *volumes.Keeper
	poolKey string
}

func defaultTemplate(t testing.TB, c *templates.Catalog) *templates.Template {
	t.Helper()
	tmpl, err := c.Find(t.Context(), uuid.New(), "default")
	if err != nil {
		t.Fatal(err)
	}
	return tmpl
}

func newReplica(t testing.TB, dsn string, all ...*fakenode.Node) *replica {
	t.Helper()
	var sockets []string
	for _, n := range all {
		sockets = append(sockets, n.Socket)
	}
	s, err := store.Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	log := slog.New(slog.DiscardHandler)
	r := &replica{store: s, catalog: templates.NewCatalog(s, "local.test", log), table: placement.New()}
	if err := (templates.Builtins{Images: map[string]string{"default": "image"}}).Put(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if err := r.catalog.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.poolKey = defaultTemplate(t, r.catalog).PoolKey
	set := nodes.New(nodes.Config{
		Sockets: sockets, Cluster: "local", Table: r.table, Log: log,
		OnSync: func(string) {}, OnEnd: func(string, sandbox.ID) {}, OnStored: func(string, sandbox.ID) {},
	})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- set.Run(ctx) }()
	r.volumes = volumes.New(volumes.Config{Store: s, Table: r.table, Nodes: set, Log: log})
	r.Claimer = claim.New(claim.Config{
		Store: s, Catalog: r.catalog, Table: r.table, Nodes: set, Log: log, Volumes: r.volumes,
		Metrics: claim.NewMetrics(prometheus.NewRegistry()),
	})
	t.Cleanup(func() {
		r.Wait()
		stop()
		<-done
	})
	fakenode.Eventually(t, "the nodes are known", func() bool { return len(r.table.Synced()) == len(all) })
	return r
}

// slots puts free slots into the pool and waits until every replica sees them.
func slots(t testing.TB, n *fakenode.Node, count int, replicas ...*replica) []string {
	t.Helper()
	ids := n.AddSlots(replicas[0].poolKey, count)
	for _, r := range replicas {
		fakenode.Eventually(t, "the slots are seen", func() bool { return r.table.Free() >= count })
	}
	return ids
}

func request() claim.Request {
	return claim.Request{TeamID: uuid.New(), UserID: uuid.New(), Template: "default"}
}

// agree checks that the node's sandboxes and the store's rows are the same set.
func agree(t *testing.T, r *replica, n *fakenode.Node) {
	t.Helper()
	r.Wait()
	rows, err := r.store.SandboxesOn(t.Context(), n.Name, "", 0, 10_000)
	if err != nil {
		t.Fatal(err)
	}
	have := n.Sandboxes()
	for _, row := range rows {
		sb := have[string(row.ID)]
		if sb == nil {
			t.Errorf("row %s has no sandbox", row.ID)
			continue
		}
		if sb.GetClaimId() != row.ClaimID.String() || sb.GetTeam() != row.TeamID.String() || sb.GetGeneration() != uint64(row.Generation) {
			t.Errorf("row %s and its sandbox differ: %+v, %v", row.ID, row, sb)
		}
		delete(have, string(row.ID))
	}
	for id := range have {
		t.Errorf("sandbox %s has no row", id)
	}
}

func TestAWarmClaim(t *testing.T) {
	t.Parallel()
	n := fakenode.Start(t, &fakenode.Node{})
	r := newReplica(t, s0test.Postgres(t), n)
	id := slots(t, n, 1, r)[0]
	req := request()
	memory, ttl := "4Gi", int32(60)
	req.Config = openapi.SandboxConfig{EnvVars: map[string]string{"A": "1"}, Resources: &openapi.SandboxResources{Memory: &memory}, TTL: &ttl}
	sb, err := r.Claim(t.Context(), req)
	if err != nil || string(sb.ID) != id || sb.Status != sandbox.Running || sb.TeamID != req.TeamID || sb.ExpiresAt == nil || sb.HardExpiresAt != nil {
		t.Fatalf("%+v: %v", sb, err)
	}
	got := n.Sandboxes()[id]
	if got.GetMemoryBytes() != 4<<30 || got.GetCpuMillis() != 1000 {
		t.Errorf("limits: %v", got)
	}
	if env := got.GetEnv(); env["A"] != "1" || len(env) != 1 {
		t.Errorf("environment: %v", env)
	}
	agree(t, r, n)
}

func TestAColdClaim(t *testing.T) {
	t.Parallel()
	n := fakenode.Start(t, &fakenode.Node{})
	r := newReplica(t, s0test.Postgres(t), n)
	if _, err := r.Claim(t.Context(), request()); err != nil {
		t.Fatal(err)
	}
	agree(t, r, n)
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	full := func(context.Context, *nodeapi.ClaimRequest) error {
		return connect.NewError(connect.CodeResourceExhausted, errors.New("full"))
	}
	n := fakenode.Start(t, &fakenode.Node{OnClaim: full})
	r := newReplica(t, s0test.Postgres(t), n)
	_, err := r.Claim(t.Context(), request())
	if e := errdefs.From(err); e.Kind != errdefs.Exhausted || e.Code != "claim_start_throttled" || e.RetryAfter <= 0 {
		t.Errorf("beyond the node's bound: %v", err)
	}
	unknown := request()
	unknown.Template = "nope"
	if _, err := r.Claim(t.Context(), unknown); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("unknown template: %v", err)
	}
	negative, small, ten := int32(-1), "1Mi", int32(10)
	one := int32(1)
	for name, cfg := range map[string]openapi.SandboxConfig{
		"negative ttl":     {TTL: &negative},
		"ttl over hard":    {TTL: &ten, HardTTL: &one},
		"too small memory": {Resources: &openapi.SandboxResources{Memory: &small}},
	} {
		req := request()
		req.Config = cfg
		if _, err := r.Claim(t.Context(), req); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	n.Stop()
	fakenode.Eventually(t, "the loss is seen", func() bool { return !r.table.IsSynced(n.Name) })
	if _, err := r.Claim(t.Context(), request()); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("no node: %v", err)
	}
}

func TestG01_NoSlotIsClaimedTwice(t *testing.T) {
	t.Parallel()
	const claims, warm = 100, 50
	n := fakenode.Start(t, &fakenode.Node{NoRefill: true})
	dsn := s0test.Postgres(t)
	replicas := []*replica{newReplica(t, dsn, n), newReplica(t, dsn, n)}
	slots(t, n, warm, replicas...)
	var mu sync.Mutex
	seen := map[sandbox.ID]uuid.UUID{}
	var wg sync.WaitGroup
	for i := range claims {
		wg.Go(func() {
			req := request()
			sb, err := replicas[i%2].Claim(t.Context(), req)
			for n := 0; (errdefs.Is(err, errdefs.Unavailable) || errdefs.Is(err, errdefs.Exhausted)) && n < 20; n++ { // a busy machine has queues
				sb, err = replicas[i%2].Claim(t.Context(), req)
			}
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if other, twice := seen[sb.ID]; twice {
				t.Errorf("%s was given to %s and %s", sb.ID, other, req.TeamID)
			}
			seen[sb.ID] = req.TeamID
		})
	}
	wg.Wait()
	if len(seen) != claims {
		t.Fatalf("%d sandboxes for %d claims", len(seen), claims)
	}
	for _, r := range replicas {
		r.Wait()
	}
	agree(t, replicas[0], n)
	for id, team := range seen {
		if sb, err := replicas[0].store.Sandbox(t.Context(), team, id); err != nil || sb.TeamID != team {
			t.Errorf("%s: %+v %v", id, sb, err)
		}
	}
}

func TestALostSlotIsReplacedByAnother(t *testing.T) {
	t.Parallel()
	n := fakenode.Start(t, &fakenode.Node{})
	r := newReplica(t, s0test.Postgres(t), n)
	ids := slots(t, n, 3, r)
	n.Steal(ids[0])
	n.Steal(ids[1])
	sb, err := r.Claim(t.Context(), request())
	if err != nil || string(sb.ID) != ids[2] && r.table.Free() == 0 {
		t.Fatalf("%+v: %v", sb, err)
	}
	agree(t, r, n)
}

func TestTheNodesChoiceBeatsAnOlderRow(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"", "key"} {
		n := fakenode.Start(t, &fakenode.Node{})
		r := newReplica(t, s0test.Postgres(t), n)
		id := slots(t, n, 1, r)[0]
		loser := store.NewSandbox{
			ID: sandbox.ID(id), TeamID: uuid.New(), UserID: uuid.New(), ClaimID: uuid.New(), TemplateID: "default",
			Node: n.Name, Generation: 1, Config: []byte("{}"), MemoryBytes: 1,
		}
		if _, err := r.store.InsertSandbox(t.Context(), loser); err != nil {
			t.Fatal(err)
		}
		req := request()
		req.Key = key
		sb, err := r.Claim(t.Context(), req)
		if err != nil || string(sb.ID) != id || sb.TeamID != req.TeamID {
			t.Fatalf("%+v: %v", sb, err)
		}
		agree(t, r, n)
	}
}

// A claim whose node fails, before or after it took effect, leaves nothing, and
// takes another slot.
func TestANodeThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, after := range []bool{false, true} {
		for _, key := range []string{"", "key"} {
			t.Run(fmt.Sprintf("after=%v key=%q", after, key), func(t *testing.T) {
				t.Parallel()
				var calls atomic.Int32
				fail := func(context.Context, *nodeapi.ClaimRequest) error {
					if calls.Add(1) == 1 {
						return connect.NewError(connect.CodeUnavailable, errors.New("procd is lost"))
					}
					return nil
				}
				n := &fakenode.Node{}
				if after {
					n.AfterClaim = fail
				} else {
					n.OnClaim = fail
				}
				fakenode.Start(t, n)
				r := newReplica(t, s0test.Postgres(t), n)
				slots(t, n, 2, r)
				req := request()
				req.Key = key
				if _, err := r.Claim(t.Context(), req); err != nil {
					t.Fatal(err)
				}
				agree(t, r, n)
				if len(n.Deleted()) != 1 {
					t.Errorf("the failed slot must be given up: %v", n.Deleted())
				}
			})
		}
	}
}

func TestANodeThatKeepsFailingIsGivenUp(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	n := fakenode.Start(t, &fakenode.Node{OnClaim: func(context.Context, *nodeapi.ClaimRequest) error {
		calls.Add(1)
		return connect.NewError(connect.CodeInternal, errors.New("/var/lib/secret: no space left"))
	}})
	r := newReplica(t, s0test.Postgres(t), n)
	slots(t, n, 10, r)
	_, err := r.Claim(t.Context(), request())
	if e := errdefs.From(err); e.Kind != errdefs.Unavailable || e.RetryAfter <= 0 || e.Message != "the sandbox could not be started" {
		t.Fatalf("%v", err)
	}
	if got := calls.Load(); got > 3 {
		t.Errorf("asked a broken node %d times", got)
	}
	agree(t, r, n)
}

// R6: a claim that fails says why, and so does the next one: what it took is free by then.
func TestAFailedClaimGivesItsVolumesBack(t *testing.T) {
	t.Parallel()
	for name, free := range map[string]int{"warm": 3, "cold": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var fails atomic.Bool
			fails.Store(true)
			n := fakenode.Start(t, &fakenode.Node{Volumes: &fakenode.VolumeStore{Name: "store"}, OnClaim: func(context.Context, *nodeapi.ClaimRequest) error {
				if fails.Load() {
					return connect.NewError(connect.CodeUnavailable, errors.New("the store is away"))
				}
				return nil
			}})
			r := newReplica(t, s0test.Postgres(t), n)
			slots(t, n, free, r)
			req := request()
			v, err := r.volumes.Create(t.Context(), volumes.CreateRequest{TeamID: req.TeamID, UserID: req.UserID, Backend: nodeapi.BackendS0FS})
			if err != nil {
				t.Fatal(err)
			}
			req.Mounts = []store.MountWant{{Volume: v.ID, Point: "/data"}}
			for range 3 {
				if _, err := r.Claim(t.Context(), req); !errdefs.Is(err, errdefs.Unavailable) || errdefs.From(err).Message != "the sandbox could not be started" {
					t.Errorf("%v", err)
				}
			}
			fails.Store(false)
			sb, err := r.Claim(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			if has, err := r.store.Mounts(t.Context(), req.TeamID, sb.ID); err != nil || len(has) != 1 {
				t.Errorf("it has %v, %v", has, err)
			}
			if _, err := r.Claim(t.Context(), req); !errdefs.Is(err, errdefs.Conflict) {
				t.Errorf("another one: %v", err)
			}
			agree(t, r, n)
		})
	}
}

// X12: the answer to a cold start is lost with its node's noded. What the claim has got
// there is given up, though nobody has heard of its id.
func TestX12_ALostColdStartIsGivenUp(t *testing.T) {
	t.Parallel()
	n := fakenode.Start(t, &fakenode.Node{AfterClaim: func(context.Context, *nodeapi.ClaimRequest) error {
		return connect.NewError(connect.CodeUnavailable, errors.New("connection reset"))
	}})
	r := newReplica(t, s0test.Postgres(t), n)
	slots(t, n, 0, r)
	_, err := r.Claim(t.Context(), request())
	if e := errdefs.From(err); e.Kind != errdefs.Unavailable {
		t.Fatalf("%v", err)
	}
	agree(t, r, n)
	if len(n.Deleted()) != 1 {
		t.Errorf("given up: %v", n.Deleted())
	}
}

func TestG05_AClientThatIsGoneLeavesNoHalf(t *testing.T) {
	t.Parallel()
	ctx, gone := context.WithCancel(t.Context())
	n := fakenode.Start(t, &fakenode.Node{OnClaim: func(context.Context, *nodeapi.ClaimRequest) error {
		gone()
		return nil
	}})
	r := newReplica(t, s0test.Postgres(t), n)
	slots(t, n, 1, r)
	if _, err := r.Claim(ctx, request()); err != nil {
		t.Fatalf("a claim that was begun must be finished: %v", err)
	}
	agree(t, r, n)
}

func TestA16_OneKeyOneSandbox(t *testing.T) {
	t.Parallel()
	n := fakenode.Start(t, &fakenode.Node{})
	dsn := s0test.Postgres(t)
	replicas := []*replica{newReplica(t, dsn, n), newReplica(t, dsn, n)}
	slots(t, n, 20, replicas...)
	req := request()
	req.Key = "the key"
	var mu sync.Mutex
	ids := map[sandbox.ID]bool{}
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			sb, err := replicas[i%2].Claim(t.Context(), req)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			ids[sb.ID] = true
			mu.Unlock()
		})
	}
	wg.Wait()
	if len(ids) != 1 {
		t.Fatalf("one key gave %d sandboxes", len(ids))
	}
	for _, r := range replicas {
		r.Wait()
	}
	agree(t, replicas[0], n)
	other := req
	other.Config.EnvVars = map[string]string{"A": "1"}
	if _, err := replicas[0].Claim(t.Context(), other); !errdefs.Is(err, errdefs.Unprocessable) {
		t.Errorf("the same key with another body: %v", err)
	}
	foreign := req
	foreign.TeamID = uuid.New()
	sb, err := replicas[0].Claim(t.Context(), foreign)
	if err != nil || ids[sb.ID] {
		t.Errorf("the same key of another team: %s %v", sb.ID, err)
	}
}

// A 201 means that the sandbox serves: a key whose sandbox does not any more is no
// way to get one.
func TestA16_AKeyWhoseSandboxHasEndedIsAConflict(t *testing.T) {
	t.Parallel()
	n := fakenode.Start(t, &fakenode.Node{})
	r := newReplica(t, s0test.Postgres(t), n)
	for name, end := range map[string]func(sb store.Sandbox) error{
		"failed": func(sb store.Sandbox) error {
			_, err := r.store.FailSandbox(t.Context(), sb.TeamID, sb, 0, "it ended")
			return err
		},
		"terminating": func(sb store.Sandbox) error {
			_, err := r.store.BeginDelete(t.Context(), sb.TeamID, sb.ID, "deleted")
			return err
		},
		"deleted": func(sb store.Sandbox) error {
			_, err := r.store.BeginDelete(t.Context(), sb.TeamID, sb.ID, "deleted")
			return errors.Join(err, r.store.FinishDelete(t.Context(), sb.TeamID, sb.ID, sb.ClaimID))
		},
	} {
		req := request()
		req.Key = name
		sb, err := r.Claim(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := r.Claim(t.Context(), req); err != nil || again.ID != sb.ID {
			t.Errorf("while it runs: %s, %v", again.ID, err)
		}
		if err := end(sb); err != nil {
			t.Fatal(err)
		}
		if again, err := r.Claim(t.Context(), req); !errdefs.Is(err, errdefs.Conflict) {
			t.Errorf("%s: %s of status %q, %v", name, again.ID, again.Status, err)
		}
	}
}
