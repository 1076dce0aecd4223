package store

import (
	"context"
	"crypto/subtle"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
)

// Node is a node that has joined.
type Node struct {
	Name           string
	Membership     uuid.UUID // its certificates'
	Endpoint       string
	CertifiedUntil time.Time
	JoinedAt       time.Time
	SeenAt         *time.Time
	DrainingAt     *time.Time
	RemovedAt      *time.Time
}

const nodeColumns = `name, membership, endpoint, certified_until, joined_at, seen_at, draining_at, removed_at`

// Certified is what is recorded of a certificate that a node gets.
type Certified struct {
	Node     string
	Endpoint string
	Key      []byte // its key's hash
	Held     []byte // the hash of the key that a renewal is asked for with
	Until    time.Time
}

// NodeToken is a token as it is stored. Node, unless empty, is the only one that it
// admits.
type NodeToken struct {
	ID     string
	Secret []byte // its hash
	Node   string
	Uses   int
	Life   time.Duration
}

// PutNodeToken stores a new token and forgets those that are over. It answers when this
// one is.
func (s *Store) PutNodeToken(ctx context.Context, t NodeToken) (until time.Time, err error) {
	err = s.inTx(ctx, "storing a node's token", func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "DELETE FROM node_tokens WHERE expires_at < now()"); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `
			INSERT INTO node_tokens (id, secret_sha256, node, uses_left, expires_at)
			VALUES ($1, $2, nullif($3, ''), $4, now() + $5::interval) RETURNING expires_at`,
			t.ID, t.Secret, t.Node, t.Uses, t.Life).Scan(&until)
	})
	return until, err
}

var errTaken = errdefs.New(errdefs.Conflict, "there is a node of this name; if it is no more, remove it first")

// errToken is the one answer to every token that opens nothing.
var errToken = errdefs.New(errdefs.Unauthenticated, "the token is unknown, used up, over, or another node's")

// Join admits a node by a token. One whose key is known by this name has joined with it
// before and was not told, or comes back: that costs no use. Nobody else gets the name of
// a node unless it was removed, and then by a token that is newer than that.
func (s *Store) Join(ctx context.Context, token string, secret []byte, c Certified) (membership uuid.UUID, err error) {
	err = s.inTx(ctx, "admitting a node", func(ctx context.Context, tx pgx.Tx) error {
		made, err := tokenFor(ctx, tx, token, secret, c.Node)
		if err != nil {
			return err
		}
		known, err := rejoin(ctx, tx, c, made)
		if err != nil || known != uuid.Nil {
			membership = known
			return err
		}
		used, err := tx.Exec(ctx, "UPDATE node_tokens SET uses_left = uses_left - 1 WHERE id = $1 AND uses_left > 0", token)
		if err != nil {
			return err
		}
		if used.RowsAffected() == 0 {
			return errToken
		}
		membership = uuid.New()
		put, err := tx.Exec(ctx, `
			INSERT INTO nodes (name, membership, endpoint, key_sha256, certified_until) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (name) DO UPDATE SET membership = excluded.membership, endpoint = excluded.endpoint, key_sha256 = excluded.key_sha256, held_key_sha256 = NULL,
				certified_until = excluded.certified_until, joined_at = now(), renewed_at = now(), seen_at = NULL, draining_at = NULL, removed_at = NULL
			WHERE nodes.removed_at IS NOT NULL`,
			c.Node, membership, c.Endpoint, c.Key, c.Until)
		if err == nil && put.RowsAffected() == 0 {
			return errTaken // by one that joined at the same moment
		}
		return err
	})
	return membership, err
}

// tokenFor takes a token's row for this transaction and answers when it was made.
func tokenFor(ctx context.Context, tx pgx.Tx, token string, secret []byte, node string) (made time.Time, err error) {
	var want []byte
	var of *string
	err = tx.QueryRow(ctx, `
		SELECT secret_sha256, node, created_at FROM node_tokens WHERE id = $1 AND expires_at > now() FOR UPDATE`, token).Scan(&want, &of, &made)
	if errors.Is(err, pgx.ErrNoRows) {
		return made, errToken
	}
	if err == nil && (subtle.ConstantTimeCompare(want, secret) != 1 || of != nil && *of != node) {
		err = errToken
	}
	return made, err
}

