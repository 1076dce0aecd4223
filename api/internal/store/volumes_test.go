package store_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

func newVolume(t *testing.T, s *store.Store, team uuid.UUID) store.Volume {
	t.Helper()
	n := store.NewVolume{
		ID: uuid.New(), TeamID: team, UserID: uuid.New(), Backend: "s0fs", AccessMode: store.ReadWriteOnce, Store: "s", Node: "n1", Lease: time.Hour,
	}
	if _, err := s.BeginVolume(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	v, err := s.FinishVolume(t.Context(), n.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// take gives a volume to a claim.
func take(t *testing.T, s *store.Store, v store.Volume, claim uuid.UUID) {
	t.Helper()
	h := store.Holder{Team: v.TeamID, Claim: claim, Node: v.Node}
	if _, err := s.TakeVolumes(t.Context(), h, []store.MountWant{{Volume: v.ID, Point: "/v"}}, time.Hour); err != nil {
		t.Fatal(err)
	}
}

// mounted makes a sandbox that has a volume.
func mounted(t *testing.T, s *store.Store, v store.Volume) store.NewSandbox {
	t.Helper()
	n := newSandbox(t, v.TeamID)
	n.Mounts = 1
	take(t, s, v, n.ClaimID)
	insert(t, s, n)
	return n
}

// A holder's node is chosen while nobody else changes the volumes. Who refuses to choose, or
// loses the database then, has taken nothing, and whoever comes next waits for nobody.
func TestVolumesAreTakenWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	v := newVolume(t, s, uuid.New())
	refused := errors.New("refused on purpose")
	for name, choose := range map[string]func() error{
		"refused": func() error { return refused },
		"cut off": func() error {
			run(t, conn, "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'")
			return nil
		},
	} {
		h := store.Holder{Team: v.TeamID, Claim: uuid.New(), Choose: func(all []store.Volume) (string, error) {
			if len(all) != 1 || all[0].ID != v.ID || all[0].Node != v.Node {
				t.Errorf("%s: chosen by %+v", name, all)
			}
			var free bool
			const look = "SELECT EXISTS (SELECT FROM volumes WHERE id = $1 FOR UPDATE SKIP LOCKED)"
			if err := conn.QueryRow(t.Context(), look, v.ID).Scan(&free); err != nil || free {
				t.Errorf("%s: somebody else may change the volume: %t, %v", name, free, err)
			}
			return v.Node, choose()
		}}
		want := []store.MountWant{{Volume: v.ID, Point: "/v"}}
		if held, err := s.TakeVolumes(t.Context(), h, want, time.Hour); len(held) != 0 || !errors.Is(err, refused) && !errdefs.Is(err, errdefs.Unavailable) {
			t.Errorf("%s: %v, %v", name, held, err)
		}
		h.Choose, h.Node = nil, v.Node
		held, err := s.TakeVolumes(t.Context(), h, want, time.Hour)
		if err != nil || len(held) != 1 || held[0].Volume.Epoch != v.Epoch+1 || held[0].Mount.VolumeID != v.ID {
			t.Fatalf("%s: the next one has %+v, %v", name, held, err)
		}
		v = held[0].Volume
		if err := s.FreeVolumes(t.Context(), h.Claim); err != nil {
			t.Fatal(err)
		}
	}
}

// Of a volume that its node had last, and nobody has now, a claim is given what TakeVolumes
// gives; of any other nothing, and nothing changes.
func TestAVolumeIsTakenAtHomeOrNotAtAll(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	v := newVolume(t, s, uuid.New())
	take := func(of store.Volume, h store.Holder) (store.Held, bool) {
		t.Helper()
		held, ok, err := s.TakeVolumeAtHome(t.Context(), h, store.MountWant{Volume: of.ID, Point: "/v", ReadOnly: true}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return held, ok
	}
	holder := func() store.Holder { return store.Holder{Team: v.TeamID, Claim: uuid.New(), Node: v.Node} }
	foreign, elsewhere := holder(), holder()
	foreign.Team, elsewhere.Node = uuid.New(), "n2"
	for name, h := range map[string]store.Holder{"another team": foreign, "another node": elsewhere} {
		if _, ok := take(v, h); ok {
			t.Errorf("%s was given it", name)
		}
	}
	if _, ok := take(store.Volume{ID: uuid.New()}, holder()); ok {
		t.Error("one that is not there was given")
	}
	shared := newVolume(t, s, v.TeamID)
	run(t, conn, "UPDATE volumes SET access_mode = 'ROX' WHERE id = $1", shared.ID)
	if _, ok := take(shared, holder()); ok {
		t.Error("one that many read was given")
	}

	h := holder()
	held, ok := take(v, h)
	if !ok || held.Volume.Epoch != v.Epoch+1 || held.Volume.Node != v.Node {
		t.Fatalf("it was given %+v, %v", held, ok)
	}
	var is store.Mount
	m := &held.Mount
	row := conn.QueryRow(t.Context(), "SELECT id, volume_id, team_id, claim_id, mount_point, read_only, created_at FROM volume_mounts WHERE lease_until > now()")
	if err := row.Scan(&is.ID, &is.VolumeID, &is.TeamID, &is.ClaimID, &is.Point, &is.ReadOnly, &is.CreatedAt); err != nil || !is.CreatedAt.Equal(m.CreatedAt) {
		t.Fatalf("its mount is %+v, not %+v: %v", is, *m, err)
	}
	if is.CreatedAt = m.CreatedAt; is != *m {
		t.Errorf("its mount is %+v, not %+v", is, *m)
	}
	if _, ok := take(v, holder()); ok {
		t.Error("somebody has it already")
	}
	run(t, conn, "UPDATE volume_mounts SET lease_until = now() WHERE claim_id = $1", h.Claim)
	if _, ok := take(v, holder()); ok {
		t.Error("it may be becoming a sandbox's")
	}
	if now, err := s.Volume(t.Context(), v.TeamID, v.ID); err != nil || now.Epoch != v.Epoch+1 {
		t.Errorf("it is at epoch %d, %v", now.Epoch, err)
	}
}

// Who waits for a volume's row sees who had that.
func TestAVolumeThatIsBeingTakenIsNotTakenAtHome(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	v := newVolume(t, s, uuid.New())
	first := beside(t, conn, []any{v.ID, v.TeamID},
		"SELECT FROM volumes WHERE id = $1 AND team_id = $2 FOR UPDATE",
		`INSERT INTO volume_mounts (id, volume_id, team_id, claim_id, mount_point, read_only, lease_until)
			VALUES (gen_random_uuid(), $1, $2, gen_random_uuid(), '/v', false, now() + interval '1 hour')`)
	var ok bool
	second := meanwhile(t, conn, 1, func() (err error) {
		h := store.Holder{Team: v.TeamID, Claim: uuid.New(), Node: v.Node}
		_, ok, err = s.TakeVolumeAtHome(t.Context(), h, store.MountWant{Volume: v.ID, Point: "/v"}, time.Hour)
		return err
	})
	commit(t, first)
	if err := <-second; err != nil || ok {
		t.Errorf("two have it: %v, %v", ok, err)
	}
}

// A claim's volumes are its sandbox's with its row, or there is neither.
func TestARowComesWithItsVolumes(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	v := newVolume(t, s, uuid.New())
	has := func(sb store.NewSandbox, want int) {
		t.Helper()
		if all, err := s.Mounts(t.Context(), v.TeamID, sb.ID); err != nil || len(all) != want {
			t.Errorf("%s has %v, %v, want %d", sb.ID, all, err, want)
		}
	}
	first := mounted(t, s, v)
	if again, err := s.InsertSandbox(t.Context(), first); err != nil || again.ClaimID != first.ClaimID {
		t.Errorf("repeated: %+v, %v", again, err)
	}
	has(first, 1)

	other := newVolume(t, s, v.TeamID)
	second := newSandbox(t, v.TeamID)
	second.ID, second.Mounts = first.ID, 1
	take(t, s, other, second.ClaimID)
	if _, err := s.InsertSandbox(t.Context(), second); !errors.Is(err, store.ErrIDTaken) {
		t.Errorf("the row of another claim: %v", err)
	}
	has(first, 1)

	second.ID = newSandbox(t, v.TeamID).ID
	run(t, conn, "UPDATE volume_mounts SET lease_until = now() WHERE claim_id = $1", second.ClaimID)
	if _, err := s.InsertSandbox(t.Context(), second); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("volumes that are free again: %v", err)
	}
	if _, err := s.AnySandbox(t.Context(), second.ID); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("its row: %v", err)
	}
}

// A volume is not deleted under a sandbox whose claim is being stored as its lease runs out.
func TestAVolumeThatIsBecomingASandboxsStays(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	v := newVolume(t, s, uuid.New())
	sb := newSandbox(t, v.TeamID)
	insert(t, s, sb)
	take(t, s, v, sb.ClaimID)
	run(t, conn, "UPDATE volume_mounts SET lease_until = now() WHERE claim_id = $1", sb.ClaimID)
	bound := beside(t, conn, []any{sb.ClaimID, sb.ID}, "UPDATE volume_mounts SET sandbox_id = $2, lease_until = NULL WHERE claim_id = $1")
	ended := meanwhile(t, conn, 1, func() error { _, err := s.EndVolume(t.Context(), v.TeamID, v.ID, false, time.Hour); return err })
	commit(t, bound)
	if err := <-ended; !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("it was deleted: %v", err)
	}
	if has, err := s.Mounts(t.Context(), v.TeamID, sb.ID); err != nil || len(has) != 1 {
		t.Errorf("the sandbox has %v, %v", has, err)
	}
}

