package s0test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// postgresStartTimeout covers initdb and the first start on a loaded machine.
const postgresStartTimeout = 60 * time.Second

// Postgres gives the test a database of its own in a real PostgreSQL cluster
// that the whole test binary shares, and returns its DSN. The cluster runs
// without fsync and ends with the test process, however that ends.
func Postgres(t testing.TB) string {
	t.Helper()
	c, err := shared()
	if err != nil {
		t.Fatalf("starting PostgreSQL: %v", err)
	}
	return c.Database(t)
}

var shared = sync.OnceValues(func() (*PostgresCluster, error) {
	c, err := newCluster("fsync=off", "synchronous_commit=off", "full_page_writes=off")
	if err != nil {
		return nil, err
	}
	return c, c.Start()
})

// PostgresCluster is a private cluster on a unix socket.
type PostgresCluster struct {
	dir       string
	settings  []string
	databases atomic.Int64
	copies    atomic.Int64

	mu     sync.Mutex
	server *exec.Cmd
	alive  *os.File // while it is open, the server's guard lets the server live
}

// NewPostgresCluster starts a cluster for this test alone, for tests that stop
// it or need other settings ("name=value") than the shared one's.
func NewPostgresCluster(t testing.TB, settings ...string) *PostgresCluster {
	t.Helper()
	c, err := newCluster(settings...)
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatalf("starting PostgreSQL: %v", err)
	}
	t.Cleanup(func() {
		c.Stop()
		os.RemoveAll(c.dir)
	})
	return c
}

func newCluster(settings ...string) (*PostgresCluster, error) {
	bin, err := postgresBin()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "s0pg-")
	if err != nil {
		return nil, err
	}
	c := &PostgresCluster{dir: dir, settings: settings}
	if cred := postgresUser(); cred != nil {
		if err := os.Chown(dir, int(cred.Uid), int(cred.Gid)); err != nil {
			return nil, err
		}
	}
	initdb := c.command(filepath.Join(bin, "initdb"), "-D", c.data(), "-U", "s0", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync", "--no-instructions")
	if out, err := initdb.CombinedOutput(); err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("initdb: %w: %s", err, bytes.TrimSpace(out))
	}
	return c, nil
}

func (c *PostgresCluster) data() string { return filepath.Join(c.dir, "data") }

// guard runs the server and ends it, at once, when the pipe on its standard
// input closes: that is when the test process stops it or is gone. The data
// goes too, unless the pipe said "keep".
const guard = `"$@" & server=$!
said=$(cat)
kill -QUIT $server
kill -CONT $server # it may be frozen
wait $server
[ "$said" = keep ] || rm -rf "$DIR"`

// Start starts the server and waits until it answers.
func (c *PostgresCluster) Start() error {
	bin, err := postgresBin()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	args := []string{"-c", guard, "guard", filepath.Join(bin, "postgres"), "-D", c.data(), "-k", c.dir,
		"-c", "listen_addresses=", "-c", "max_connections=300", "-c", "shared_buffers=64MB"}
	for _, s := range c.settings {
		args = append(args, "-c", s)
	}
	cmd := c.command("/bin/sh", args...)
	cmd.Env = append(os.Environ(), "DIR="+c.dir)
	cmd.Stdin = r
	if err := cmd.Start(); err != nil {
		w.Close()
		return err
	}
	c.mu.Lock()
	c.server, c.alive = cmd, w
	c.mu.Unlock()
	return c.wait()
}

// Stop ends the server as a crash would (an immediate shutdown) and waits for
// it. The data stays for the next Start. Stopping twice is fine.
func (c *PostgresCluster) Stop() {
	c.mu.Lock()
	cmd, alive := c.server, c.alive
	c.server, c.alive = nil, nil
	c.mu.Unlock()
	if cmd == nil {
		return
	}
	io.WriteString(alive, "keep")
	alive.Close()
	cmd.Wait()
}

// Copy takes a base copy of the running server's data. restore ends the server as a
// crash would and starts it from the copy, as after a failover to one that had not got
// the last commits; it is called once. Several copies may lie beside each other.
func (c *PostgresCluster) Copy(t testing.TB) (restore func()) {
	t.Helper()
	bin, err := postgresBin()
	if err != nil {
		t.Fatal(err)
	}
	aside := filepath.Join(c.dir, "copy"+strconv.FormatInt(c.copies.Add(1), 10))
	out, err := c.command(filepath.Join(bin, "pg_basebackup"), "-D", aside, "-h", c.dir, "-U", "s0", "--checkpoint=fast", "--no-sync").CombinedOutput()
	if err != nil {
		t.Fatalf("copying the database: %v: %s", err, bytes.TrimSpace(out))
	}
	return func() {
		t.Helper()
		c.Stop()
		if err := os.RemoveAll(c.data()); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(aside, c.data()); err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatalf("starting the copy of the database: %v", err)
		}
	}
}

