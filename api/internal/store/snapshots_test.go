package store_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

// A15: however many snapshots a team begins at once, it makes no more than it may have, or
// may make at a time. Those whose lease is over don't count.
func TestA15_SnapshotsBegunAtOnce(t *testing.T) {
	t.Parallel()
	s, conn := open(t)
	u, team := bootstrap(t, s)
	sb := insert(t, s, newSandbox(t, team))
	begin := func(team uuid.UUID) error {
		return s.BeginSnapshot(t.Context(), store.NewSnapshot{ID: uuid.New(), TeamID: team, UserID: u.ID, Source: sb, Lease: time.Hour})
	}
	for name, c := range map[string]struct {
		state     string
		had, room int
	}{
		"as many as it may have":           {"ready", 998, 2},
		"as many as it may make at a time": {"creating", 14, 2},
		"some that have failed":            {"failed", 14, 16},
	} {
		run(t, conn, "DELETE FROM rootfs_snapshots")
		run(t, conn, `INSERT INTO rootfs_snapshots (id, team_id, user_id, sandbox_id, template_id, node, state, name, description, lease_until)
			SELECT gen_random_uuid(), $1, $2, $3, 't', 'n1', CASE $4 WHEN 'ready' THEN 'ready' ELSE 'creating' END, '', '',
				CASE $4 WHEN 'creating' THEN now() + interval '1 hour' WHEN 'failed' THEN now() END FROM generate_series(1, $5::int)`,
			team, u.ID, sb.ID, c.state, c.had)
		var begun atomic.Int32
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if err := begin(team); err == nil {
					begun.Add(1)
				} else if !errdefs.Is(err, errdefs.Exhausted) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if int(begun.Load()) != c.room {
			t.Errorf("%s: %d were begun where there was room for %d", name, begun.Load(), c.room)
		}
		if err := begin(uuid.New()); err != nil {
			t.Errorf("%s: another team's: %v", name, err)
		}
	}
}
