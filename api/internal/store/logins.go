package store

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/audit"
	"s0.run/internal/errdefs"
)

// What is under way is no change of anybody's yet: the audit record of a sign-in
// is stored with the session that it ends in.

// maxLogins bounds the sign-ins of one kind that are under way: each is begun by
// somebody of whom nothing is known.
const maxLogins = 20_000

// pendingRetry is when the first of too many sign-ins may have ended.
const pendingRetry = time.Minute

// begin adds a pending sign-in unless there are too many.
func (s *Store) begin(ctx context.Context, table, columns, values string, args ...any) error {
	tag, err := s.pool.Exec(audit.Without(ctx), "INSERT INTO "+table+" ("+columns+") SELECT "+values+
		" WHERE (SELECT count(*) FROM (SELECT FROM "+table+" WHERE expires_at > now() LIMIT $1) pending) < $1", append([]any{maxLogins}, args...)...)
	if err == nil && tag.RowsAffected() == 0 {
		return errdefs.New(errdefs.Unavailable, "too many sign-ins are under way").WithRetryAfter(pendingRetry)
	}
	return classify(err, "beginning a sign-in")
}

// BrowserLogin is a sign-in of which a browser has the state and the cookie.
type BrowserLogin struct {
	StateHash   []byte
	BrowserHash []byte
	Provider    string
	ReturnURL   string
}

// BeginBrowserLogin stores a sign-in for as long as life.
func (s *Store) BeginBrowserLogin(ctx context.Context, l BrowserLogin, life time.Duration) error {
	return s.begin(ctx, "browser_logins", "state_hash, browser_hash, provider, return_url, expires_at", "$2, $3, $4, $5, now() + $6",
		l.StateHash, l.BrowserHash, l.Provider, l.ReturnURL, life)
}

// TakeBrowserLogin ends a sign-in that the same browser began with the same
// provider, and answers its return URL. It can be taken once.
func (s *Store) TakeBrowserLogin(ctx context.Context, l BrowserLogin) (returnURL string, err error) {
	err = s.pool.QueryRow(ctx, `
		DELETE FROM browser_logins
		WHERE state_hash = $1 AND browser_hash = $2 AND provider = $3 AND expires_at > now()
		RETURNING return_url`, l.StateHash, l.BrowserHash, l.Provider).Scan(&returnURL)
	return returnURL, found(err, "ending a sign-in", "sign-in")
}

// DeviceLogin is a sign-in that waits for its user to confirm it.
type DeviceLogin struct {
	IDHash     []byte
	Provider   string
	SealedCode []byte
	Interval   time.Duration // between two looks
	Expires    time.Time
}

// BeginDeviceLogin stores a sign-in for as long as life, and says when that ends.
func (s *Store) BeginDeviceLogin(ctx context.Context, l DeviceLogin, life time.Duration) (time.Time, error) {
	err := s.begin(ctx, "device_logins", "id_hash, provider, sealed_code, poll_interval, next_poll, expires_at",
		"$2, $3, $4, $5::interval, now() + $5::interval, now() + $6", l.IDHash, l.Provider, l.SealedCode, l.Interval, life)
	if err != nil {
		return time.Time{}, err
	}
	l, err = s.deviceLogin(ctx, l)
	return l.Expires, err
}

const deviceLoginColumns = "id_hash, provider, sealed_code, poll_interval, expires_at"

func scanDeviceLogin(row pgx.Row) (l DeviceLogin, err error) {
	err = row.Scan(&l.IDHash, &l.Provider, &l.SealedCode, &l.Interval, &l.Expires)
	return l, err
}

func (s *Store) deviceLogin(ctx context.Context, l DeviceLogin) (DeviceLogin, error) {
	l, err := scanDeviceLogin(s.pool.QueryRow(ctx, "SELECT "+deviceLoginColumns+`
		FROM device_logins WHERE id_hash = $1 AND provider = $2 AND expires_at > now()`, l.IDHash, l.Provider))
	return l, found(err, "reading a sign-in", "device login")
}

