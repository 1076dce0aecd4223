package api_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"s0.run/api"
	"s0.run/api/internal/fakenode"
	"s0.run/internal/nodeapi"
	"s0.run/internal/s0test"
)

// gate is a proxy before PostgreSQL that counts connections and can hold up what
// the server says.
type gate struct {
	upstream string
	dir      string
	delay    atomic.Int64 // of each chunk from the server
	opened   atomic.Int64
}

func newGate(t *testing.T, dsn string) (*gate, string) {
	t.Helper()
	host, _, _ := strings.Cut(strings.TrimPrefix(dsn, "host="), " ")
	g := &gate{upstream: filepath.Join(host, ".s.PGSQL.5432"), dir: t.TempDir()}
	l, err := net.Listen("unix", filepath.Join(g.dir, ".s.PGSQL.5432"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			g.opened.Add(1)
			go g.serve(conn)
		}
	}()
	return g, strings.Replace(dsn, "host="+host, "host="+g.dir, 1)
}

func (g *gate) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("unix", g.upstream)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		defer server.Close()
		io.Copy(server, client)
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := server.Read(buf)
		if err != nil {
			return
		}
		if d := time.Duration(g.delay.Load()); d > 0 {
			time.Sleep(d) // this is the fault
		}
		if _, err := client.Write(buf[:n]); err != nil {
			return
		}
	}
}

// X34: the database stops under a terminal and a crowd of claims. The terminal goes
// on, claims are refused at once, and when the database is back it is not met by
// more connections than the server ever has.
func TestX34_ATerminalGoesOnAndNoHerdComesBack(t *testing.T) {
	t.Parallel()
	pg := s0test.NewPostgresCluster(t, "fsync=off")
	direct := pg.Database(t)
	g, dsn := newGate(t, direct)
	i := start(t, func(c *api.Config, _ *fakenode.Node) { c.DatabaseURL = dsn })
	key := i.key("developer")
	id := i.claim(key)
	conn := i.attach(key, "/api/v1/sandboxes/"+id+"/contexts/")
	conn.echoes(t, "before")
	pg.Stop()
	refused := func() {
		began := time.Now()
		a := i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"default"}`})
		if a.code != "claim_start_throttled" { // more come at once than have a turn
			a.refused(503, "unavailable")
		}
		if took := time.Since(began); took > 8*time.Second {
			t.Errorf("a claim was refused after %v", took)
		}
	}
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(refused)
	}
	wg.Wait()
	conn.echoes(t, "without a database")
	i.attach(key, "/api/v1/sandboxes/"+id+"/contexts/").echoes(t, "attached without a database")
	if err := pg.Start(); err != nil {
		t.Fatal(err)
	}
	before := g.opened.Load() // each look for a database that was away is one
	began := time.Now()
	for range 40 {
		wg.Go(func() {
			fakenode.Eventually(t, "claims work again", func() bool {
				return i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"default"}`}).status == 201
			})
		})
	}
	wg.Wait()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("recovery took %v", took)
	}
	if more := g.opened.Load() - before; more > 64 {
		t.Errorf("%d connections were opened when the database came back", more)
	}
	conn.echoes(t, "after")
}

func (c *terminal) echoes(t *testing.T, text string) {
	t.Helper()
	if err := c.WriteJSON(map[string]string{"type": "input", "data": text}); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	for {
		typ, b, err := c.ReadMessage()
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if strings.Contains(string(b), text) && typ == websocket.TextMessage {
			return
		}
	}
}