// Freeze stops the server's processes where they are: connections stay open, new
// ones are accepted by the kernel, nothing is answered. thaw lets them go on; it
// may be called twice, and the end of the test calls it.
func (c *PostgresCluster) Freeze(t testing.TB) (thaw func()) {
	t.Helper()
	var frozen []int
	thaw = sync.OnceFunc(func() {
		for _, pid := range frozen {
			syscall.Kill(pid, syscall.SIGCONT)
		}
	})
	t.Cleanup(thaw)
	stop := func(pid int) {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil && !errors.Is(err, syscall.ESRCH) { // it has just ended
			t.Fatalf("freezing PostgreSQL: %v", err)
		}
		frozen = append(frozen, pid)
	}
	postmaster := c.postmaster(t)
	stop(postmaster) // from here on there are no new ones
	for _, pid := range children(t, postmaster) {
		stop(pid)
	}
	return thaw
}

func (c *PostgresCluster) postmaster(t testing.TB) int {
	t.Helper()
	said, err := os.ReadFile(filepath.Join(c.data(), "postmaster.pid"))
	if err != nil {
		t.Fatalf("looking for PostgreSQL: %v", err)
	}
	first, _, _ := bytes.Cut(said, []byte("\n"))
	pid, err := strconv.Atoi(string(first))
	if err != nil {
		t.Fatalf("looking for PostgreSQL: %v", err)
	}
	return pid
}

func children(t testing.TB, of int) []int {
	t.Helper()
	list, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", of, of))
	if err != nil {
		t.Fatalf("looking for PostgreSQL: %v", err)
	}
	var pids []int
	for _, field := range bytes.Fields(list) {
		pid, err := strconv.Atoi(string(field))
		if err != nil {
			t.Fatalf("looking for PostgreSQL: %v", err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// CPU is the processor time that the server's present processes have used, to a
// hundredth of a second each.
func (c *PostgresCluster) CPU(t testing.TB) time.Duration {
	t.Helper()
	postmaster := c.postmaster(t)
	var ticks int64
	for _, pid := range append(children(t, postmaster), postmaster) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it has ended
		}
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		for _, f := range fields[11:13] { // utime, stime
			n, _ := strconv.ParseInt(string(f), 10, 64)
			ticks += n
		}
	}
	return time.Duration(ticks) * time.Second / 100 // USER_HZ
}

func (c *PostgresCluster) wait() error {
	ctx, cancel := context.WithTimeout(context.Background(), postgresStartTimeout)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, c.DSN("postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-ctx.Done():
			log, _ := os.ReadFile(filepath.Join(c.dir, "log"))
			return fmt.Errorf("waiting for PostgreSQL: %w: %s", err, log)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// DSN names a database of the cluster.
func (c *PostgresCluster) DSN(database string) string {
	return fmt.Sprintf("host=%s user=s0 dbname=%s sslmode=disable", c.dir, database)
}

// Socket is the path of the server's unix socket, for proxies before it.
func (c *PostgresCluster) Socket() string { return filepath.Join(c.dir, ".s.PGSQL.5432") }

// Database creates an empty database that is dropped with the test.
func (c *PostgresCluster) Database(t testing.TB) string {
	t.Helper()
	name := "t" + strconv.FormatInt(c.databases.Add(1), 10)
	if err := c.exec("CREATE DATABASE " + name); err != nil {
		t.Fatalf("creating a database: %v", err)
	}
	t.Cleanup(func() {
		c.mu.Lock()
		running := c.server != nil
		c.mu.Unlock()
		if !running {
			return
		}
		if err := c.exec("DROP DATABASE " + name + " WITH (FORCE)"); err != nil {
			t.Errorf("dropping a database: %v", err)
		}
	})
	return c.DSN(name)
}

func (c *PostgresCluster) exec(sql string) error {
	ctx, cancel := context.WithTimeout(context.Background(), postgresStartTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.DSN("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, sql)
	return err
}

// command runs as the unprivileged user that PostgreSQL insists on; what it
// prints goes to a file, so that it never holds the test's own output open.
func (c *PostgresCluster) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = c.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: postgresUser(), Setpgid: true}
	if filepath.Base(name) == "sh" {
		if log, err := os.OpenFile(filepath.Join(c.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err == nil {
			cmd.Stdout, cmd.Stderr = log, log
		}
	}
	return cmd
}

// postgresBin is the newest installed server's bin directory.
func postgresBin() (string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(found) == 0 {
		return "", fmt.Errorf("no server binaries in /usr/lib/postgresql: install the package postgresql")
	}
	return filepath.Dir(found[len(found)-1]), nil
}

// postgresUser is whom the server runs as: nil, this user, unless that is root.
func postgresUser() *syscall.Credential {
	if os.Getuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		if u, err = user.Lookup("nobody"); err != nil {
			return nil
		}
	}
	uid, _ := strconv.ParseUint(u.Uid, 10, 32)
	gid, _ := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}
