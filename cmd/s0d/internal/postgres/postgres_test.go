package postgres_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"s0.run/cmd/s0d/internal/postgres"
	"s0.run/internal/s0test"
)

func newCluster(t *testing.T) (*postgres.Cluster, postgres.Config) {
	t.Helper()
	s0test.NeedRoot(t)
	bin, err := postgres.FindBinaries("")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "s0p-") // not t.TempDir: the database's user must cross it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	cfg := postgres.Config{BinDir: bin, DataDir: filepath.Join(dir, "data"), SocketDir: filepath.Join(dir, "run"), User: "postgres"}
	c, err := postgres.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c, cfg
}

// start runs the server until the returned stop.
func start(t *testing.T, c *postgres.Cluster) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := c.Command(ctx)
	cmd.Cancel = func() error { return cmd.Process.Signal(postgres.StopSignal) }
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for c.Ready(ctx) != nil {
		if time.Now().After(deadline) {
			t.Fatal("the server does not answer")
		}
	}
	return func() {
		cancel()
		cmd.Wait()
	}
}

func query(t *testing.T, c *postgres.Cluster, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), c.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var answer string
	if err := conn.QueryRow(t.Context(), sql).Scan(&answer); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return answer
}

func TestPrivateCluster(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t)
	if made, err := c.Prepare(t.Context()); err != nil || !made {
		t.Fatalf("Prepare = %v, %v, want a new cluster", made, err)
	}
	stop := start(t, c)
	for setting, want := range map[string]string{
		"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "data_checksums": "on", "listen_addresses": "", "server_encoding": "UTF8",
	} {
		if got := query(t, c, "SHOW "+setting); got != want {
			t.Errorf("%s = %q, want %q", setting, got, want)
		}
	}
	query(t, c, "WITH kept AS (SELECT 1) SELECT set_config('s0.x', '1', false)")
	info, err := os.Stat(cfg.SocketDir)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o700 {
		t.Errorf("the socket's directory has mode %v: others could connect", info.Mode())
	}
	stop()

	if made, err := c.Prepare(t.Context()); err != nil || made {
		t.Fatalf("a second Prepare = %v, %v, want the same cluster", made, err)
	}
	start(t, c)()
}

// TestPrepareEndsAnOrphan: a server whose parent was killed still holds the data.
func TestPrepareEndsAnOrphan(t *testing.T) {
	t.Parallel()
	c, _ := newCluster(t)
	if _, err := c.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	orphan := c.Command(context.Background())
	if err := orphan.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { orphan.Wait(); close(ended) }()
	deadline := time.Now().Add(30 * time.Second)
	for c.Ready(t.Context()) != nil {
		if time.Now().After(deadline) {
			t.Fatal("the server does not answer")
		}
	}
	if _, err := c.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(time.Minute):
		orphan.Process.Signal(syscall.SIGKILL)
		t.Error("Prepare returned while another server had the data")
	}
	start(t, c)()
}

func TestPrepareRefusesAnotherMajorVersion(t *testing.T) {
	t.Parallel()
	c, cfg := newCluster(t)
	if _, err := c.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.DataDir, "cluster", "PG_VERSION"), []byte("9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Prepare(t.Context()); err == nil || !strings.Contains(err.Error(), "PostgreSQL 9") {
		t.Errorf("Prepare = %v, want what to install", err)
	}
}
