package objects_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"s0.run/api"
	"s0.run/internal/s0test"
	"s0.run/noded"
)

// twoNodes is an API server over two nodes without real sandboxes, the first of which
// has room for one. They share an object store.
type twoNodes struct {
	t     *testing.T
	dir   string
	url   string
	token string
	db    *pgx.Conn
}

func startTwoNodes(t *testing.T) *twoNodes {
	t.Helper()
	dir, err := os.MkdirTemp("", "s0two-") // short enough for sockets' names
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	n := &twoNodes{t: t, dir: dir}
	if err := noded.MakeObjectKey(filepath.Join(dir, "object.key")); err != nil {
		t.Fatal(err)
	}
	dsn := s0test.Postgres(t)
	if n.db, err = pgx.Connect(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.db.Close(context.Background()) })
	n.node("first", 1)
	var email, password string
	ready := make(chan string, 1)
	n.run(func(ctx context.Context) error {
		return api.Run(ctx, api.Config{
			Listen: "127.0.0.1:0", DatabaseURL: dsn, Nodes: []string{n.socket("first"), n.socket("second")}, KeyFile: filepath.Join(dir, "api.key"),
			DefaultImage: "image", OnBootstrap: func(e, p string) { email, password = e, p },
			Log: slog.New(slog.DiscardHandler), Ready: func(addr string) { ready <- addr },
		})
	})
	select {
	case addr := <-ready:
		n.url = "http://" + addr
	case <-time.After(time.Minute):
		t.Fatal("the API server is not ready")
	}
	var login struct {
		Token string `json:"access_token"`
	}
	n.must(http.MethodPost, "/auth/login", map[string]string{"email": email, "password": password}, &login)
	n.token = login.Token
	return n
}

func (n *twoNodes) socket(name string) string { return filepath.Join(n.dir, name+".sock") }

// node starts a node.
func (n *twoNodes) node(name string, room int) {
	n.t.Helper()
	ready := make(chan struct{})
	n.run(func(ctx context.Context) error {
		return noded.Run(ctx, noded.Config{
			Simulate: true, Node: name, DataDir: filepath.Join(n.dir, name), RunDir: filepath.Join(n.dir, name+"-run"), Socket: n.socket(name), MaxSandboxes: room,
			ObjectStore: "file://" + filepath.Join(n.dir, "store"), ObjectKeyFile: filepath.Join(n.dir, "object.key"),
			Log: slog.New(slog.DiscardHandler), Ready: func() { close(ready) },
		})
	})
	select {
	case <-ready:
	case <-time.After(time.Minute):
		n.t.Fatal(name, "is not ready")
	}
}

// run runs a daemon until the test ends.
func (n *twoNodes) run(daemon func(context.Context) error) {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- daemon(ctx) }()
	n.t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			n.t.Error(err)
		}
	})
}

// call makes one call and returns its status.
func (n *twoNodes) call(method, path string, in, out any) (status int, answer []byte) {
	n.t.Helper()
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			n.t.Fatal(err)
		}
	}
	req, err := http.NewRequestWithContext(n.t.Context(), method, n.url+path, bytes.NewReader(body))
	if err != nil {
		n.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+n.token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		n.t.Fatal(err)
	}
	defer resp.Body.Close()
	if answer, err = io.ReadAll(resp.Body); err != nil {
		n.t.Fatal(err)
	}
	if out != nil && resp.StatusCode < 300 {
		if err := json.Unmarshal(answer, &struct{ Data any }{out}); err != nil {
			n.t.Fatal(err)
		}
	}
	return resp.StatusCode, answer
}

func (n *twoNodes) must(method, path string, in, out any) {
	n.t.Helper()
	if status, answer := n.call(method, path, in, out); status >= 300 {
		n.t.Fatalf("%s %s: %d %s", method, path, status, answer)
	}
}

func (n *twoNodes) claim() (id string) {
	n.t.Helper()
	var sb struct {
		ID string `json:"sandbox_id"`
	}
	n.must(http.MethodPost, "/api/v1/sandboxes", map[string]string{"template": "default"}, &sb)
	return sb.ID
}

