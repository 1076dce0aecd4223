package store

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
	"s0.run/internal/sealed"
)

// CredentialSource is what may be known of a team's credential source. What it
// holds is sealed, and read by [Store.SealedCredentials] alone.
type CredentialSource struct {
	Name      string
	Kind      string
	Version   int64
	CreatedAt time.Time
	UpdatedAt time.Time
}

const sourceColumns = "name, kind, version, created_at, updated_at"

// Seal seals what a source shall hold as one version of it.
type Seal func(version int64) (sealed.Blob, error)

// CreateCredentialSource stores a team's new source.
func (s *Store) CreateCredentialSource(ctx context.Context, team uuid.UUID, name, kind string, seal Seal) (created CredentialSource, err error) {
	blob, err := seal(1)
	if err != nil {
		return created, err
	}
	err = s.inTx(ctx, "creating a credential source", func(ctx context.Context, tx pgx.Tx) error {
		if err := room(ctx, tx, team, "credential_sources", "credential sources"); err != nil {
			return err
		}
		rows, _ := tx.Query(ctx, `INSERT INTO credential_sources (team_id, name, kind, version, sealed_key, sealed)
			VALUES ($1, $2, $3, 1, $4, $5) RETURNING `+sourceColumns, team, name, kind, blob.Key, blob.Data)
		created, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[CredentialSource])
		if violates(err, "credential_sources_pkey") {
			return errdefs.New(errdefs.Conflict, "a credential source of this name exists")
		}
		return err
	})
	return created, err
}

// UpdateCredentialSource stores a source's next version, of the same kind, and
// notes which sandboxes' nodes have to be told.
func (s *Store) UpdateCredentialSource(ctx context.Context, team uuid.UUID, name, kind string, seal Seal) (updated CredentialSource, err error) {
	err = s.inTx(ctx, "updating a credential source", func(ctx context.Context, tx pgx.Tx) error {
		rows, _ := tx.Query(ctx, "SELECT "+sourceColumns+" FROM credential_sources WHERE team_id = $1 AND name = $2 FOR NO KEY UPDATE", team, name)
		has, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[CredentialSource])
		if err != nil {
			return found(err, "reading a credential source", "credential source")
		}
		if has.Kind != kind {
			return errdefs.New(errdefs.InvalidArgument, "resolverKind can't be changed: it is %s", has.Kind)
		}
		blob, err := seal(has.Version + 1)
		if err != nil {
			return err
		}
		rows, _ = tx.Query(ctx, `UPDATE credential_sources SET version = $3, sealed_key = $4, sealed = $5, updated_at = now()
			WHERE team_id = $1 AND name = $2 RETURNING `+sourceColumns, team, name, has.Version+1, blob.Key, blob.Data)
		if updated, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[CredentialSource]); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, "UPDATE credential_uses SET pending = true WHERE team_id = $1 AND source = $2", team, name)
		return err
	})
	return updated, err
}

// CredentialSources lists a team's sources by name.
func (s *Store) CredentialSources(ctx context.Context, team uuid.UUID) ([]CredentialSource, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+sourceColumns+" FROM credential_sources WHERE team_id = $1 ORDER BY name LIMIT $2", team, maxOfTeam)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[CredentialSource])
	return list, classify(err, "listing credential sources")
}

// CredentialSource reads one of a team's sources.
func (s *Store) CredentialSource(ctx context.Context, team uuid.UUID, name string) (CredentialSource, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+sourceColumns+" FROM credential_sources WHERE team_id = $1 AND name = $2", team, name)
	c, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[CredentialSource])
	return c, found(err, "reading a credential source", "credential source")
}

