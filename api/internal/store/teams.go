package store

import (
	"context"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/audit"
	"s0.run/internal/errdefs"
)

const (
	// maxOwned bounds the teams that one user can make.
	maxOwned = 20
	// maxTeams bounds the teams that one user can be in.
	maxTeams = 100
	// strayAge is how long a deleted team may still leave something behind: a claim
	// that was let in before ends long before that.
	strayAge = 2 * time.Hour
)

// Team is a tenant.
type Team struct {
	ID           uuid.UUID
	Name         string
	Slug         string
	OwnerID      uuid.UUID
	HomeRegionID string
	CreatedAt    time.Time
	UpdatedAt    time.Time
}

const teamColumns = "t.id, t.name, t.slug, t.owner_id, t.home_region_id, t.created_at, t.updated_at"

// slugTaken names the one thing of a team that no other can have.
func slugTaken(err error, slug string) error {
	if violates(err, "teams_slug_key") {
		return errdefs.New(errdefs.Conflict, "the slug %q is taken", slug)
	}
	return err
}

// Teams reads the teams of a user.
func (s *Store) Teams(ctx context.Context, user uuid.UUID) ([]Team, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+teamColumns+` FROM team_members m JOIN teams t ON t.id = m.team_id
		WHERE m.user_id = $1 ORDER BY t.created_at, t.id`, user)
	teams, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Team])
	return teams, classify(err, "reading a user's teams")
}

// Team reads one team.
func (s *Store) Team(ctx context.Context, team uuid.UUID) (Team, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+teamColumns+" FROM teams t WHERE t.id = $1", team)
	t, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Team])
	return t, found(err, "reading a team", "team")
}

// TeamExists fails with NotFound for a team that does not exist.
func (s *Store) TeamExists(ctx context.Context, team uuid.UUID) error {
	var one int
	err := s.pool.QueryRow(ctx, "SELECT 1 FROM teams WHERE id = $1", team).Scan(&one)
	return found(err, "looking for a team", "team")
}

// CreateTeam makes a team whose owner and first admin the user is. A slug that is
// taken, or too many teams, is a conflict.
func (s *Store) CreateTeam(ctx context.Context, t Team) (created Team, err error) {
	err = s.inTx(ctx, "creating a team", func(ctx context.Context, tx pgx.Tx) error {
		created, err = createTeam(ctx, tx, t)
		return err
	})
	return created, err
}

// createTeam is CreateTeam within a transaction.
func createTeam(ctx context.Context, tx pgx.Tx, t Team) (Team, error) {
	owned, in, err := teamsOf(ctx, tx, t.OwnerID)
	if err != nil {
		return Team{}, err
	}
	if owned >= maxOwned || in >= maxTeams {
		return Team{}, errdefs.New(errdefs.Conflict, "you own %d teams and are in %d, and can have no more: delete or leave one first", owned, in)
	}
	rows, _ := tx.Query(ctx, `
		WITH t AS (
			INSERT INTO teams (name, slug, owner_id, home_region_id) VALUES ($1, $2, $3, $4) RETURNING *
		), m AS (
			INSERT INTO team_members (team_id, user_id, role) SELECT id, owner_id, 'admin' FROM t
		)
		SELECT `+teamColumns+` FROM t`, t.Name, t.Slug, t.OwnerID, t.HomeRegionID)
	created, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Team])
	audit.Resource(ctx, created.ID.String())
	return created, slugTaken(err, t.Slug)
}

