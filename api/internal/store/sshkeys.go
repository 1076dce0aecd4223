package store

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/audit"
	"s0.run/internal/errdefs"
)

// maxSSHKeys bounds the public keys that one user can have in one team.
const maxSSHKeys = 50

// SSHKey is a public key that stands for a user in a team.
type SSHKey struct {
	ID          uuid.UUID
	TeamID      uuid.UUID
	UserID      uuid.UUID
	Name        string
	PublicKey   string // type and base64
	KeyType     string
	Fingerprint string // SHA256:…
	Comment     string
	CreatedAt   time.Time
	UpdatedAt   time.Time
}

const sshKeyColumns = "id, team_id, user_id, name, public_key, key_type, fingerprint, comment, created_at, updated_at"

// AddSSHKey stores a key of a member. A key that somebody in the team has already,
// or one too many, is a conflict.
func (s *Store) AddSSHKey(ctx context.Context, team, user uuid.UUID, k SSHKey) (added SSHKey, err error) {
	err = s.inTx(ctx, "adding an SSH key", func(ctx context.Context, tx pgx.Tx) error {
		if err := lockMember(ctx, tx, team, user); err != nil {
			return err
		}
		var have int
		if err := tx.QueryRow(ctx, "SELECT count(*) FROM ssh_keys WHERE team_id = $1 AND user_id = $2", team, user).Scan(&have); err != nil {
			return err
		}
		if have >= maxSSHKeys {
			return errdefs.New(errdefs.Conflict, "you have %d SSH keys in this team, and can have no more: delete one first", have)
		}
		rows, _ := tx.Query(ctx, `
			INSERT INTO ssh_keys (team_id, user_id, name, public_key, key_type, fingerprint, comment)
			VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING `+sshKeyColumns, team, user, k.Name, k.PublicKey, k.KeyType, k.Fingerprint, k.Comment)
		added, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[SSHKey])
		if violates(err, "ssh_keys_team_id_fingerprint_key") {
			return errdefs.New(errdefs.Conflict, "this team has that key already")
		}
		audit.Resource(ctx, added.ID.String())
		return err
	})
	return added, err
}

// SSHKeys lists the keys of a user in a team, oldest first.
func (s *Store) SSHKeys(ctx context.Context, team, user uuid.UUID) ([]SSHKey, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+sshKeyColumns+` FROM ssh_keys
		WHERE team_id = $1 AND user_id = $2 ORDER BY created_at, id LIMIT $3`, team, user, maxSSHKeys)
	keys, err := pgx.CollectRows(rows, pgx.RowToStructByPos[SSHKey])
	return keys, classify(err, "listing SSH keys")
}

// DeleteSSHKey deletes a key of a user in a team.
func (s *Store) DeleteSSHKey(ctx context.Context, team, user, id uuid.UUID) error {
	tag, err := s.pool.Exec(ctx, "DELETE FROM ssh_keys WHERE team_id = $1 AND user_id = $2 AND id = $3", team, user, id)
	if err == nil && tag.RowsAffected() == 0 {
		return notFound("ssh key")
	}
	return classify(err, "deleting an SSH key")
}
