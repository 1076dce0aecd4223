package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/internal/sandbox"
)

// The types of windows; see migrations/0007_quotas.sql for how they come about.
const (
	WindowRuntime = "sandbox.runtime_mib_milliseconds"
	WindowIngress = "sandbox.ingress_bytes"
	WindowEgress  = "sandbox.egress_bytes"
	WindowRootfs  = "sandbox.rootfs_byte_hours"
	WindowVolume  = "sandbox.volume_byte_hours"
)

const (
	// meterTimeout bounds a pass: an hour of very many sandboxes is written at once.
	meterTimeout = time.Minute
	// meterSlack is between the end of what a pass takes and now.
	meterSlack = "10 s"
	// meterBehind is how far a pass may be behind the one before. More, and the clock has
	// been set back: since then, that is since less than clockBack ago, things happen again
	// at times that were over. Passes are seconds apart.
	meterBehind, clockBack = time.Second, "1 hour"
	// readingsLock is the advisory lock of those who store readings: two who store
	// the first of a sandbox at the same time would both count all of it.
	readingsLock = 0x73_30_6d_65_74
)

// meterHorizon is before which time nothing can happen any more: every transaction
// that is under way began later, and its times are those of its begin. One that
// never ends holds metering up; it makes it lose nothing.
const meterHorizon = `least(now() - interval '` + meterSlack + `', (
	SELECT min(xact_start) FROM pg_stat_activity
	WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()))`

// Meter makes events of what has happened to sandboxes, and closes the hours that
// are over. While another replica does, it does nothing. Its transaction moves the
// mark of how far metering has come together with what it writes, so that a pass
// that is cut off and done again counts once.
func (s *Store) Meter(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, meterTimeout)
	defer cancel()
	for more := true; more; {
		err := pgx.BeginFunc(ctx, s.conns, func(tx pgx.Tx) (err error) {
			more, err = meterOnce(ctx, tx)
			return err
		})
		if err != nil {
			return classify(err, "metering")
		}
	}
	return nil
}

// meterOnce reports whether there is another hour to close.
func meterOnce(ctx context.Context, tx pgx.Tx) (more bool, err error) {
	if _, err := tx.Exec(ctx, "SELECT set_config('statement_timeout', $1, true)", fmt.Sprint(meterTimeout.Milliseconds())); err != nil {
		return false, err
	}
	var from, until, hour, recount time.Time
	rows, _ := tx.Query(ctx, "SELECT events_until, "+meterHorizon+", windows_until, coalesce(recount_from, windows_until) FROM metering_progress FOR UPDATE SKIP LOCKED")
	if _, err := pgx.ForEachRow(rows, []any{&from, &until, &hour, &recount}, func() error { return nil }); err != nil {
		return false, err
	}
	if from.Sub(until) > meterBehind {
		return false, meterAgain(ctx, tx, until)
	}
	if !until.After(from) { // somebody else's, or a moment ago
		return false, nil
	}
	if _, err := tx.Exec(ctx, meterEventsSQL, from, until); err != nil {
		return false, err
	}
	end := hour.Add(time.Hour)
	if over := !end.After(until); over {
		if _, err := tx.Exec(ctx, meterWindowsSQL, hour, end, WindowRuntime, WindowIngress, WindowEgress, WindowRootfs, WindowVolume, recount); err != nil {
			return false, err
		}
		hour, recount = end, end
	}
	_, err = tx.Exec(ctx, "UPDATE metering_progress SET events_until = $1, windows_until = $2, recount_from = nullif($3::timestamptz, $2::timestamptz)", until, hour, recount)
	return !hour.Add(time.Hour).After(until), err
}

// meterAgain has passes go again over what they have taken since the clock was set back to
// a little before until, and the next window hold what hours had that were closed too early.
func meterAgain(ctx context.Context, tx pgx.Tx, until time.Time) error {
	_, err := tx.Exec(ctx, `UPDATE metering_progress SET events_until = $1::timestamptz - interval '`+clockBack+`',
		recount_from = nullif(least(recount_from, windows_until, date_trunc('hour', $1::timestamptz, 'UTC')), windows_until)`, until)
	return err
}

