package claim_test

import (
	"testing"

	"github.com/google/uuid"

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