// claimsFail tries claims at once while something is wrong with the database: each
// is answered in time, with a sandbox or with 503. When all is well again, rows
// and node have what was acknowledged and nothing else.
func (i *instance) claimsFail(key string, claims int, mustFail bool, repair func()) {
	i.t.Helper()
	var made atomic.Int64
	var wg sync.WaitGroup
	for range claims {
		wg.Go(func() {
			began := time.Now()
			switch a := i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"default"}`}); {
			case a.status == 201 && !mustFail:
				made.Add(1)
			default:
				a.refused(503, "unavailable")
			}
			if took := time.Since(began); took > 10*time.Second {
				i.t.Errorf("the answer took %v", took)
			}
		})
	}
	wg.Wait()
	repair()
	var list struct{ Count int }
	fakenode.Eventually(i.t, "half claims are undone", func() bool {
		a := i.send(request{method: "GET", path: "/api/v1/sandboxes", token: key})
		if a.status != 200 {
			return false
		}
		a.want(200, &list)
		return list.Count == int(made.Load()) && len(i.node.Sandboxes()) == list.Count
	})
	i.claim(key)
}

func TestX35_ASlowDatabase(t *testing.T) {
	t.Parallel()
	pg := s0test.NewPostgresCluster(t, "fsync=off")
	g, dsn := newGate(t, pg.Database(t))
	i := start(t, func(c *api.Config, _ *fakenode.Node) { c.DatabaseURL = dsn })
	key := i.key("developer")
	g.delay.Store(int64(5 * time.Second))
	i.claimsFail(key, 30, true, func() { g.delay.Store(0) })
}

// All connections wait for a lock that others hold: claims don't wait with them
// for longer than they may.
func TestX35_NoConnectionIsLeft(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	locked, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { lockTable(t, i.dsn, locked, release) })
	<-locked
	for range 40 { // more than the store has connections
		wg.Go(func() { i.send(request{method: "GET", path: "/api/v1/sandboxes", token: key}) })
	}
	i.claimsFail(key, 30, false, func() { close(release) })
	wg.Wait()
}

// Errors that the database answers with: injected into the statement that stores a
// claim, as often as the case says.
func TestX35_X38_WhatTheDatabaseRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		state    string
		times    int
		mustFail bool
	}{
		"a deadlock":              {"40P01", 3, false},
		"a serialization failure": {"40001", 3, false},
		"a full disk":             {"53100", 1_000_000, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			i := start(t)
			key := i.key("developer")
			exec := func(sql string) { exec(t, i.dsn, sql) }
			exec(fmt.Sprintf(`CREATE SEQUENCE faults; CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				IF nextval('faults') <= %d THEN RAISE EXCEPTION 'injected' USING ERRCODE = '%s'; END IF; RETURN NEW; END $$;
				CREATE TRIGGER fault BEFORE INSERT ON sandboxes FOR EACH ROW EXECUTE FUNCTION fault()`, c.times, c.state))
			i.claimsFail(key, 20, c.mustFail, func() { exec("DROP TRIGGER fault ON sandboxes") })
		})
	}
}

func TestX38_AReadOnlyDatabase(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	id := i.claim(key)
	readOnly := func(on string) {
		exec(t, i.dsn, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = `+on+`', current_database()); END $$`)
		loseSessions(t, i.dsn)
	}
	readOnly("on")
	reads := func() bool {
		return i.send(request{method: "GET", path: "/api/v1/sandboxes/" + id, token: key}).status == 200 &&
			i.send(request{method: "GET", path: "/api/v1/sandboxes", token: key}).status == 200
	}
	fakenode.Eventually(t, "reads work", reads)
	for _, r := range []request{
		{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"default"}`},
		{method: "DELETE", path: "/api/v1/sandboxes/" + id, token: key},
		{method: "POST", path: "/api/v1/sandboxes/" + id + "/refresh", token: key},
	} {
		i.send(r).refused(503, "unavailable")
	}
	if !reads() {
		t.Error("reads do not work after writes failed")
	}
	conn := connect(t, i.dsn)
	defer conn.Close(context.Background())
	if _, err := conn.Exec(context.Background(), "SET default_transaction_read_only = off"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(context.Background(), `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET default_transaction_read_only', current_database()); END $$`); err != nil {
		t.Fatal(err)
	}
	loseSessions(t, i.dsn)
	fakenode.Eventually(t, "writes work again", func() bool {
		return i.send(request{method: "DELETE", path: "/api/v1/sandboxes/" + id, token: key}).status == 200
	})
}

// X40: this server works on a schema that a later one has made: everything that an
// additive migration may do is there, before it starts and while it runs.
func TestX40_ANewerSchema(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	before := i.claim(key)
	exec(t, i.dsn, `
		ALTER TABLE sandboxes ADD COLUMN newer_text text, ADD COLUMN newer_default bigint NOT NULL DEFAULT 7;
		ALTER TABLE templates ADD COLUMN newer_flag boolean NOT NULL DEFAULT false;
		ALTER TABLE api_keys ADD COLUMN newer_at timestamptz;
		CREATE INDEX newer_index ON sandboxes (newer_default);
		CREATE TABLE newer_table (sandbox_id text REFERENCES sandboxes (id) ON DELETE CASCADE);
		CREATE FUNCTION newer_trigger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO newer_table VALUES (NEW.id); RETURN NULL; END $$;
		CREATE TRIGGER newer AFTER INSERT ON sandboxes FOR EACH ROW EXECUTE FUNCTION newer_trigger();
		INSERT INTO schema_migrations (version, name) SELECT max(version) + 1, 'newer' FROM schema_migrations`)
	use := func() {
		id := i.claim(key)
		var list struct{ Count int }
		i.send(request{method: "GET", path: "/api/v1/sandboxes", token: key}).want(200, &list)
		i.send(request{method: "GET", path: "/api/v1/sandboxes/" + id, token: key}).want(200, nil)
		i.send(request{method: "POST", path: "/api/v1/sandboxes/" + id + "/refresh", token: key}).want(200, nil)
		i.send(request{method: "DELETE", path: "/api/v1/sandboxes/" + id, token: key}).want(200, nil)
		i.send(request{method: "GET", path: "/api/v1/sandboxes/" + before, token: key}).want(200, nil)
		i.send(request{method: "GET", path: "/api/v1/templates", token: key}).want(200, nil)
		i.key("viewer")
	}
	use()
	i.stop()
	i.again()
	use()
}