// meterEventsSQL makes events of [$1, $2). Of a row that is gone again, the claim
// was never acknowledged.
const meterEventsSQL = `
	INSERT INTO metering_events (event_id, event_type, team_id, user_id, sandbox_id, template_id, occurred_at)
	SELECT 'claimed-' || claim_id, 'sandbox.claimed', team_id, user_id, id, template_id, claimed_at AS at
	FROM sandboxes WHERE claimed_at >= $1 AND claimed_at < $2
	UNION ALL
	SELECT kind || '-' || id, 'sandbox.' || kind, team_id, user_id, sandbox_id, template_id, at
	FROM metering_changes WHERE at >= $1 AND at < $2 AND kind <> 'resized'
	UNION ALL
	SELECT 'volume-' || id, type, team_id, user_id, volume_id::text, '', at
	FROM metering_volume_changes WHERE at >= $1 AND at < $2
	ORDER BY at
	ON CONFLICT (event_id) DO NOTHING`

// meterWindowsSQL closes the hour [$1, $2). What runs is in its row, what ran in the
// changes; one statement sees each in one of them. Hours from $8 on that were closed
// before they were over count too, less what their windows have.
const meterWindowsSQL = `
	WITH ran AS (
		SELECT team_id, sandbox_id, since, at AS until, memory_bytes FROM metering_changes
		WHERE at > $8 AND since < $2
		UNION ALL
		SELECT team_id, id, runs_since, $2, memory_bytes FROM sandboxes
		WHERE runs_since < $2 AND deleted_at IS NULL
	), runtime AS (
		SELECT team_id, sandbox_id, round(sum(memory_bytes / 1048576.0 *
			extract(epoch FROM least(until, $2) - greatest(since, $8)) * 1000)) - (
				SELECT coalesce(sum(value), 0) FROM metering_windows w
				WHERE w.sandbox_id = ran.sandbox_id AND window_type = $3 AND window_start >= $8 AND window_start < $1) AS value
		FROM ran GROUP BY team_id, sandbox_id
	), counted AS (
		DELETE FROM metering_counts WHERE hour <= $1 RETURNING *
	), counts AS (
		SELECT team_id, sandbox_id, sum(ingress_bytes) AS ingress_bytes, sum(egress_bytes) AS egress_bytes, sum(rootfs_byte_ms) AS rootfs_byte_ms
		FROM counted GROUP BY team_id, sandbox_id
	), volumes_counted AS (
		DELETE FROM metering_volume_counts WHERE hour <= $1 RETURNING *
	), volume_hours AS (
		SELECT team_id, volume_id, sum(byte_ms) AS byte_ms FROM volumes_counted GROUP BY team_id, volume_id
	)
	INSERT INTO metering_windows (window_type, team_id, sandbox_id, window_start, window_end, value, unit)
	SELECT type, team_id, sandbox_id, $1, $2, value::bigint, unit FROM (
		SELECT $3 AS type, team_id, sandbox_id, value, 'mib_milliseconds' AS unit FROM runtime
		UNION ALL SELECT $4, team_id, sandbox_id, ingress_bytes, 'bytes' FROM counts
		UNION ALL SELECT $5, team_id, sandbox_id, egress_bytes, 'bytes' FROM counts
		UNION ALL SELECT $6, team_id, sandbox_id, round(rootfs_byte_ms / 3600000), 'byte_hours' FROM counts
		UNION ALL SELECT $7, team_id, volume_id::text, round(byte_ms / 3600000), 'byte_hours' FROM volume_hours) w
	WHERE value > 0
	ORDER BY team_id, sandbox_id, type`

// TakeReadingTurn reports whether it is the caller's turn to read what nodes
// counted: nobody has for so long.
func (s *Store) TakeReadingTurn(ctx context.Context, every time.Duration) (bool, error) {
	tag, err := s.pool.Exec(ctx, `UPDATE metering_progress SET read_at = now() WHERE one IN (
		SELECT one FROM metering_progress WHERE read_at <= now() - $1::interval FOR UPDATE SKIP LOCKED)`, every)
	return tag.RowsAffected() == 1, classify(err, "taking a turn at reading what nodes counted")
}

// Reading is what a node counted of a sandbox since its generation began.
type Reading struct {
	ID           sandbox.ID
	Generation   sandbox.Generation
	IngressBytes int64
	EgressBytes  int64
	RootfsBytes  int64 // at the moment; less than 0: as it was
	Final        bool  // of a generation that is over
}

// AddReadings adds what has come to since the last readings of the same sandboxes,
// whose rows say whose they are: what a node says of others' counts for nothing. A list
// has one reading of a sandbox. The same counters a second time add nothing; what a root
// filesystem takes is added for the time since the reading before, unless the generation
// is over: then it is what is stored until another one is read.
func (s *Store) AddReadings(ctx context.Context, node string, list []Reading) error {
	var ids []string
	var gens, in, out, rootfs []int64
	var final []bool
	for _, r := range list {
		ids, gens = append(ids, string(r.ID)), append(gens, int64(r.Generation))
		in, out, rootfs = append(in, r.IngressBytes), append(out, r.EgressBytes), append(rootfs, r.RootfsBytes)
		final = append(final, r.Final)
	}
	return s.inTx(ctx, "storing what nodes counted", func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", readingsLock); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, addReadingsSQL, ids, gens, in, out, rootfs, node, final)
		return err
	})
}

