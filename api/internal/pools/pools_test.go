package pools

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"s0.run/api/internal/fakenode"
	"s0.run/api/internal/nodes"
	"s0.run/api/internal/placement"
	"s0.run/api/internal/store"
	"s0.run/api/internal/templates"
	"s0.run/internal/nodeapi"
	"s0.run/internal/s0test"
	"s0.run/internal/sandbox"
)

func TestSharesAddUp(t *testing.T) {
	t.Parallel()
	for total := range int32(20) {
		for n := 1; n < 6; n++ {
			sum, low, high := uint32(0), uint32(1000), uint32(0)
			for i := range n {
				s := share(total, i, n)
				sum, low, high = sum+s, min(low, s), max(high, s)
			}
			if sum != uint32(total) || high-low > 1 {
				t.Errorf("%d over %d nodes: %d, parts of %d to %d", total, n, sum, low, high)
			}
		}
	}
}

// One team's many templates leave nobody else without their first.
func TestNoTeamFillsANodesPools(t *testing.T) {
	t.Parallel()
	greedy, modest := uuid.New(), uuid.New()
	of := func(team *uuid.UUID, maxIdle int32) *templates.Template {
		return &templates.Template{Row: store.Template{TeamID: team}, MaxIdle: maxIdle, PoolKey: "k", Slot: sandbox.Spec{
			RuntimeClass: sandbox.GVisor, Env: map[string]string{"BIG": strings.Repeat("x", 200<<10)},
		}}
	}
	var all []*templates.Template
	for range 100 {
		all = append(all, of(&greedy, 1))
	}
	first, public := of(&modest, 1), of(nil, 1)
	all = append(all, of(&modest, 0), first, public)
	list := inTurns(all)
	if len(list) != 102 || list[0] != public || list[2] != first {
		t.Fatalf("%d templates, the public one first and the modest team's third: %v", len(list), list[:3])
	}
	wire := pools(list, []placement.Node{{Classes: []sandbox.RuntimeClass{sandbox.GVisor}}}, 0)
	n := fitting(wire)
	if size := proto.Size(&nodeapi.SetPoolsRequest{Pools: wire[:n]}); n < 30 || size > nodeapi.MaxSetPoolsBytes {
		t.Errorf("%d pools in %d bytes", n, size)
	}
	if n := fitting(make([]*nodeapi.Pool, nodeapi.MaxPools+1)); n != nodeapi.MaxPools {
		t.Errorf("%d pools at once", n)
	}
}

// wanted is the key of the one pool that is wanted.
func wanted(c *templates.Catalog) string { return inTurns(c.All())[0].PoolKey }

func TestNodesKeepWhatTemplatesSay(t *testing.T) {
	t.Parallel()
	s, err := store.Open(t.Context(), s0test.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	n1 := fakenode.Start(t, &fakenode.Node{Name: "n1"})
	n2 := fakenode.Start(t, &fakenode.Node{Name: "n2"})
	log := slog.New(slog.DiscardHandler)
	table, catalog := placement.New(), templates.NewCatalog(s, "local.test", log)
	put := func(image string, minIdle, maxIdle int) {
		t.Helper()
		b := templates.Builtins{Images: map[string]string{"default": image}, PoolMin: minIdle, PoolMax: maxIdle}
		if err := b.Put(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		if err := catalog.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	put("image:1", 3, 3)

	var k *Keeper
	set := nodes.New(nodes.Config{
		Sockets: []string{n1.Socket, n2.Socket}, Cluster: "local", Table: table, Log: log,
		OnSync: func(string) { k.Kick() }, OnEnd: func(string, sandbox.ID) {},
	})
	k = New(Config{Catalog: catalog, Table: table, Nodes: set, Log: log})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 2)
	go func() { done <- set.Run(ctx) }()
	go func() { done <- k.Run(ctx) }()
	defer func() {
		stop()
		<-done
		<-done
	}()

	fakenode.Eventually(t, "three slots on two nodes", func() bool { return table.Free() == 3 && n1.Free() == 2 && n2.Free() == 1 })
	pools, _ := n1.Pools()
	for key, p := range pools {
		if p.GetMaxIdle() != 2 || p.GetSpec().GetImage() != "image:1" || key != wanted(catalog) {
			t.Errorf("%s: %v", key, p)
		}
		if env := p.GetSpec().GetEnv(); env["SANDBOX0_APP_DOMAIN"] != "local.test" {
			t.Errorf("what every sandbox is told: %v", env)
		}
	}

	put("image:2", 1, 1)
	k.Kick()
	fakenode.Eventually(t, "slots of the old spec drain", func() bool { return table.Free() == 1 && n1.Free() == 1 && n2.Free() == 0 })

	_, told := n1.Pools()
	n1.Stop()
	fakenode.Eventually(t, "the loss is seen", func() bool { return !table.IsSynced("n1") })
	n1.Listen(t)
	fakenode.Eventually(t, "a node that comes back is told again", func() bool {
		_, again := n1.Pools()
		return again > told
	})
}