// row waits until a sandbox's row is as wanted.
func (n *twoNodes) row(id, want string) {
	n.t.Helper()
	for begin := time.Now(); ; {
		var got string
		err := n.db.QueryRow(n.t.Context(), `SELECT concat_ws(' ', status, node, CASE WHEN stored_generation IS NOT NULL THEN 'stored' END, CASE WHEN deleted_at IS NOT NULL THEN 'deleted' END)
			FROM sandboxes WHERE id = $1`, id).Scan(&got)
		if err != nil {
			n.t.Fatal(err)
		}
		if got == want {
			return
		}
		if time.Since(begin) > time.Minute {
			n.t.Fatalf("sandbox %s is %q, not %q", id, got, want)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// A paused sandbox that is in the object store is resumed at another node when its own
// is full, by whoever needs it, and its own forgets it.
func TestResumeAtAnotherNode(t *testing.T) {
	t.Parallel()
	n := startTwoNodes(t)
	id := n.claim()
	n.must(http.MethodPost, "/api/v1/sandboxes/"+id+"/pause", nil, nil)
	n.row(id, "paused first stored")
	n.claim() // now the first node is full
	if status, answer := n.call(http.MethodPost, "/api/v1/sandboxes/"+id+"/resume", nil, nil); status != http.StatusTooManyRequests {
		t.Fatalf("resumed at a full node: %d %s", status, answer)
	}
	n.row(id, "paused first stored")

	n.node("second", 10)
	for begin := time.Now(); ; {
		status, answer := n.call(http.MethodPost, "/api/v1/sandboxes/"+id+"/resume", nil, nil)
		if status == http.StatusOK {
			break
		}
		if status != http.StatusTooManyRequests || time.Since(begin) > time.Minute { // the server does not know the second node yet
			t.Fatalf("%d %s", status, answer)
		}
		time.Sleep(10 * time.Millisecond)
	}
	n.row(id, "running second")
	if left, err := filepath.Glob(filepath.Join(n.dir, "second", "paused", "*", "*")); err != nil || len(left) > 0 {
		t.Errorf("the second node keeps the image of what runs: %v, %v", left, err)
	}
	n.gone(filepath.Join(n.dir, "first", "paused", id))
	n.row(id, "running second")

	n.must(http.MethodPost, "/api/v1/sandboxes/"+id+"/pause", nil, nil)
	n.row(id, "paused second stored")
	n.must(http.MethodDelete, "/api/v1/sandboxes/"+id, nil, nil)
	n.row(id, "terminating second stored deleted")
	if _, err := n.db.Exec(t.Context(), "UPDATE sandboxes SET images_due = now() WHERE images_due IS NOT NULL"); err != nil {
		t.Fatal(err) // nobody waits for the minute
	}
	n.gone(filepath.Join(n.dir, "store", "sandboxes", id))
}

// A snapshot outlives its node's room: whoever begins with it does so where there is some, and
// a sandbox goes back to it wherever that is. When it is deleted the store has nothing of it.
func TestASnapshotAtAnotherNode(t *testing.T) {
	t.Parallel()
	n := startTwoNodes(t)
	source := n.claim() // the first node is full
	var snap struct {
		ID string `json:"id"`
	}
	n.must(http.MethodPost, "/api/v1/sandboxes/"+source+"/snapshots", nil, &snap)
	stored := filepath.Join(n.dir, "store", "snapshots", snap.ID)
	n.eventually("it is stored", func() bool {
		_, err := os.Stat(filepath.Join(stored, "manifest"))
		return err == nil
	})
	from := map[string]string{"template": "default", "snapshot_id": snap.ID}
	if status, answer := n.call(http.MethodPost, "/api/v1/sandboxes", from, nil); status != http.StatusTooManyRequests {
		t.Fatalf("without a second node: %d %s", status, answer)
	}
	n.node("second", 10)
	var sb struct {
		ID string `json:"sandbox_id"`
	}
	n.eventually("it is begun with at the second node", func() bool { // which the server may not know yet
		status, answer := n.call(http.MethodPost, "/api/v1/sandboxes", from, &sb)
		if status != http.StatusCreated && status != http.StatusTooManyRequests {
			t.Fatalf("%d %s", status, answer)
		}
		return status == http.StatusCreated
	})
	n.row(sb.ID, "running second")
	n.must(http.MethodPost, "/api/v1/sandboxes/"+sb.ID+"/pause", nil, nil)
	n.must(http.MethodPost, "/api/v1/sandboxes/"+sb.ID+"/rootfs/restore", map[string]string{"snapshot_id": snap.ID}, nil)
	n.must(http.MethodPost, "/api/v1/sandboxes/"+sb.ID+"/resume", nil, nil)
	n.row(sb.ID, "running second")
	n.must(http.MethodDelete, "/api/v1/sandbox-rootfs-snapshots/"+snap.ID, nil, nil)
	n.gone(stored)
	n.gone(filepath.Join(n.dir, "first", "snapshots", snap.ID))
	n.eventually("nobody knows of it", func() bool {
		var rows int
		if err := n.db.QueryRow(t.Context(), "SELECT count(*) FROM rootfs_snapshots").Scan(&rows); err != nil {
			t.Fatal(err)
		}
		return rows == 0
	})
}

func (n *twoNodes) eventually(what string, cond func() bool) {
	n.t.Helper()
	for begin := time.Now(); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Since(begin) > time.Minute {
			n.t.Fatal("never:", what)
		}
	}
}

// gone waits until a path leads to nothing.
func (n *twoNodes) gone(path string) {
	n.t.Helper()
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(path); os.IsNotExist(err) {
			return
		}
		if time.Since(begin) > time.Minute {
			n.t.Fatal(fmt.Sprint(path, " is still there"))
		}
	}
}
