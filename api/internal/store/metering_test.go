package store_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/store"
	"s0.run/internal/s0test"
	"s0.run/internal/sandbox"
)

// metered is a database whose past a test makes up: PostgreSQL's clock is real.
type metered struct {
	t     *testing.T
	s     *store.Store
	conn  *pgx.Conn
	hour  time.Time // the first to be closed
	hours int       // that a test looks at
}

func openMetered(t *testing.T) *metered { return openMeteredAt(t, s0test.Postgres(t)) }

func openMeteredAt(t *testing.T, dsn string) *metered {
	s, conn := openAt(t, dsn)
	m := &metered{t: t, s: s, conn: conn, hours: 2}
	// Two hours ago metering was up to date. A minute after an hour it can be closed.
	if err := conn.QueryRow(t.Context(), `UPDATE metering_progress SET (windows_until, events_until) = (
		SELECT h, h FROM (SELECT date_trunc('hour', now() - interval '1 minute', 'UTC') - interval '2 hours' AS h) x) RETURNING windows_until`).Scan(&m.hour); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *metered) exec(sql string, args ...any) {
	m.t.Helper()
	if _, err := m.conn.Exec(m.t.Context(), sql, args...); err != nil {
		m.t.Fatal(err)
	}
}

// began says since when a sandbox has run.
func (m *metered) began(id sandbox.ID, at time.Time) {
	m.t.Helper()
	m.exec("UPDATE sandboxes SET runs_since = $2, claimed_at = $2 WHERE id = $1", id, at)
}

// changed says when its last change took place.
func (m *metered) changed(id sandbox.ID, at time.Time) {
	m.t.Helper()
	m.exec("UPDATE metering_changes SET at = $2 WHERE id = (SELECT max(id) FROM metering_changes WHERE sandbox_id = $1)", id, at)
	m.exec("UPDATE sandboxes SET runs_since = $2 WHERE id = $1 AND runs_since IS NOT NULL", id, at)
}

func (m *metered) meter() {
	m.t.Helper()
	if err := m.s.Meter(m.t.Context()); err != nil {
		m.t.Fatal(err)
	}
}

// windows are a team's windows of one type, by sandbox and hour from the first.
func (m *metered) windows(team uuid.UUID, kind string) map[string]int64 {
	m.t.Helper()
	list, err := m.s.Windows(m.t.Context(), team, store.WindowFilter{Type: kind, Limit: 1000})
	if err != nil {
		m.t.Fatal(err)
	}
	got := map[string]int64{}
	for _, w := range list {
		if w.End.Sub(w.Start) != time.Hour {
			m.t.Errorf("%+v", w)
		}
		if n := int(w.Start.Sub(m.hour).Hours()); n < m.hours {
			got[fmt.Sprintf("%s/%d", w.SandboxID, n)] += w.Value
		}
	}
	return got
}

func (m *metered) want(team uuid.UUID, kind string, want map[string]int64) {
	m.t.Helper()
	got := m.windows(team, kind)
	for k, v := range want {
		if got[k] != v {
			m.t.Errorf("%s %s: %d, want %d", kind, k, got[k], v)
		}
	}
	if len(got) != len(want) {
		m.t.Errorf("%s: %v, want %v", kind, got, want)
	}
}

func (m *metered) events() []string {
	m.t.Helper()
	list, err := m.s.MeteringEvents(m.t.Context(), 0, 1000)
	if err != nil {
		m.t.Fatal(err)
	}
	var got []string
	for _, e := range list {
		got = append(got, e.Type+" "+e.SandboxID)
	}
	return got
}

const minute = int64(60_000) // milliseconds