// teamsOf counts a user's teams. Until tx ends the user gets no other: whoever
// gives him one counts first.
func teamsOf(ctx context.Context, tx pgx.Tx, user uuid.UUID) (owned, in int, err error) {
	if _, err := tx.Exec(ctx, "SELECT FROM users WHERE id = $1 FOR NO KEY UPDATE", user); err != nil {
		return 0, 0, err
	}
	err = tx.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM teams WHERE owner_id = $1), (SELECT count(*) FROM team_members WHERE user_id = $1)`, user).Scan(&owned, &in)
	return owned, in, err
}

// UpdateTeam changes what is not nil.
func (s *Store) UpdateTeam(ctx context.Context, team uuid.UUID, name, slug *string) (Team, error) {
	rows, _ := s.pool.Query(ctx, `
		UPDATE teams t SET name = coalesce($2, name), slug = coalesce($3, slug), updated_at = now()
		WHERE id = $1 RETURNING `+teamColumns, team, name, slug)
	t, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Team])
	if slug != nil {
		err = slugTaken(err, *slug)
	}
	return t, found(err, "changing a team", "team")
}

// TransferTeam makes another member the owner of the team that `from` owns. The
// new owner becomes an admin; the old one stays one.
func (s *Store) TransferTeam(ctx context.Context, team, from, to uuid.UUID) (t Team, err error) {
	err = s.inTx(ctx, "transferring a team", func(ctx context.Context, tx pgx.Tx) error {
		// Whoever is a member when this is locked stays one until tx ends.
		owner, err := lockTeam(ctx, tx, team)
		if err == nil && owner != from {
			return errdefs.New(errdefs.PermissionDenied, "insufficient permissions") // no longer
		}
		if err != nil {
			return err
		}
		tag, err := tx.Exec(ctx, `
			UPDATE team_members SET role = 'admin' WHERE team_id = $1 AND user_id = $2
			AND EXISTS (SELECT FROM users WHERE id = $2 AND disabled_at IS NULL)`, team, to)
		if err == nil && tag.RowsAffected() == 0 {
			return notFound("member")
		}
		if err != nil {
			return err
		}
		rows, _ := tx.Query(ctx, "UPDATE teams t SET owner_id = $2, updated_at = now() WHERE id = $1 RETURNING "+teamColumns, team, to)
		t, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Team])
		return err
	})
	return t, err
}

// ResourceCount is how many of something a team has.
type ResourceCount struct {
	Category string `json:"category"`
	Count    int    `json:"count"`
}

// blocking are the things that a team must be rid of before it goes, and retained
// those that stay for their time.
var (
	blocking = []struct{ category, count string }{
		{"sandboxes", "SELECT count(*) FROM sandboxes WHERE team_id = $1 AND deleted_at IS NULL"},
		{"templates", "SELECT count(*) FROM templates WHERE team_id = $1"},
	}
	retained = []struct{ category, count string }{
		{"sandbox_events", "SELECT count(*) FROM (SELECT FROM sandbox_events WHERE team_id = $1 LIMIT 10000) e"},
		{"audit_records", "SELECT count(*) FROM (SELECT FROM audit_records WHERE team_id = $1 LIMIT 10000) a"},
	}
)

const retentionPolicy = "What a team's sandboxes told and who changed what is kept for its usual time."

// DeleteTeam deletes a team that the user owns, with its members, keys and what
// else is only its. While it has resources that cost something it is a conflict
// whose details count them.
func (s *Store) DeleteTeam(ctx context.Context, team, owner uuid.UUID) error {
	return s.inTx(ctx, "deleting a team", func(ctx context.Context, tx pgx.Tx) error {
		var slug string
		err := tx.QueryRow(ctx, "SELECT slug FROM teams WHERE id = $1 AND owner_id = $2 FOR UPDATE", team, owner).Scan(&slug)
		if err != nil {
			return found(err, "deleting a team", "team")
		}
		if err := refuseInUse(ctx, tx, team); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "INSERT INTO deleted_teams (team_id, slug, owner_id) VALUES ($1, $2, $3)", team, slug, owner); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, "DELETE FROM teams WHERE id = $1", team)
		return err
	})
}

// refuseInUse fails with what is in the way of deleting a team.
func refuseInUse(ctx context.Context, tx pgx.Tx, team uuid.UUID) error {
	inTheWay, err := countResources(ctx, tx, team, blocking)
	if err != nil || len(inTheWay) == 0 {
		return err
	}
	kept, err := countResources(ctx, tx, team, retained)
	if err != nil {
		return err
	}
	var names []string
	for _, r := range inTheWay {
		names = append(names, r.Category)
	}
	return errdefs.New(errdefs.Conflict, "the team still has %s: delete them first", strings.Join(names, " and ")).WithDetails(map[string]any{
		"team_id": team.String(), "blocking_resources": inTheWay, "retained_resources": kept, "retention_policy": retentionPolicy,
	})
}

// countResources gives the categories of which there are any.
func countResources(ctx context.Context, tx pgx.Tx, team uuid.UUID, of []struct{ category, count string }) ([]ResourceCount, error) {
	list := []ResourceCount{}
	for _, r := range of {
		var n int
		if err := tx.QueryRow(ctx, r.count, team).Scan(&n); err != nil {
			return nil, err
		}
		if n > 0 {
			list = append(list, ResourceCount{r.category, n})
		}
	}
	return list, nil
}

// EndStrays decides the end of sandboxes whose team was deleted while they were
// claimed.
func (s *Store) EndStrays(ctx context.Context, limit int) ([]Sandbox, error) {
	rows, _ := s.pool.Query(ctx, `
		UPDATE sandboxes SET status = 'terminating', reason = 'its team was deleted', updated_at = now()
		WHERE id IN (
			SELECT s.id FROM deleted_teams d JOIN sandboxes s ON s.team_id = d.team_id
			WHERE s.deleted_at IS NULL AND s.status <> 'terminating'
			LIMIT $1 FOR UPDATE OF s SKIP LOCKED)
		RETURNING `+sandboxColumns, limit)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Sandbox])
	return list, classify(err, "ending the sandboxes of deleted teams")
}

// PurgeDeletedTeams forgets teams that can leave nothing behind any more and have left
// nothing: what is on a node that is away is removed when that is back, because its team
// is known to be deleted.
func (s *Store) PurgeDeletedTeams(ctx context.Context) error {
	return s.purge(ctx, "purging deleted teams", `DELETE FROM deleted_teams WHERE team_id IN (
		SELECT team_id FROM deleted_teams d WHERE deleted_at < now() - $1::interval
		AND NOT EXISTS (SELECT FROM sandboxes s WHERE s.team_id = d.team_id AND s.deleted_at IS NULL)
		AND NOT EXISTS (SELECT FROM volumes v WHERE v.team_id = d.team_id)
		AND NOT EXISTS (SELECT FROM rootfs_snapshots r WHERE r.team_id = d.team_id)
		LIMIT $2)`, strayAge)
}
