package store

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/internal/sandbox"
)

// NewForks is what a fork stores: a row for each child. Without an IdempotencyKey,
// RequestHash is nil.
type NewForks struct {
	TeamID         uuid.UUID
	UserID         uuid.UUID
	Source         sandbox.ID
	Node           string // that made them; the source may have moved since
	Children       []NewFork
	TTLSeconds     int32
	HardTTLSeconds int32
	IdempotencyKey string
	RequestHash    []byte
}

// NewFork is one child, as its node made it.
type NewFork struct {
	ID         sandbox.ID
	ClaimID    uuid.UUID
	Generation sandbox.Generation
}

// forkKeys are the idempotency keys of a fork's rows. The first child has the call's; the
// others' have a space in them, which no client's has.
func forkKeys(key string, n int) []string {
	keys := make([]string, n)
	for i := range keys {
		if keys[i] = key; key != "" && i > 0 {
			keys[i] = key + " " + strconv.Itoa(i)
		}
	}
	return keys
}

// maxForks is at least what one fork makes.
const maxForks = 64

// ErrGivenUp says that a fork was taken for one that nobody will store.
var ErrGivenUp = errors.New("the fork was given up")

// BeginForks records the ids of children before their node is asked to make them, so that
// they are known for nobody's when their server dies ([Store.GiveUpFork]).
func (s *Store) BeginForks(ctx context.Context, n NewForks) error {
	_, err := s.pool.Exec(ctx, "INSERT INTO fork_children (sandbox_id) SELECT unnest($1::text[])", n.ids())
	return classify(err, "beginning a fork")
}

// GiveUpForks records that nobody will store a fork's children, for good: what stores them
// at this moment is waited for, and their rows are the caller's to remove.
func (s *Store) GiveUpForks(ctx context.Context, n NewForks) error {
	_, err := s.pool.Exec(ctx, `
		INSERT INTO fork_children (sandbox_id, given_up) SELECT unnest($1::text[]), true
		ON CONFLICT (sandbox_id) DO UPDATE SET given_up = true`, n.ids())
	return classify(err, "giving up a fork")
}

// GiveUpFork reports whether a sandbox of any team is a fork's child that nobody stores any
// more: its fork was given up, or is now, if it is late.
func (s *Store) GiveUpFork(ctx context.Context, id sandbox.ID, late bool) (bool, error) {
	tag, err := s.pool.Exec(ctx, "UPDATE fork_children SET given_up = true WHERE sandbox_id = $1 AND (given_up OR $2)", id, late)
	return tag.RowsAffected() == 1, classify(err, "giving up a fork's child")
}

// ForgetForks says that children are on no node, and never will be.
func (s *Store) ForgetForks(ctx context.Context, n NewForks) error {
	_, err := s.pool.Exec(ctx, "DELETE FROM fork_children WHERE sandbox_id = ANY($1)", n.ids())
	return classify(err, "forgetting a fork")
}

// PurgeForks forgets the children of forks that began longer ago than age.
func (s *Store) PurgeForks(ctx context.Context, age time.Duration) error {
	return s.purge(ctx, "purging forks", `DELETE FROM fork_children WHERE sandbox_id IN (
		SELECT sandbox_id FROM fork_children WHERE begun_at < now() - $1::interval LIMIT $2)`, age)
}

// InsertForks stores the rows of a fork's children, all or none, with what their source is
// by then: its config, its template and its webhook. Their times to live begin when they
// are resumed first. Repeating it with the same claim ids answers the same rows. It fails
// with NotFound when the source is there no more, with [ErrGivenUp] when that was done or
// the fork never begun, and with [ErrIDTaken] or [ErrKeyTaken].
func (s *Store) InsertForks(ctx context.Context, n NewForks) ([]Sandbox, error) {
	var made []Sandbox
	err := s.inTx(ctx, "storing a fork", func(ctx context.Context, tx pgx.Tx) error {
		var err error
		if made, err = forksByID(ctx, tx, n); err != nil || made != nil {
			return err
		}
		if made, err = takeForks(ctx, tx, n); err != nil || made != nil {
			return err
		}
		if made, err = insertForks(ctx, tx, n); err != nil {
			return err
		}
		if made == nil {
			made, err = forksInTheWay(ctx, tx, n)
			return err
		}
		_, err = tx.Exec(ctx, `
			INSERT INTO sandbox_webhooks (sandbox_id, team_id, claim_id, url, secret, destination, watch_dir)
			SELECT c.id, c.team_id, c.claim_id, w.url, w.secret, w.destination, w.watch_dir
			FROM sandboxes c, sandbox_webhooks w
			WHERE c.team_id = $1 AND c.id = ANY($2) AND w.team_id = $1 AND w.sandbox_id = $3`, n.TeamID, n.ids(), n.Source)
		return err
	})
	return made, err
}