// A sandbox that is resumed does not get a volume that was unmounted meanwhile and is
// another's.
func TestAResumeTakesNoVolumeThatIsAnothersByThen(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	v := newVolume(t, s, uuid.New())
	sb := mounted(t, s, v)
	other := beside(t, conn, []any{v.ID},
		"SELECT FROM volumes WHERE id = $1 FOR UPDATE",
		"DELETE FROM volume_mounts WHERE volume_id = $1",
		"UPDATE volumes SET epoch = epoch + 1 WHERE id = $1")
	var held []store.Held
	resumed := meanwhile(t, conn, 1, func() (err error) {
		held, err = s.RetakeVolumes(t.Context(), store.Holder{Team: v.TeamID, Claim: sb.ClaimID, Sandbox: sb.ID, Node: v.Node}, true)
		return err
	})
	commit(t, other)
	if err := <-resumed; err != nil || len(held) != 0 {
		t.Errorf("it was given %+v, %v", held, err)
	}
}

// Who counts what volumes hold locks them as who takes several does.
func TestVolumesAreCountedInTheOrderInWhichTheyAreTaken(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	team := uuid.New()
	volumes := []store.Volume{newVolume(t, s, team), newVolume(t, s, team)}
	slices.SortFunc(volumes, func(a, b store.Volume) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	first, second := volumes[0], volumes[1]
	taking := beside(t, conn, []any{first.ID}, "SELECT FROM volumes WHERE id = $1 FOR UPDATE")
	counted := meanwhile(t, conn, 1, func() error {
		return s.AddVolumeReadings(t.Context(), "n1", []store.VolumeReading{{ID: second.ID, Bytes: 1}, {ID: first.ID, Bytes: 1}})
	})
	if _, err := taking.Exec(t.Context(), "SELECT FROM volumes WHERE id = $1 FOR UPDATE NOWAIT", second.ID); err != nil {
		t.Fatal(err)
	}
	commit(t, taking)
	if err := <-counted; err != nil {
		t.Error(err)
	}
}

// A15: a volume has no more replicas than it may, however many come at once.
func TestA15_ReplicasThatComeAtOnce(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	v := newVolume(t, s, uuid.New())
	if err := s.BeginSync(t.Context(), v.TeamID, v.ID); err != nil {
		t.Fatal(err)
	}
	const add = `INSERT INTO volume_sync_replicas (volume_id, id, display_name, platform, root_path, case_sensitive, unicode_insensitive, windows_compatible_paths, lease_until)
		SELECT $1, 'r' || n, '', '', '', true, false, false, now() FROM generate_series($2::int, $3::int) n`
	run(t, conn, add, v.ID, 1, 63)
	last := beside(t, conn, []any{v.ID}, "SELECT FROM volume_syncs WHERE volume_id = $1 FOR UPDATE")
	if _, err := last.Exec(t.Context(), add, v.ID, 64, 64); err != nil {
		t.Fatal(err)
	}
	put := meanwhile(t, conn, 1, func() error {
		_, err := s.PutSyncReplica(t.Context(), v.TeamID, v.ID, store.SyncReplica{ID: "new"}, time.Hour)
		return err
	})
	commit(t, last)
	if err := <-put; !errdefs.Is(err, errdefs.Exhausted) {
		t.Errorf("there is room for one more than there may be: %v", err)
	}
	if _, err := s.PutSyncReplica(t.Context(), v.TeamID, v.ID, store.SyncReplica{ID: "r64"}, time.Hour); err != nil {
		t.Errorf("one that it has: %v", err)
	}
}

// A deleted team is remembered until what it has left is gone, however long its node is
// away.
func TestADeletedTeamLeavesNothing(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	v := newVolume(t, s, uuid.New())
	sb := mounted(t, s, v)
	run(t, conn, "INSERT INTO deleted_teams (team_id, slug, owner_id, deleted_at) VALUES ($1, 's', $2, now() - interval '1 day')", v.TeamID, uuid.New())
	purge := func(want int) {
		t.Helper()
		var left int
		err := s.PurgeDeletedTeams(t.Context())
		if err == nil {
			err = conn.QueryRow(t.Context(), "SELECT count(*) FROM deleted_teams").Scan(&left)
		}
		if err != nil || left != want {
			t.Fatalf("%d deleted teams are remembered, want %d: %v", left, want, err)
		}
	}
	purge(1)
	if ended, err := s.EndStrays(t.Context(), 10); err != nil || len(ended) != 1 || ended[0].ID != sb.ID {
		t.Fatalf("ended are %+v, %v", ended, err)
	}
	if due, err := s.LeaseVolumes(t.Context(), time.Hour, 10); err != nil || len(due) != 0 {
		t.Fatalf("a volume goes under its sandbox: %+v, %v", due, err)
	}
	if err := s.FinishDelete(t.Context(), v.TeamID, sb.ID, sb.ClaimID); err != nil {
		t.Fatal(err)
	}
	purge(1)
	if due, err := s.LeaseVolumes(t.Context(), time.Hour, 10); err != nil || len(due) != 1 {
		t.Fatalf("due are %+v, %v", due, err)
	}
	if gone, err := s.RemoveVolume(t.Context(), v.ID, v.Nodes); err != nil || !gone {
		t.Fatalf("it is gone: %v, %v", gone, err)
	}
	purge(0)
}
