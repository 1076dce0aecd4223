package api_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"s0.run/api"
	"s0.run/api/internal/fakenode"
	"s0.run/internal/daemon"
	"s0.run/internal/nodeapi"
	"s0.run/internal/s0test"
	"s0.run/internal/sandbox"
)

// scaleRows is how many sandboxes the benchmark has before it measures.
const scaleRows = 100_000

// BenchmarkScale measures the control plane with 100,000 live sandboxes of one
// team: lists, a restart, claims. PostgreSQL is durable, the node API is a real
// one over a unix socket; behind it a node that does nothing (package fakenode).
// Load generator, API server, node and PostgreSQL share the machine.
//
//	go test -run '^$' -bench Scale -benchtime 1x ./api
//	go test -run '^$' -bench Scale/claims -benchtime 1x ./api
func BenchmarkScale(b *testing.B) {
	s := newScale(b)
	s.populate(scaleRows)
	s.restart() // what serves has found them, not seen them come
	for _, part := range []struct {
		name    string
		measure func()
	}{{"lists", s.lists}, {"claims", s.claims}} {
		b.Run(part.name, func(b *testing.B) {
			for b.Loop() {
				part.measure()
			}
		})
	}
	s.print()
}

// scale is one run of the benchmark.
type scale struct {
	b    *testing.B
	pg   *s0test.PostgresCluster
	i    *instance
	key  string
	rows []scaleRow
}

// scaleRow is a line of the table.
type scaleRow struct {
	what, load string
	n          int
	took       []time.Duration // sorted
	note       string
}

func newScale(b *testing.B) *scale {
	daemon.CollectLess()                                                                            // as s0d does
	s := &scale{b: b, pg: s0test.NewPostgresCluster(b, "shared_buffers=512MB", "max_wal_size=4GB")} // with fsync and synchronous_commit
	s.i = start(b, func(c *api.Config, n *fakenode.Node) {
		c.DatabaseURL = s.pg.Database(b)
		c.PoolMin, c.PoolMax = 1_000, 1_000
		c.RateLimit, c.RateBurst = 1e6, 1e6
		c.Log = slog.New(slog.DiscardHandler)
	})
	s.key = s.i.key("developer")
	return s
}

// populate gives the team sandboxes that rows and node agree on.
func (s *scale) populate(rows int) {
	ctx := context.Background()
	conn := connect(s.b, s.i.dsn)
	defer conn.Close(ctx)
	s.i.claim(s.key) // whose row the others are made like
	if _, err := conn.Exec(ctx, `INSERT INTO sandboxes (id, team_id, user_id, claim_id, template_id, node, generation, status, config,
			memory_bytes, ttl_seconds, hard_ttl_seconds, created_at)
		SELECT 'local-' || lpad(n::text, 26, '0'), team_id, user_id, gen_random_uuid(), CASE n % 100 WHEN 0 THEN 'rare' ELSE template_id END, node, 1,
			CASE n % 1000 WHEN 0 THEN 'failed' ELSE 'running' END, config, memory_bytes, 0, 0, now() - n * interval '1 second'
		FROM sandboxes, generate_series(1, $1::int) n`, rows); err != nil {
		s.b.Fatal(err)
	}
	list, err := conn.Query(ctx, "SELECT id, team_id::text, user_id::text, claim_id::text FROM sandboxes WHERE status = 'running'")
	if err != nil {
		s.b.Fatal(err)
	}
	for list.Next() {
		sb := &nodeapi.Sandbox{Generation: 1, PoolKey: "p", State: string(sandbox.Running)}
		if err := list.Scan(&sb.Id, &sb.Team, &sb.User, &sb.ClaimId); err != nil {
			s.b.Fatal(err)
		}
		s.i.node.Adopt(sb)
	}
	if err := list.Err(); err != nil {
		s.b.Fatal(err)
	}
	// Rows that come one by one are seen by autovacuum, within its minute.
	if _, err := conn.Exec(ctx, "VACUUM ANALYZE sandboxes"); err != nil {
		s.b.Fatal(err)
	}
}

// restart measures from the start of a server to its first claim.
func (s *scale) restart() {
	var ready, first []time.Duration
	for range 3 {
		s.i.stop()
		began := time.Now()
		s.i.again()
		ready = append(ready, time.Since(began))
		s.i.claim(s.key)
		first = append(first, time.Since(began))
	}
	load := fmt.Sprintf("%d live rows", scaleRows)
	s.add("restart → ready", load, ready, "≤ 10 s")
	s.add("restart → first claim answered", load, first, "")
}

