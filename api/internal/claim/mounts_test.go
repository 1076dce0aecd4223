package claim_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/claim"
	"s0.run/api/internal/fakenode"
	"s0.run/api/internal/store"
	"s0.run/api/internal/volumes"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/s0test"
)

// A claim whose volume can't be had has asked no node, and the slot that it would have had is
// another's.
func TestAClaimWithoutItsVolumeTakesNoSlot(t *testing.T) {
	t.Parallel()
	n := fakenode.Start(t, &fakenode.Node{Volumes: &fakenode.VolumeStore{Name: "store"}})
	r := newReplica(t, s0test.Postgres(t), n)
	slots(t, n, 2, r)
	req := request()
	v, err := r.volumes.Create(t.Context(), volumes.CreateRequest{TeamID: req.TeamID, UserID: req.UserID, Backend: nodeapi.BackendS0FS})
	if err != nil {
		t.Fatal(err)
	}
	req.Mounts = []store.MountWant{{Volume: v.ID, Point: "/data"}}
	if _, err := r.Claim(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	unknown := req
	unknown.Mounts = []store.MountWant{{Volume: uuid.New(), Point: "/data"}}
	for want, with := range map[errdefs.Kind]claim.Request{errdefs.Conflict: req, errdefs.NotFound: unknown} {
		for range 3 {
			if _, err := r.Claim(t.Context(), with); !errdefs.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
		}
	}
	if free := r.table.Free(); free != 1 {
		t.Errorf("%d slots are free", free)
	}
	agree(t, r, n)
}

// A claim comes to its volume, also when another replica had it moved to another node since:
// that it was elsewhere before costs nothing but the time to look.
func TestAClaimComesToItsVolume(t *testing.T) {
	t.Parallel()
	dsn := s0test.Postgres(t)
	nodes, kept := map[string]*fakenode.Node{}, &fakenode.VolumeStore{Name: "store"}
	for _, name := range []string{"n1", "n2"} {
		nodes[name] = fakenode.Start(t, &fakenode.Node{Name: name, Volumes: kept, NoRefill: true})
	}
	r := newReplica(t, dsn, nodes["n1"], nodes["n2"])
	const each = 8
	for _, n := range nodes {
		n.AddSlots(r.poolKey, each)
	}
	fakenode.Eventually(t, "the slots are seen", func() bool { return r.table.Free() == each*len(nodes) })
	req := request()
	v, err := r.volumes.Create(t.Context(), volumes.CreateRequest{TeamID: req.TeamID, UserID: req.UserID, Backend: nodeapi.BackendS0FS})
	if err != nil {
		t.Fatal(err)
	}
	req.Mounts = []store.MountWant{{Volume: v.ID, Point: "/data"}}
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	all := []string{v.Node, v.Node, "n1", "n2", "n2", "n1"}
	for i, at := range all {
		if _, err := conn.Exec(t.Context(), "UPDATE volumes SET node = $1", at); err != nil {
			t.Fatal(err)
		}
		sb, err := r.Claim(t.Context(), req)
		if err != nil || sb.Node != at {
			t.Fatalf("claim %d is at %q, %v, want %s", i, sb.Node, err, at)
		}
		if _, err := conn.Exec(t.Context(), "DELETE FROM volume_mounts"); err != nil {
			t.Fatal(err)
		}
	}
	if free := r.table.Free(); free != each*len(nodes)-len(all) {
		t.Errorf("%d slots are free", free)
	}
}

// A connection that is lost while a claim's volumes are taken, whether they were or not, costs
// no claim and leaves no volume taken.
func TestX36_ConnectionCutWhileVolumesAreTaken(t *testing.T) {
	t.Parallel()
	for _, after := range []bool{false, true} {
		for _, mounts := range []int{1, 2} { // at home, and in two round trips
			t.Run(fmt.Sprintf("after=%v mounts=%d", after, mounts), func(t *testing.T) {
				t.Parallel()
				n := fakenode.Start(t, &fakenode.Node{Volumes: &fakenode.VolumeStore{Name: "store"}, NoRefill: true})
				proxy, dsn := newCutter(t, s0test.Postgres(t), "/cut-here")
				r := newReplica(t, dsn, n)
				slots(t, n, 2, r)
				req := request()
				for i := range mounts {
					v, err := r.volumes.Create(t.Context(), volumes.CreateRequest{TeamID: req.TeamID, UserID: req.UserID, Backend: nodeapi.BackendS0FS})
					if err != nil {
						t.Fatal(err)
					}
					req.Mounts = append(req.Mounts, store.MountWant{Volume: v.ID, Point: fmt.Sprint("/cut-here/", i)})
				}
				proxy.arm(after, 1)
				sb, err := r.Claim(t.Context(), req)
				if err != nil || proxy.made() != 1 {
					t.Fatalf("%d cuts, %v", proxy.made(), err)
				}
				has, err := r.store.Mounts(t.Context(), req.TeamID, sb.ID)
				if err != nil || len(has) != mounts || r.table.Free() != 1 {
					t.Errorf("it has %d volumes, and %d slots are free: %v", len(has), r.table.Free(), err)
				}
				agree(t, r, n)
			})
		}
	}
}