// takeForks takes away the record of children that are about to be stored: from here on
// nobody gives them up. It gives the rows when somebody has stored them, for whom it waited.
func takeForks(ctx context.Context, tx pgx.Tx, n NewForks) ([]Sandbox, error) {
	tag, err := tx.Exec(ctx, "DELETE FROM fork_children WHERE sandbox_id = ANY($1) AND NOT given_up", n.ids())
	if err != nil || int(tag.RowsAffected()) == len(n.Children) {
		return nil, err
	}
	made, err := forksByID(ctx, tx, n)
	if err == nil && made == nil {
		err = ErrGivenUp
	}
	return made, err
}

// insertForks gives nil where none could be inserted.
func insertForks(ctx context.Context, tx pgx.Tx, n NewForks) ([]Sandbox, error) {
	rows, _ := tx.Query(ctx, `
		INSERT INTO sandboxes (id, team_id, user_id, claim_id, template_id, node, generation, status, config,
			memory_bytes, ttl_seconds, hard_ttl_seconds, idempotency_key, request_hash, runs_since, forked_from)
		SELECT c.id, s.team_id, $3, c.claim_id, s.template_id, $11, c.generation, 'paused', s.config,
			s.memory_bytes, $4, $5, nullif(c.key, ''), $6, NULL, s.id
		FROM unnest($7::text[], $8::uuid[], $9::bigint[], $10::text[]) AS c (id, claim_id, generation, key), sandboxes s
		WHERE s.team_id = $1 AND s.id = $2 AND s.deleted_at IS NULL AND s.status <> 'terminating'
		ON CONFLICT DO NOTHING
		RETURNING `+sandboxColumns,
		n.TeamID, n.Source, n.UserID, n.TTLSeconds, n.HardTTLSeconds, n.RequestHash,
		n.ids(), n.claims(), n.generations(), forkKeys(n.IdempotencyKey, len(n.Children)), n.Node)
	made, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Sandbox])
	switch {
	case err != nil:
		return nil, err
	case len(made) == len(n.Children):
		return n.inOrder(made), nil
	case len(made) > 0:
		return nil, ErrKeyTaken
	}
	return nil, nil
}

// forksInTheWay says why none could be inserted. What is there now was not when this call
// began: it may be of the same one, whose answer was lost while it was stored.
func forksInTheWay(ctx context.Context, tx pgx.Tx, n NewForks) ([]Sandbox, error) {
	if made, err := forksByID(ctx, tx, n); err != nil || made != nil {
		return made, err
	}
	if _, err := oneSandbox(ctx, tx, n.TeamID, n.Source); err != nil {
		return nil, err
	}
	return nil, ErrKeyTaken
}

func oneSandbox(ctx context.Context, tx pgx.Tx, team uuid.UUID, id sandbox.ID) (Sandbox, error) {
	rows, _ := tx.Query(ctx, "SELECT "+sandboxColumns+` FROM sandboxes
		WHERE team_id = $1 AND id = $2 AND deleted_at IS NULL AND status <> 'terminating'`, team, id)
	sb, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Sandbox])
	return sb, found(err, "reading a sandbox", "sandbox")
}

// forksByID reads the rows if they are there; nil: none is.
func forksByID(ctx context.Context, tx pgx.Tx, n NewForks) ([]Sandbox, error) {
	rows, _ := tx.Query(ctx, "SELECT "+sandboxColumns+" FROM sandboxes WHERE id = ANY($1)", n.ids())
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Sandbox])
	if err != nil || len(list) == 0 {
		return nil, err
	}
	for _, sb := range list {
		if sb.TeamID != n.TeamID || !slices.Contains(n.claims(), sb.ClaimID) {
			return nil, ErrIDTaken
		}
	}
	if len(list) != len(n.Children) {
		return nil, ErrIDTaken
	}
	return n.inOrder(list), nil
}

// ForksByKey reads what an earlier fork with the same idempotency key made, also when it
// has been deleted since, in the order in which it was made. NotFound: there was none.
func (s *Store) ForksByKey(ctx context.Context, team uuid.UUID, key string) ([]Sandbox, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+sandboxColumns+` FROM sandboxes
		WHERE team_id = $1 AND idempotency_key = ANY($2) ORDER BY array_position($2, idempotency_key)`, team, forkKeys(key, maxForks))
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Sandbox])
	if err == nil && len(list) == 0 {
		return nil, notFound("fork")
	}
	return list, classify(err, "reading a fork by its key")
}

func (n NewForks) ids() []string {
	return forkColumn(n, func(c NewFork) string { return string(c.ID) })
}

func (n NewForks) claims() []uuid.UUID {
	return forkColumn(n, func(c NewFork) uuid.UUID { return c.ClaimID })
}

func (n NewForks) generations() []int64 {
	return forkColumn(n, func(c NewFork) int64 { return int64(c.Generation) })
}

func forkColumn[T any](n NewForks, of func(NewFork) T) []T {
	list := make([]T, len(n.Children))
	for i, c := range n.Children {
		list[i] = of(c)
	}
	return list
}

// inOrder puts the rows in the order of the children.
func (n NewForks) inOrder(rows []Sandbox) []Sandbox {
	ids := n.ids()
	slices.SortFunc(rows, func(a, b Sandbox) int { return slices.Index(ids, string(a.ID)) - slices.Index(ids, string(b.ID)) })
	return rows
}