// PollDeviceLogin takes the turn to ask the provider about a sign-in. It reports
// false when that is too early, and then nobody may ask.
func (s *Store) PollDeviceLogin(ctx context.Context, l DeviceLogin) (DeviceLogin, bool, error) {
	took, err := scanDeviceLogin(s.pool.QueryRow(audit.Without(ctx), `
		UPDATE device_logins SET next_poll = now() + poll_interval
		WHERE id_hash = $1 AND provider = $2 AND expires_at > now() AND next_poll <= now()
		RETURNING `+deviceLoginColumns, l.IDHash, l.Provider))
	if !errors.Is(err, pgx.ErrNoRows) {
		return took, err == nil, classify(err, "polling a sign-in")
	}
	waits, err := s.deviceLogin(ctx, l)
	return waits, false, err
}

// SlowDeviceLogin makes the looks at a sign-in rarer, and answers it as it is now.
func (s *Store) SlowDeviceLogin(ctx context.Context, l DeviceLogin, by time.Duration) (DeviceLogin, error) {
	l, err := scanDeviceLogin(s.pool.QueryRow(audit.Without(ctx), `
		UPDATE device_logins SET poll_interval = poll_interval + $2::interval, next_poll = now() + poll_interval + $2::interval
		WHERE id_hash = $1 RETURNING `+deviceLoginColumns, l.IDHash, by))
	return l, found(err, "slowing a sign-in", "device login")
}

// EndDeviceLogin forgets a sign-in. Of those who do so at the same time one
// succeeds; for the others it is not found.
func (s *Store) EndDeviceLogin(ctx context.Context, l DeviceLogin) error {
	var one int
	err := s.pool.QueryRow(audit.Without(ctx), "DELETE FROM device_logins WHERE id_hash = $1 RETURNING 1", l.IDHash).Scan(&one)
	return found(err, "ending a sign-in", "device login")
}

// LoginCode stands for a user who has signed in until a page fetches the tokens.
type LoginCode struct {
	Hash      []byte
	User      uuid.UUID
	ReturnURL string
}

// AddLoginCode stores a code for as long as life.
func (s *Store) AddLoginCode(ctx context.Context, c LoginCode, life time.Duration) error {
	_, err := s.pool.Exec(ctx, `
		INSERT INTO login_codes (code_hash, user_id, return_url, expires_at) VALUES ($1, $2, $3, now() + $4)`,
		c.Hash, c.User, c.ReturnURL, life)
	return classify(err, "storing a login code")
}

// TakeLoginCode ends a code and answers whose it is. It can be taken once, by
// whoever names the URL that it was sent to; a try with another URL ends it too.
func (s *Store) TakeLoginCode(ctx context.Context, hash []byte, returnURL string) (uuid.UUID, error) {
	var user uuid.UUID
	var sentTo string
	err := s.pool.QueryRow(audit.Without(ctx), `
		DELETE FROM login_codes WHERE code_hash = $1 AND expires_at > now() RETURNING user_id, return_url`, hash).Scan(&user, &sentTo)
	if err == nil && sentTo != returnURL {
		return uuid.Nil, notFound("login code")
	}
	return user, found(err, "taking a login code", "login code")
}

// PurgeLogins forgets sign-ins that nobody finished.
func (s *Store) PurgeLogins(ctx context.Context) error {
	for table, key := range map[string]string{"browser_logins": "state_hash", "device_logins": "id_hash", "login_codes": "code_hash"} {
		err := s.purge(ctx, "purging sign-ins", "DELETE FROM "+table+" WHERE "+key+" IN (SELECT "+key+" FROM "+table+
			" WHERE expires_at < now() - $1::interval LIMIT $2)", 0)
		if err != nil {
			return err
		}
	}
	return nil
}
