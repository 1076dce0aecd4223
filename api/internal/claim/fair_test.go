package claim_test

import (
	"testing"

	"s0.run/api/internal/fakenode"
	"s0.run/api/internal/templates"
	"s0.run/internal/s0test"
)

// D09: one team's claims leave another a part of the pool that both take from.
func TestD09_OneTeamDoesNotEmptyASharedPool(t *testing.T) {
	t.Parallel()
	n := fakenode.Start(t, &fakenode.Node{})
	r := newReplica(t, s0test.Postgres(t), n)
	if err := (templates.Builtins{Images: map[string]string{"default": "image"}, PoolMin: 8, PoolMax: 8}).Put(t.Context(), r.store); err != nil {
		t.Fatal(err)
	}
	if err := r.catalog.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.poolKey = defaultTemplate(t, r.catalog).PoolKey
	free := map[string]bool{}
	for _, id := range slots(t, n, 8, r) {
		free[id] = true
	}
	greedy, modest := request(), request()
	warm := 0
	claim := func(greedily bool) {
		t.Helper()
		req := modest
		if greedily {
			req = greedy
		}
		sb, err := r.Claim(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if free[string(sb.ID)] {
			warm++
		}
	}
	claim(false)
	for range 20 {
		claim(true)
	}
	if n.Free() != 4 || warm != 4 {
		t.Errorf("%d of 8 slots are left, %d claims were warm", n.Free(), warm)
	}
	for range 2 {
		claim(false)
	}
	if n.Free() != 2 || warm != 6 {
		t.Errorf("the modest team's claims were not warm: %d slots are left", n.Free())
	}
	r.Wait()
	agree(t, r, n)
}