// rejoin answers the membership of a node that has this key, or had it when it was certified
// last and may not know of that, and refuses another's name.
func rejoin(ctx context.Context, tx pgx.Tx, c Certified, tokenMade time.Time) (uuid.UUID, error) {
	var membership uuid.UUID
	var key, held []byte
	var removed *time.Time
	err := tx.QueryRow(ctx, "SELECT membership, key_sha256, held_key_sha256, removed_at FROM nodes WHERE name = $1 FOR UPDATE", c.Node).
		Scan(&membership, &key, &held, &removed)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return uuid.Nil, nil
	case err != nil:
		return uuid.Nil, err
	case removed != nil && !tokenMade.After(*removed):
		return uuid.Nil, errdefs.New(errdefs.PermissionDenied, "the node was removed, and this token is older than that")
	case removed != nil:
		return uuid.Nil, nil
	case subtle.ConstantTimeCompare(key, c.Key) != 1 && subtle.ConstantTimeCompare(held, c.Key) != 1:
		return uuid.Nil, errTaken
	}
	_, err = tx.Exec(ctx, `
		UPDATE nodes SET key_sha256 = $4, held_key_sha256 = NULL, endpoint = $2, certified_until = $3, renewed_at = now()
		WHERE name = $1`, c.Node, c.Endpoint, c.Until, c.Key)
	return membership, err
}

// Renew records that a member gets another certificate. It refuses a node that was
// removed since it joined.
func (s *Store) Renew(ctx context.Context, membership uuid.UUID, c Certified) error {
	tag, err := s.pool.Exec(ctx, `
		UPDATE nodes SET key_sha256 = $4, held_key_sha256 = $6, certified_until = $5, renewed_at = now(), endpoint = $3
		WHERE name = $1 AND membership = $2 AND removed_at IS NULL`, c.Node, membership, c.Endpoint, c.Key, c.Until, c.Held)
	if err == nil && tag.RowsAffected() == 0 {
		return errdefs.New(errdefs.PermissionDenied, "the node is no member any more")
	}
	return classify(err, "renewing a node's certificate")
}

// Nodes lists all nodes, those that were removed as well.
func (s *Store) Nodes(ctx context.Context) ([]Node, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+nodeColumns+" FROM nodes ORDER BY name")
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Node])
	return list, classify(err, "listing nodes")
}

// NodesSeen records that nodes answer. Of all servers that say so, few write.
func (s *Store) NodesSeen(ctx context.Context, names []string) error {
	_, err := s.pool.Exec(ctx, `
		UPDATE nodes SET seen_at = now()
		WHERE name = ANY($1) AND coalesce(seen_at < now() - interval '20 seconds', true)`, names)
	return classify(err, "recording which nodes answer")
}

// DrainNode decides that a node gets nothing new and what runs there is paused, or that
// this is over.
func (s *Store) DrainNode(ctx context.Context, name string, drain bool) error {
	tag, err := s.pool.Exec(ctx, `
		UPDATE nodes SET draining_at = CASE WHEN $2 THEN coalesce(draining_at, now()) END
		WHERE name = $1 AND removed_at IS NULL`, name, drain)
	if err == nil && tag.RowsAffected() == 0 {
		return notFound("node")
	}
	return classify(err, "draining a node")
}

// RemoveNode decides that a node is gone for good. Its certificates are nobody's from
// then on, and its name is free. What it has is settled by servers, which know whether they
// reach a node of this name by a socket.
func (s *Store) RemoveNode(ctx context.Context, name string) error {
	tag, err := s.pool.Exec(ctx, "UPDATE nodes SET removed_at = now() WHERE name = $1 AND removed_at IS NULL", name)
	if err == nil && tag.RowsAffected() == 0 {
		return notFound("node")
	}
	return classify(err, "removing a node")
}

// nodeRemoved is why a sandbox failed whose node is gone for good.
const nodeRemoved = "its node was removed"

// SettleRemoved makes rows say what became of the sandboxes of those nodes that were removed:
// what was being deleted is gone, and what is not in the object store is lost. They say
// so again of a row whose claim came in between.
func (s *Store) SettleRemoved(ctx context.Context, names []string) error {
	if len(names) == 0 {
		return nil
	}
	_, err := s.pool.Exec(ctx, `
		UPDATE sandboxes SET updated_at = now(),
			deleted_at = CASE WHEN status = 'terminating' THEN now() END,
			status = CASE WHEN status = 'terminating' THEN status ELSE 'failed' END,
			reason = CASE WHEN status = 'terminating' THEN reason ELSE $1 END
		WHERE node = ANY($2) AND node IN (SELECT name FROM nodes WHERE removed_at IS NOT NULL) AND deleted_at IS NULL
		AND (status IN ('terminating', 'running') OR status IN ('starting', 'paused') AND stored_generation IS NULL)`, nodeRemoved, names)
	return classify(err, "settling the sandboxes of removed nodes")
}

// RunningOn hands out at most limit sandboxes of any team that run on nodes which are
// drained, after one of them.
func (s *Store) RunningOn(ctx context.Context, nodes []string, after sandbox.ID, limit int) ([]Sandbox, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+listColumns+`
		FROM sandboxes WHERE node = ANY($1) AND deleted_at IS NULL AND status = 'running' AND id > $2 ORDER BY id LIMIT $3`, nodes, after, limit)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Sandbox])
	return list, classify(err, "looking for the sandboxes of nodes that are drained")
}