func TestRuntimeIsMeteredOnceWhateverHappens(t *testing.T) {
	t.Parallel()
	m := openMetered(t)
	ctx, team := t.Context(), uuid.New()
	long, short, grown := insert(t, m.s, newSandbox(t, team)), insert(t, m.s, newSandbox(t, team)), insert(t, m.s, newSandbox(t, team))
	m.began(long.ID, m.hour.Add(-time.Hour))
	m.began(short.ID, m.hour.Add(10*time.Minute))
	m.began(grown.ID, m.hour.Add(30*time.Minute))
	for range 2 { // the second changes nothing
		if _, err := m.s.BeginDelete(ctx, team, short.ID, "x"); err != nil {
			t.Fatal(err)
		}
	}
	m.changed(short.ID, m.hour.Add(40*time.Minute))
	row, err := m.s.Sandbox(ctx, team, grown.ID)
	if err != nil {
		t.Fatal(err)
	}
	twice := int64(2 << 30)
	if _, err := m.s.UpdateSandbox(ctx, team, row, store.SandboxUpdate{Config: []byte(`{}`), MemoryBytes: &twice}); err != nil {
		t.Fatal(err)
	}
	m.changed(grown.ID, m.hour.Add(45*time.Minute))
	m.meter()
	hours := map[string]int64{
		string(long.ID) + "/0": 1024 * 60 * minute, string(long.ID) + "/1": 1024 * 60 * minute,
		string(short.ID) + "/0": 1024 * 30 * minute,
		string(grown.ID) + "/0": 1024*15*minute + 2048*15*minute, string(grown.ID) + "/1": 2048 * 60 * minute,
	}
	m.want(team, store.WindowRuntime, hours)
	m.meter()
	m.want(team, store.WindowRuntime, hours)
	if got := m.windows(uuid.New(), ""); len(got) != 0 {
		t.Errorf("A01: another team sees %v", got)
	}
	claimed, ended := "sandbox.claimed ", "sandbox.terminated "
	want := []string{ // long began before metering did
		claimed + string(short.ID), claimed + string(grown.ID), ended + string(short.ID),
	}
	if got := m.events(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestPauseAndResumeAreMetered(t *testing.T) {
	t.Parallel()
	m := openMetered(t)
	team := uuid.New()
	sb := insert(t, m.s, newSandbox(t, team))
	m.began(sb.ID, m.hour)
	for i, status := range []string{"paused", "starting", "paused", "starting", "running", "paused", "failed", "terminating"} {
		m.exec("UPDATE sandboxes SET status = $2 WHERE id = $1", sb.ID, status)
		switch i {
		case 0, 4, 5, 6: // a resume that failed is nothing that happened
			m.changed(sb.ID, m.hour.Add(time.Duration(5*(i+1))*time.Minute))
		}
	}
	m.meter()
	m.want(team, store.WindowRuntime, map[string]int64{string(sb.ID) + "/0": 1024 * 10 * minute}) // 0 to 5, 25 to 30
	id := " " + string(sb.ID)
	want := []string{"sandbox.claimed" + id, "sandbox.paused" + id, "sandbox.resumed" + id, "sandbox.paused" + id, "sandbox.terminated" + id}
	if got := m.events(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// Many replicas, and passes that are cut off: every hour is closed once.
func TestHoursAreClosedOnceByManyReplicas(t *testing.T) {
	t.Parallel()
	m := openMetered(t)
	team := uuid.New()
	m.exec("UPDATE metering_progress SET windows_until = windows_until - interval '20 hours'")
	m.hour, m.hours = m.hour.Add(-20*time.Hour), 22
	sb := insert(t, m.s, newSandbox(t, team))
	m.began(sb.ID, m.hour)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if i%2 == 0 {
				time.AfterFunc(time.Duration(i)*3*time.Millisecond, cancel) // it dies in the middle
			}
			if err := m.s.Meter(ctx); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	m.meter()
	for deadline := time.Now().Add(time.Minute); len(m.windows(team, store.WindowRuntime)) < 22 && time.Now().Before(deadline); {
		m.meter() // it has nothing to do as long as the database has not seen the last one die
	}
	want := map[string]int64{}
	for h := range 22 {
		want[fmt.Sprintf("%s/%d", sb.ID, h)] = 1024 * 60 * minute
	}
	m.want(team, store.WindowRuntime, want)
}

// A transaction that is still under way holds metering up, so that what it writes
// is never behind what is closed.
func TestG08_MeteringWaitsForWhoeverIsStopped(t *testing.T) {
	t.Parallel()
	m := openMetered(t)
	before, err := m.s.MeteringStatus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tx, err := m.conn.Begin(t.Context()) // a replica that is stopped in the middle of a claim
	if err != nil {
		t.Fatal(err)
	}
	var began time.Time
	if err := tx.QueryRow(t.Context(), "SELECT now()").Scan(&began); err != nil {
		t.Fatal(err)
	}
	m.meter()
	st, err := m.s.MeteringStatus(t.Context())
	if err != nil || !st.EventsUntil.After(before.EventsUntil) || st.EventsUntil.After(began) {
		t.Errorf("events until %s, a transaction began at %s: %v", st.EventsUntil, began, err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// X48: the database's clock is an hour ahead for a while, and an hour is closed that is not
// over. Nothing that happens once the clock is right again goes unseen, and what the hour
// had more is in the next one's windows.
func TestX48_AnHourThatWasClosedTooEarly(t *testing.T) {
	t.Parallel()
	dsn, set := s0test.SkewedPostgres(t)
	m := openMeteredAt(t, dsn)
	m.hour = m.hour.Add(-3 * time.Hour)
	m.exec("UPDATE metering_progress SET (windows_until, events_until) = ($1, $1)", m.hour)
	at := func(minutes int) time.Time { return m.hour.Add(time.Duration(minutes) * time.Minute) }
	pass := func(minute int) { // at that time, as the clock has it
		t.Helper()
		set(time.Until(at(minute)))
		m.meter()
	}
	team := newTeam(t, m.conn)
	begun := func(minute int) store.Sandbox {
		sb := insert(t, m.s, newSandbox(t, team))
		m.began(sb.ID, at(minute))
		return sb
	}
	ended := func(sb store.Sandbox, minute int) {
		m.exec("UPDATE sandboxes SET status = 'paused' WHERE id = $1", sb.ID)
		m.changed(sb.ID, at(minute))
	}
	long, short := begun(0), begun(10)
	pass(80)
	pass(20)
	late, brief := begun(20), begun(25)
	ended(short, 30)
	ended(brief, 40)
	if err := m.s.AddReadings(t.Context(), long.Node, []store.Reading{{ID: long.ID, Generation: 1, EgressBytes: 100}}); err != nil {
		t.Fatal(err)
	}
	pass(125)
	m.want(team, store.WindowRuntime, map[string]int64{
		string(long.ID) + "/0": 1024 * 60 * minute, string(short.ID) + "/0": 1024 * 50 * minute, // as if they ran on
		string(long.ID) + "/1": 1024 * 60 * minute, string(late.ID) + "/1": 1024 * 100 * minute, string(brief.ID) + "/1": 1024 * 15 * minute,
	})
	m.want(team, store.WindowEgress, map[string]int64{string(long.ID) + "/1": 100})
	got := map[string]bool{}
	for _, e := range m.events() {
		got[e] = true
	}
	for _, e := range []string{"claimed " + string(late.ID), "claimed " + string(brief.ID), "paused " + string(brief.ID), "paused " + string(short.ID)} {
		if !got["sandbox."+e] {
			t.Errorf("nothing says %s: %v", e, got)
		}
	}
	pass(185)
	m.hours = 3
	if got := m.windows(team, store.WindowRuntime)[string(late.ID)+"/2"]; got != 1024*60*minute {
		t.Errorf("the hour after has %d", got)
	}
}

func TestReadingsCountOnce(t *testing.T) {
	t.Parallel()
	m := openMetered(t)
	ctx, team := t.Context(), newTeam(t, m.conn)
	sb := insert(t, m.s, newSandbox(t, team))
	read := func(gen, in, out int64) {
		t.Helper()
		var wg sync.WaitGroup
		for range 2 { // two replicas
			wg.Go(func() {
				err := m.s.AddReadings(ctx, sb.Node, []store.Reading{
					{ID: sb.ID, Generation: sandbox.Generation(gen), IngressBytes: in, EgressBytes: out, RootfsBytes: 1 << 30},
					{ID: "nobody-knows", Generation: 1, IngressBytes: 5},
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	check := func(in, out int64) {
		t.Helper()
		u, err := m.s.Usage(ctx, team)
		if err != nil || u.IngressBytes != in || u.EgressBytes != out {
			t.Errorf("%+v, want %d in and %d out: %v", u, in, out, err)
		}
	}
	read(1, 100, 10)
	check(100, 10)
	read(1, 150, 10)
	check(150, 10)
	read(1, 140, 9) // an answer that was long on its way
	check(150, 10)
	read(2, 30, 3) // counters begin again
	check(180, 13)
	read(1, 500, 500)
	check(180, 13)
	if err := m.s.AddReadings(ctx, "another", []store.Reading{{ID: sb.ID, Generation: 3, IngressBytes: 500}}); err != nil {
		t.Fatal(err)
	}
	check(180, 13) // of a node that does not have it
	if err := m.s.AddReadings(ctx, sb.Node, []store.Reading{{ID: sb.ID, Generation: 2, IngressBytes: 30, EgressBytes: 3, RootfsBytes: -1}}); err != nil {
		t.Fatal(err)
	}
	check(180, 13) // and its files are as they were
	// The root filesystem took 1 GiB for an hour until the next reading.
	m.exec("UPDATE metering_readings SET taken_at = clock_timestamp() - interval '1 hour'")
	m.exec("UPDATE metering_counts SET hour = $1", m.hour) // what was read so far
	read(2, 30, 4)
	m.exec("UPDATE metering_counts SET hour = $1 WHERE hour <> $2", m.hour.Add(time.Hour), m.hour)
	m.meter()
	m.want(team, store.WindowIngress, map[string]int64{string(sb.ID) + "/0": 180})
	m.want(team, store.WindowEgress, map[string]int64{string(sb.ID) + "/0": 13, string(sb.ID) + "/1": 1})
	got := m.windows(team, store.WindowRootfs)[string(sb.ID)+"/1"]
	if off := got - 1<<30; off < 0 || off > 1<<24 {
		t.Errorf("%d byte hours", got)
	}
	u, err := m.s.Usage(ctx, team) // of the month, which may have begun in between
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		dimension       string
		limit, interval int64 // 0: a month's
		used            bool
	}{
		{store.QuotaEgress, u.EgressBytes, 0, true}, {store.QuotaEgress, u.EgressBytes + 1, 0, false},
		{store.QuotaIngress, u.IngressBytes, 0, true}, {store.QuotaIngress, u.IngressBytes + 1, 0, false},
		{store.QuotaEgress, 14, 24 * 3600_000, true}, {store.QuotaEgress, 15, 24 * 3600_000, false}, {store.QuotaIngress, 180, 24 * 3600_000, true},
		{store.QuotaEgress, 1, 60_000, false}, {store.QuotaSandboxEgress, 0, 0, false}, // a rate, and each sandbox's
	} {
		q := store.Quota{Dimension: c.dimension, Limit: &c.limit}
		if c.interval > 0 {
			q.IntervalMS = &c.interval
		}
		if err := m.s.SetQuota(ctx, team, q); err != nil {
			t.Fatal(err)
		}
		used, err := m.s.UsedTraffic(ctx, time.Minute)
		if is := slices.Equal(used, []store.TeamTraffic{{Team: team, Dimension: c.dimension}}); err != nil || is != c.used || !c.used && len(used) > 0 {
			t.Errorf("%+v: used up: %v, %v", c, used, err)
		}
		if err := m.s.UnsetQuota(ctx, team, c.dimension); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []bool{true, false} {
		if turn, err := m.s.TakeReadingTurn(ctx, time.Minute); turn != want || err != nil {
			t.Errorf("%v, want %v: %v", turn, want, err)
		}
	}
}

// The last of a generation that is over adds its counters once, however often it is told,
// and no time that its files are kept: that is what another generation adds.
func TestFinalReadingsAddNoTime(t *testing.T) {
	t.Parallel()
	m := openMetered(t)
	ctx, team := t.Context(), newTeam(t, m.conn)
	read, unread := insert(t, m.s, newSandbox(t, team)), insert(t, m.s, newSandbox(t, team))
	add := func(final bool, gen sandbox.Generation, in int64) {
		t.Helper()
		for _, sb := range []store.Sandbox{read, unread} {
			if sb.ID == unread.ID && !final && gen == 1 {
				continue // it ended before anybody came round
			}
			if err := m.s.AddReadings(ctx, sb.Node, []store.Reading{{ID: sb.ID, Generation: gen, IngressBytes: in, RootfsBytes: 1 << 30, Final: final}}); err != nil {
				t.Fatal(err)
			}
		}
		m.exec("UPDATE metering_readings SET taken_at = taken_at - interval '1 hour'")
	}
	stored := func(want int64) {
		t.Helper()
		m.exec("UPDATE metering_counts SET hour = $1", m.hour)
		m.meter()
		for _, sb := range []store.Sandbox{read, unread} {
			got := m.windows(team, store.WindowRootfs)[string(sb.ID)+"/0"]
			if off := got - want<<30; off < 0 || off > 1<<24 {
				t.Errorf("%s: %d byte hours, want %d GiB for one", sb.ID, got, want)
			}
		}
	}
	add(false, 1, 5)
	for range 5 {
		add(true, 1, 7)
	}
	u, err := m.s.Usage(ctx, team)
	if err != nil || u.IngressBytes != 14 {
		t.Errorf("%+v: %v", u, err)
	}
	var billed int64
	if err := m.conn.QueryRow(ctx, "SELECT sum(rootfs_byte_ms)::bigint FROM metering_counts").Scan(&billed); err != nil || billed != 0 {
		t.Errorf("what is over is billed %d byte ms: %v", billed, err)
	}
	m.exec("UPDATE metering_readings SET taken_at = clock_timestamp() - interval '2 hours'")
	add(false, 2, 0) // it was paused, and goes on
	stored(2)
}

// What is not metered yet is not forgotten, and what is metered is in time.
func TestMeteringIsPurged(t *testing.T) {
	t.Parallel()
	m := openMetered(t)
	ctx, team := t.Context(), uuid.New()
	sb := insert(t, m.s, newSandbox(t, team))
	if _, err := m.s.BeginDelete(ctx, team, sb.ID, "x"); err != nil {
		t.Fatal(err)
	}
	if err := m.s.FinishDelete(ctx, team, sb.ID, sb.ClaimID); err != nil {
		t.Fatal(err)
	}
	purge := func() (left bool) {
		t.Helper()
		if err := m.s.PurgeDeleted(ctx, 0); err != nil {
			t.Fatal(err)
		}
		if err := m.s.PurgeMetering(ctx, 0); err != nil {
			t.Fatal(err)
		}
		_, err := m.s.AnySandbox(ctx, sb.ID)
		return err == nil
	}
	if !purge() {
		t.Fatal("a tombstone is gone before it was metered")
	}
	m.exec("UPDATE sandboxes SET claimed_at = $1, deleted_at = $1 WHERE id = $2", m.hour, sb.ID)
	m.exec("UPDATE metering_changes SET at = $1", m.hour.Add(time.Minute))
	m.meter()
	if got := m.events(); len(got) != 2 {
		t.Errorf("%q", got)
	}
	if purge() {
		t.Error("the tombstone is still there")
	}
	for _, table := range []string{"metering_events", "metering_windows", "metering_changes"} {
		var n int
		if err := m.conn.QueryRow(ctx, "SELECT count(*) FROM "+table).Scan(&n); err != nil || n != 0 {
			t.Errorf("%d in %s: %v", n, table, err)
		}
	}
}
