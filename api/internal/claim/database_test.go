package claim_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/fakenode"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/s0test"
	"s0.run/internal/sandbox"
)

// cutter is a proxy before PostgreSQL that cuts a connection around the commit
// of a statement: before it reaches the server, or after the server did it and
// before the client hears of it.
type cutter struct {
	upstream string
	marker   []byte

	mu    sync.Mutex
	after bool
	left  int // cuts that are armed
	cuts  int
}

func newCutter(t *testing.T, dsn, marker string) (*cutter, string) {
	t.Helper()
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, ".s.PGSQL.5432"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c := &cutter{upstream: filepath.Join(cfg.Host, ".s.PGSQL.5432"), marker: []byte(marker)}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go c.serve(conn)
		}
	}()
	return c, strings.Replace(dsn, "host="+cfg.Host, "host="+dir, 1)
}

func (c *cutter) arm(after bool, cuts int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.after, c.left, c.cuts = after, cuts, 0
}

func (c *cutter) made() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cuts
}

// hit says whether a chunk on its way to the server is to be cut, and how.
func (c *cutter) hit(chunk []byte) (cut, after bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left == 0 || !bytes.Contains(chunk, c.marker) {
		return false, false
	}
	c.left--
	c.cuts++
	return true, c.after
}

func (c *cutter) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("unix", c.upstream)
	if err != nil {
		return
	}
	defer server.Close()
	silenced := make(chan struct{})
	go func() {
		defer client.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := server.Read(buf)
			if err != nil {
				return
			}
			select {
			case <-silenced: // the server has answered: it is committed
				return
			default:
				client.Write(buf[:n])
			}
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := client.Read(buf)
		if err != nil {
			return
		}
		cut, after := c.hit(buf[:n])
		if cut && !after {
			return
		}
		if cut {
			close(silenced)
		}
		if _, err := server.Write(buf[:n]); err != nil {
			return
		}
		if cut {
			io.Copy(io.Discard, client) // until the other direction has hung up
			return
		}
	}
}

func TestX36_ConnectionCutAroundTheCommit(t *testing.T) {
	t.Parallel()
	const marker = "cut-here"
	for _, c := range []struct {
		name  string
		after bool
		cuts  int
		key   string
	}{
		{"before", false, 1, ""},
		{"after", true, 1, ""},
		{"before with a key", false, 1, "key"},
		{"after with a key", true, 1, "key"},
		{"after three times", true, 3, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := fakenode.Start(t, &fakenode.Node{})
			direct := s0test.Postgres(t)
			proxy, dsn := newCutter(t, direct, marker)
			r := newReplica(t, dsn, n)
			slots(t, n, 3, r)
			req := request()
			req.Key = c.key
			req.Config.EnvVars = map[string]string{"MARKER": marker}
			proxy.arm(c.after, c.cuts)
			sb, err := r.Claim(t.Context(), req)
			if err != nil {
				t.Fatalf("a database that is back at once must not fail a claim: %v", err)
			}
			if proxy.made() != c.cuts {
				t.Fatalf("%d cuts, want %d: the test has not tested", proxy.made(), c.cuts)
			}
			if len(n.Sandboxes()) != 1 {
				t.Errorf("%d sandboxes for one claim", len(n.Sandboxes()))
			}
			agree(t, r, n)
			if c.key != "" {
				again, err := r.Claim(t.Context(), req)
				if err != nil || again.ID != sb.ID {
					t.Errorf("the key must find the same sandbox: %s %v", again.ID, err)
				}
			}
		})
	}
}

// The connection is cut around commits that many claims share: each is done once.
func TestX36_ASharedCommitIsCut(t *testing.T) {
	t.Parallel()
	const marker, claims = "cut-here", 40
	for _, after := range []bool{false, true} {
		t.Run(fmt.Sprint("after=", after), func(t *testing.T) {
			t.Parallel()
			n := fakenode.Start(t, &fakenode.Node{})
			proxy, dsn := newCutter(t, s0test.Postgres(t), marker)
			r := newReplica(t, dsn, n)
			slots(t, n, claims, r)
			proxy.arm(after, 4)
			var made sync.Map
			var wg sync.WaitGroup
			for range claims {
				wg.Go(func() {
					req := request()
					req.Config.EnvVars = map[string]string{"MARKER": marker}
					sb, err := r.Claim(t.Context(), req)
					if err != nil {
						t.Error(err)
					} else if _, twice := made.LoadOrStore(sb.ID, true); twice {
						t.Errorf("%s was given to two", sb.ID)
					}
				})
			}
			wg.Wait()
			if proxy.made() != 4 {
				t.Fatalf("%d cuts: the test has not tested", proxy.made())
			}
			if len(n.Sandboxes()) != claims {
				t.Errorf("%d sandboxes for %d claims", len(n.Sandboxes()), claims)
			}
			agree(t, r, n)
		})
	}
}