// addReadingsSQL: a root filesystem took, since the last reading of a generation that
// runs, what it took then. The last of one that is over, which is told again and again,
// adds no time: it moves on the counters alone, and is a sandbox's first figure if nothing
// was read of it. A counter that is behind the last reading of its generation is an older
// answer; one of an older generation too.
const addReadingsSQL = `
	WITH now_read AS (
		SELECT s.id, s.team_id, r.gen, r.ingress, r.egress,
			CASE WHEN r.final OR r.rootfs < 0 THEN coalesce(p.rootfs_bytes, greatest(r.rootfs, 0)) ELSE r.rootfs END AS rootfs,
			CASE WHEN r.final THEN coalesce(p.taken_at, clock_timestamp()) ELSE clock_timestamp() END AS taken_at,
			CASE WHEN p.generation = r.gen THEN p.ingress_bytes ELSE 0 END AS ingress_before,
			CASE WHEN p.generation = r.gen THEN p.egress_bytes ELSE 0 END AS egress_before,
			CASE WHEN r.final THEN 0 ELSE coalesce(p.rootfs_bytes * extract(epoch FROM clock_timestamp() - p.taken_at) * 1000, 0) END AS rootfs_byte_ms
		FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $7::boolean[]) AS r (id, gen, ingress, egress, rootfs, final)
		JOIN sandboxes s USING (id) LEFT JOIN metering_readings p ON p.sandbox_id = s.id
		WHERE s.node = $6 AND (p.sandbox_id IS NULL OR r.gen > p.generation
		OR r.gen = p.generation AND r.ingress >= p.ingress_bytes AND r.egress >= p.egress_bytes)
	), kept AS (
		INSERT INTO metering_readings (sandbox_id, generation, taken_at, ingress_bytes, egress_bytes, rootfs_bytes)
		SELECT id, gen, taken_at, ingress, egress, rootfs FROM now_read
		ON CONFLICT (sandbox_id) DO UPDATE SET generation = excluded.generation, taken_at = excluded.taken_at,
			ingress_bytes = excluded.ingress_bytes, egress_bytes = excluded.egress_bytes, rootfs_bytes = excluded.rootfs_bytes
	)
	INSERT INTO metering_counts AS c (sandbox_id, hour, team_id, ingress_bytes, egress_bytes, rootfs_byte_ms)
	SELECT id, date_trunc('hour', now(), 'UTC'), team_id, ingress - ingress_before, egress - egress_before, rootfs_byte_ms FROM now_read
	ON CONFLICT (hour, sandbox_id) DO UPDATE SET ingress_bytes = c.ingress_bytes + excluded.ingress_bytes,
		egress_bytes = c.egress_bytes + excluded.egress_bytes, rootfs_byte_ms = c.rootfs_byte_ms + excluded.rootfs_byte_ms`

// VolumeReading is what a volume's node says that it holds.
type VolumeReading struct {
	ID    uuid.UUID
	Bytes int64
}

// AddVolumeReadings records what volumes hold that a node may write to. Since it was
// counted last, each has held what it held then. Their rows are locked in the order in
// which [Store.TakeVolumes] locks them.
func (s *Store) AddVolumeReadings(ctx context.Context, node string, list []VolumeReading) error {
	ids, bytes := make([]uuid.UUID, len(list)), make([]int64, len(list))
	for i, r := range list {
		ids[i], bytes[i] = r.ID, r.Bytes
	}
	_, err := s.pool.Exec(ctx, `
		WITH before AS (
			SELECT v.id, v.team_id, r.bytes, v.bytes * extract(epoch FROM clock_timestamp() - v.counted_at) * 1000 AS byte_ms
			FROM unnest($2::uuid[], $3::bigint[]) AS r (id, bytes) JOIN volumes v USING (id)
			WHERE v.node = $1 AND v.state = 'ready' ORDER BY v.id FOR NO KEY UPDATE OF v
		), now_read AS (
			UPDATE volumes v SET bytes = b.bytes, counted_at = clock_timestamp() FROM before b WHERE v.id = b.id
		)
		INSERT INTO metering_volume_counts AS c (volume_id, hour, team_id, byte_ms)
		SELECT id, date_trunc('hour', now(), 'UTC'), team_id, greatest(byte_ms, 0) FROM before
		ON CONFLICT (hour, volume_id) DO UPDATE SET byte_ms = c.byte_ms + excluded.byte_ms`, node, ids, bytes)
	return classify(err, "storing what volumes hold")
}