func (s *scale) lists() {
	for _, l := range []struct{ name, query string }{
		{"list: first page of 50", ""},
		{"list: page of 200", "limit=200"},
		{"list: offset 50,000", "offset=50000"},
		{"list: offset 99,900", "offset=99900"},
		{"list: status=running", "status=running"},
		{"list: status=failed (1 in 1000)", "status=failed"},
		{"list: template (1 in 100)", "template_id=rare"},
		{"list: template, offset 900", "template_id=rare&offset=900"},
		{"list: paused=false, offset 50,000", "paused=false&offset=50000"},
	} {
		req := s.request("GET", "/api/v1/sandboxes?"+l.query, "")
		took, _ := s.load(1, 200, req, 200)
		s.add(l.name, fmt.Sprintf("%d rows, 1 client", scaleRows), took, "p99 ≤ 20 ms")
	}
}

func (s *scale) claims() {
	req := s.request("POST", "/api/v1/sandboxes", `{"template":"default"}`)
	for _, c := range []struct{ clients, n int }{{1, 3_000}, {8, 8_000}, {32, 15_000}, {64, 20_000}, {128, 20_000}} {
		before, pgBefore := cpu(s.b), s.pg.CPU(s.b)
		took, all := s.load(c.clients, c.n, req, 201)
		n := float64(len(took)) // of a client that was refused, nothing more was asked
		note := fmt.Sprintf("%.0f claims/s; CPU a claim: %.0f µs here, %.0f µs in PostgreSQL", n/all.Seconds(),
			float64((cpu(s.b)-before).Microseconds())/n, float64((s.pg.CPU(s.b)-pgBefore).Microseconds())/n)
		s.add("claim", fmt.Sprintf("%d clients", c.clients), took, note)
	}
}

func (s *scale) add(what, load string, took []time.Duration, note string) {
	if len(took) == 0 {
		s.b.Fatalf("%s, %s: nothing was answered", what, load)
	}
	slices.Sort(took)
	s.rows = append(s.rows, scaleRow{what, load, len(took), took, note})
	s.b.Logf("%s, %s: p50 %v, p99 %v; %s", what, load, took[len(took)/2], took[len(took)*99/100], note)
}

func (s *scale) print() {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "what\tload\tN\tmin\tp50\tp99\tms; compared with")
	for _, r := range s.rows {
		ms := func(p int) float64 { return float64(r.took[(len(r.took)-1)*p/100].Microseconds()) / 1000 }
		fmt.Fprintf(w, "%s\t%s\t%d\t%.3g\t%.3g\t%.3g\t%s\n", r.what, r.load, r.n, ms(0), ms(50), ms(99), r.note)
	}
	w.Flush()
}

// cpu is what this process has used: load generator, API server and node.
func cpu(t testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func (s *scale) request(method, path, body string) []byte {
	return s.i.rawRequest(method, path, s.key, body)
}

// rawRequest is a request as it goes over the wire.
func (i *instance) rawRequest(method, path, key, body string) []byte {
	return fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s",
		method, path, strings.TrimPrefix(i.url, "http://"), key, len(body), body)
}

// load sends a request n times over so many connections.
func (s *scale) load(clients, n int, req []byte, status int) (took []time.Duration, all time.Duration) {
	share := n / clients
	each := make([][]time.Duration, clients)
	began := time.Now()
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			w, err := s.i.dial()
			if err != nil {
				s.b.Error(err)
				return
			}
			defer w.Close()
			for range share {
				began := time.Now()
				if got, body, err := w.exchange(req); err != nil || got != status {
					s.b.Error(got, body, err)
					return
				}
				each[c] = append(each[c], time.Since(began))
			}
		})
	}
	wg.Wait()
	return slices.Concat(each...), time.Since(began)
}

// wire is a connection as a load generator written in C would use it: a request is
// made once, and of an answer it reads what it must. Clients share the machine with
// the server; theirs is none of what is measured.
type wire struct {
	net.Conn
	r *bufio.Reader
}

func (i *instance) dial() (*wire, error) {
	conn, err := net.Dial("tcp", strings.TrimPrefix(i.url, "http://"))
	if err != nil {
		return nil, err
	}
	return &wire{conn, bufio.NewReaderSize(conn, 64<<10)}, nil
}

// exchange gives the status of an answer, and its body if it is an error.
func (w *wire) exchange(req []byte) (status int, body string, err error) {
	if _, err := w.Write(req); err != nil {
		return 0, "", err
	}
	line, err := w.r.ReadSlice('\n')
	if err != nil {
		return 0, "", err
	}
	status, _ = strconv.Atoi(string(line[9:12]))
	length := 0
	for {
		line, err := w.r.ReadSlice('\n')
		if err != nil {
			return status, "", err
		}
		if len(line) == 2 {
			break
		}
		if v, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			length, _ = strconv.Atoi(string(bytes.TrimSpace(v)))
		}
	}
	if status < http.StatusBadRequest {
		_, err = w.r.Discard(length)
		return status, "", err
	}
	b, err := io.ReadAll(io.LimitReader(w.r, int64(length)))
	return status, string(b), err
}