func TestG07_AnOutcomeThatStaysUnknownLeavesNoHalf(t *testing.T) {
	t.Parallel()
	const marker = "cut-here"
	for _, key := range []string{"", "key"} {
		t.Run("key="+key, func(t *testing.T) {
			t.Parallel()
			n := fakenode.Start(t, &fakenode.Node{})
			proxy, dsn := newCutter(t, s0test.Postgres(t), marker)
			r := newReplica(t, dsn, n)
			slots(t, n, 1, r)
			req := request()
			req.Key = key
			req.Config.EnvVars = map[string]string{"MARKER": marker}
			proxy.arm(true, 1_000_000) // every answer is lost
			if _, err := r.Claim(t.Context(), req); !errdefs.Is(err, errdefs.Unavailable) {
				t.Fatalf("%v", err)
			}
			proxy.arm(true, 0)
			agree(t, r, n)
			if key != "" {
				if sb, err := r.Claim(t.Context(), req); err != nil || n.Sandboxes()[string(sb.ID)] == nil {
					t.Errorf("the key must give a sandbox that is there: %s %v", sb.ID, err)
				}
			} else if len(n.Sandboxes()) != 0 {
				t.Errorf("nobody can find out about this sandbox: %v", n.Sandboxes())
			}
		})
	}
}

func TestX34_ClaimsDoNotUseUpThePoolWhileTheDatabaseIsAway(t *testing.T) {
	t.Parallel()
	pg := s0test.NewPostgresCluster(t, "fsync=off")
	n := fakenode.Start(t, &fakenode.Node{NoRefill: true})
	r := newReplica(t, pg.Database(t), n)
	slots(t, n, 20, r)
	if _, err := r.Claim(t.Context(), request()); err != nil {
		t.Fatal(err)
	}
	pg.Stop()
	for range 30 {
		if _, err := r.Claim(t.Context(), request()); !errdefs.Is(err, errdefs.Unavailable) {
			t.Fatalf("without a database: %v", err)
		}
	}
	// A connection that looked alive may cost a slot; a claim without one never does.
	if left := n.Free(); left < 15 {
		t.Errorf("30 claims that failed have used up %d of 19 slots", 19-left)
	}
	if err := pg.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Claim(t.Context(), request()); err != nil {
		t.Fatalf("the database is back: %v", err)
	}
	agree(t, r, n)
}

// Claims that each have to take a row over need a second statement while as many
// others as there are connections do: none may wait for a connection with one in
// hand.
func TestX35_TakingOverDoesNotUseUpTheConnections(t *testing.T) {
	t.Parallel()
	const claims = 24 // more than the store has connections
	for _, key := range []string{"", "key"} {
		t.Run("key="+key, func(t *testing.T) {
			t.Parallel()
			var arrived atomic.Int32
			all := make(chan struct{})
			n := fakenode.Start(t, &fakenode.Node{NoRefill: true, AfterClaim: func(context.Context, *nodeapi.ClaimRequest) error {
				if arrived.Add(1) == 16 { // all connections are in use, as far as claims hold them
					close(all)
				}
				select {
				case <-all:
				case <-time.After(2 * time.Second):
				}
				return nil
			}})
			r := newReplica(t, s0test.Postgres(t), n)
			for _, id := range slots(t, n, claims, r) {
				loser := store.NewSandbox{
					ID: sandbox.ID(id), TeamID: uuid.New(), UserID: uuid.New(), ClaimID: uuid.New(), TemplateID: "default",
					Node: n.Name, Generation: 1, Config: []byte("{}"), MemoryBytes: 1,
				}
				if _, err := r.store.InsertSandbox(t.Context(), loser); err != nil {
					t.Fatal(err)
				}
			}
			var wg sync.WaitGroup
			for range claims {
				wg.Go(func() {
					req := request()
					req.Key = key
					if _, err := r.Claim(t.Context(), req); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			agree(t, r, n)
		})
	}
}