// TestServerProcess is no test: it is the server of those that kill one.
func TestServerProcess(t *testing.T) {
	dsn, node := os.Getenv("S0_TEST_DATABASE"), os.Getenv("S0_TEST_NODE")
	if dsn == "" {
		t.SkipNow() // nobody wants a server
	}
	dir := os.Getenv("S0_TEST_DIR")
	err := api.Run(context.Background(), api.Config{
		Listen: "127.0.0.1:0", DatabaseURL: dsn, Nodes: []string{node}, KeyFile: filepath.Join(dir, "key"), AdminPassword: "a password of the test",
		DefaultImage: "image", PoolMin: 4, PoolMax: 8, RateLimit: 10_000, RateBurst: 10_000, Log: slog.New(slog.DiscardHandler),
		Ready: func(addr string) {
			if err := os.WriteFile(filepath.Join(dir, "new"), []byte(addr), 0o600); err == nil {
				_ = os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "address"))
			}
		},
	})
	t.Fatal(err)
}

// process runs a server as a process of its own, over an instance's node.
func process(t *testing.T, node *fakenode.Node, dsn, dir string) (i *instance, kill func()) {
	t.Helper()
	os.Remove(filepath.Join(dir, "address"))
	cmd := serverCommand(dsn, node.Socket, dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	t.Cleanup(kill)
	return &instance{t: t, dsn: dsn, node: node, log: &logBuffer{}, admin: "admin@example.com", pass: "a password of the test"}, kill
}

func serverCommand(dsn, node, dir string) *osexec.Cmd {
	cmd := osexec.Command(os.Args[0], "-test.run=^TestServerProcess$", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), "S0_TEST_DATABASE="+dsn, "S0_TEST_NODE="+node, "S0_TEST_DIR="+dir)
	return cmd
}

func (i *instance) wait(dir string) {
	i.t.Helper()
	fakenode.Eventually(i.t, "the process serves", func() bool {
		addr, err := os.ReadFile(filepath.Join(dir, "address"))
		i.url = "http://" + string(addr)
		return err == nil && i.send(request{method: "GET", path: "/readyz"}).status == 200
	})
}

// X39: a server is killed in the middle of a claim, and in the middle of a
// migration. The next one finds nothing half done; the claim's key gives one
// sandbox.
func TestX39_AServerIsKilled(t *testing.T) {
	t.Parallel()
	dsn, dir := s0test.Postgres(t), t.TempDir()
	var wg sync.WaitGroup
	var hold atomic.Bool
	begun, proceed := make(chan struct{}), make(chan struct{})
	node := fakenode.Start(t, &fakenode.Node{Proc: fakenode.NewProcd(), AfterClaim: func(context.Context, *nodeapi.ClaimRequest) error {
		if hold.Swap(false) {
			close(begun)
			<-proceed
		}
		return nil
	}})
	blocker := connect(t, dsn)
	tx, err := blocker.Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), "CREATE TABLE sandboxes ()") // the migration that makes it waits
	}
	if err != nil {
		t.Fatal(err)
	}
	_, kill := process(t, node, dsn, dir)
	watcher := connect(t, dsn)
	fakenode.Eventually(t, "a migration is in the middle", func() bool {
		var waiting bool
		err := watcher.QueryRow(context.Background(), "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'").Scan(&waiting)
		return err == nil && waiting
	})
	kill()
	if err := tx.Rollback(context.Background()); err != nil {
		t.Fatal(err)
	}
	i, kill := process(t, node, dsn, dir)
	i.wait(dir)
	key := i.key("developer")
	hold.Store(true)
	lost := i.request(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"default"}`, header: http.Header{"Idempotency-Key": {"one"}}})
	wg.Go(func() {
		if resp, err := http.DefaultClient.Do(lost); err == nil {
			resp.Body.Close()
			t.Errorf("a server that was killed answered %s", resp.Status)
		}
	})
	<-begun
	kill()
	close(proceed)
	wg.Wait()
	i, _ = process(t, node, dsn, dir)
	i.wait(dir)
	first := i.claimByKey(key, "one")
	if again := i.claimByKey(key, "one"); first == "" || again != first {
		t.Errorf("the key gave %q, then %q", first, again)
	}
	var list struct{ Count int }
	i.send(request{method: "GET", path: "/api/v1/sandboxes", token: key}).want(200, &list)
	if list.Count != 1 || node.Sandboxes()[first] == nil {
		t.Errorf("%d rows; at the node: %v", list.Count, node.Sandboxes())
	}
}