// DeleteCredentialSource forgets a source that no sandbox is bound to.
func (s *Store) DeleteCredentialSource(ctx context.Context, team uuid.UUID, name string) error {
	tag, err := s.pool.Exec(ctx, "DELETE FROM credential_sources WHERE team_id = $1 AND name = $2", team, name)
	switch {
	case unknownSource(err):
		return errdefs.New(errdefs.Conflict, "the credential source is bound to sandboxes: remove their bindings first")
	case err == nil && tag.RowsAffected() == 0:
		return notFound("credential source")
	}
	return classify(err, "deleting a credential source")
}

// SealedCredentials reads what sources hold, sealed, for a node to hand to its netd.
// What is missing is left out.
func (s *Store) SealedCredentials(ctx context.Context, team uuid.UUID, names []string) ([]sealed.Credential, error) {
	rows, _ := s.pool.Query(ctx, `SELECT name, kind, version, sealed_key, sealed FROM credential_sources
		WHERE team_id = $1 AND name = ANY ($2) ORDER BY name`, team, names)
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c sealed.Credential, err error) {
		return c, row.Scan(&c.Source, &c.Kind, &c.Version, &c.Blob.Key, &c.Blob.Data)
	})
	return list, classify(err, "reading sealed credentials")
}

// BoundSandbox is a sandbox whose node has to be told of newer credentials.
type BoundSandbox struct {
	ID         sandbox.ID
	TeamID     uuid.UUID
	Node       string
	Generation sandbox.Generation
}

// PendingCredentials lists such sandboxes, a bounded number at a time, after an id.
func (s *Store) PendingCredentials(ctx context.Context, after sandbox.ID, limit int) ([]BoundSandbox, error) {
	rows, _ := s.pool.Query(ctx, `SELECT id, team_id, node, generation FROM sandboxes
		WHERE id IN (SELECT sandbox_id FROM credential_uses WHERE pending) AND id > $1
			AND status IN ('running', 'paused', 'starting') AND deleted_at IS NULL
		ORDER BY id LIMIT $2`, after, limit)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[BoundSandbox])
	return list, classify(err, "looking for credentials to be told")
}

// CredentialsOf reads what the sources that a sandbox's bindings name hold.
func (s *Store) CredentialsOf(ctx context.Context, team uuid.UUID, id sandbox.ID) ([]sealed.Credential, error) {
	rows, _ := s.pool.Query(ctx, `SELECT name, kind, version, sealed_key, sealed FROM credential_sources c
		JOIN credential_uses u ON u.team_id = c.team_id AND u.source = c.name
		WHERE u.team_id = $1 AND u.sandbox_id = $2 ORDER BY name`, team, id)
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c sealed.Credential, err error) {
		return c, row.Scan(&c.Source, &c.Kind, &c.Version, &c.Blob.Key, &c.Blob.Data)
	})
	return list, classify(err, "reading a sandbox's credentials")
}

// CredentialsTold notes that a sandbox's node has these versions. What is newer by
// now stays pending. The sources' rows are locked, as [Store.UpdateCredentialSource]
// does: a join alone would compare the version of before with a row that a newer one
// has just made pending.
func (s *Store) CredentialsTold(ctx context.Context, team uuid.UUID, id sandbox.ID, told []sealed.Credential) error {
	names, versions := make([]string, len(told)), make([]int64, len(told))
	for i, c := range told {
		names[i], versions[i] = c.Source, c.Version
	}
	_, err := s.pool.Exec(ctx, `WITH newest AS MATERIALIZED (
			SELECT c.name FROM credential_sources c JOIN unnest($3::text[], $4::bigint[]) AS told (name, version) USING (name, version)
			WHERE c.team_id = $1 ORDER BY c.name FOR SHARE OF c)
		UPDATE credential_uses SET pending = false
		WHERE team_id = $1 AND sandbox_id = $2 AND pending AND source IN (SELECT name FROM newest)`, team, id, names, versions)
	return classify(err, "noting which credentials were told")
}

const stateForeignKey = "23503"

// unknownSource reports whether a binding names a source that is not, or a source
// is named by bindings.
func unknownSource(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pg.Code == stateForeignKey && pg.ConstraintName == "credential_uses_source"
}