// MeteringStatus is how far metering has come.
type MeteringStatus struct {
	EventsUntil  time.Time
	WindowsUntil time.Time
	LastEvent    int64
	LastWindow   int64
}

// MeteringStatus reads how far metering has come, for the control plane.
func (s *Store) MeteringStatus(ctx context.Context) (MeteringStatus, error) {
	rows, _ := s.pool.Query(ctx, `SELECT events_until, windows_until,
		(SELECT coalesce(max(seq), 0) FROM metering_events), (SELECT coalesce(max(seq), 0) FROM metering_windows) FROM metering_progress`)
	st, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[MeteringStatus])
	return st, classify(err, "reading how far metering has come")
}

// MeteringEvent is something that changed what a team pays for.
type MeteringEvent struct {
	Seq        int64
	EventID    string
	Type       string
	TeamID     uuid.UUID
	UserID     uuid.UUID
	SandboxID  string
	TemplateID string
	OccurredAt time.Time
	RecordedAt time.Time
}

// MeteringEvents pages through every team's events, in the order in which they
// were recorded: what is behind a seq is never missed.
func (s *Store) MeteringEvents(ctx context.Context, after int64, limit int) ([]MeteringEvent, error) {
	rows, _ := s.pool.Query(ctx, `SELECT seq, event_id, event_type, team_id, user_id, sandbox_id, template_id, occurred_at, recorded_at
		FROM metering_events WHERE seq > $1 ORDER BY seq LIMIT $2`, after, limit)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[MeteringEvent])
	return list, classify(err, "reading metering events")
}

// Window is what a sandbox has used in an hour. It never changes.
type Window struct {
	Seq        int64
	Type       string
	TeamID     uuid.UUID
	SandboxID  string
	Start, End time.Time
	Value      int64
	Unit       string
	RecordedAt time.Time
}

// WindowFilter narrows a list of windows; zero values do not.
type WindowFilter struct {
	Type  string
	After int64 // seq
	Limit int
}

const windowColumns = "seq, window_type, team_id, sandbox_id, window_start, window_end, value, unit, recorded_at"

// Windows pages through a team's windows in the order in which they were closed.
func (s *Store) Windows(ctx context.Context, team uuid.UUID, f WindowFilter) ([]Window, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+windowColumns+` FROM metering_windows
		WHERE team_id = $1 AND seq > $2 AND ($3 = '' OR window_type = $3) ORDER BY seq LIMIT $4`, team, f.After, f.Type, f.Limit)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Window])
	return list, classify(err, "reading a team's windows")
}

// AllWindows is Windows of every team, for the control plane.
func (s *Store) AllWindows(ctx context.Context, f WindowFilter) ([]Window, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+windowColumns+` FROM metering_windows
		WHERE seq > $1 AND ($2 = '' OR window_type = $2) ORDER BY seq LIMIT $3`, f.After, f.Type, f.Limit)
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Window])
	return list, classify(err, "reading windows")
}

// PurgeMetering forgets events and windows older than age, and what they were made
// from once it can't be needed any more.
func (s *Store) PurgeMetering(ctx context.Context, age time.Duration) error {
	for _, p := range []struct {
		sql string
		age time.Duration
	}{
		{`DELETE FROM metering_events WHERE seq IN (SELECT seq FROM metering_events WHERE recorded_at < now() - $1::interval LIMIT $2)`, age},
		{`DELETE FROM metering_windows WHERE seq IN (SELECT seq FROM metering_windows WHERE recorded_at < now() - $1::interval LIMIT $2)`, age},
		{`DELETE FROM metering_changes WHERE id IN (SELECT c.id FROM metering_changes c, metering_progress p
			WHERE c.at < least(p.events_until, p.windows_until, p.recount_from) - $1::interval LIMIT $2)`, time.Hour},
		{`DELETE FROM metering_volume_changes WHERE id IN (SELECT c.id FROM metering_volume_changes c, metering_progress p
			WHERE c.at < p.events_until - $1::interval LIMIT $2)`, time.Hour},
		{`DELETE FROM metering_readings WHERE sandbox_id IN (SELECT sandbox_id FROM metering_readings r WHERE taken_at < now() - $1::interval
			AND NOT EXISTS (SELECT FROM sandboxes s WHERE s.id = r.sandbox_id) LIMIT $2)`, time.Hour},
	} {
		if err := s.purge(ctx, "purging what was metered", p.sql, p.age); err != nil {
			return err
		}
	}
	return nil
}
