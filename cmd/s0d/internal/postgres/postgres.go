// Package postgres runs a private PostgreSQL cluster from the server binaries
// that the machine has: made once, owned by an unprivileged user, reachable
// through a unix socket by root and that user alone, durable.
//
// It prepares directories and says which command to run; package child runs it.
// It never touches another cluster of the machine.
package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	database = "s0" // the database and its role

	settleFor  = time.Minute           // a fast shutdown writes a checkpoint, which takes long on a slow disk
	settlePoll = 50 * time.Millisecond // a person waits for it
)

// Config says where the cluster lives.
type Config struct {
	BinDir    string // of initdb and postgres; see FindBinaries
	DataDir   string // made by Prepare, of User, mode 0700
	SocketDir string // made by Prepare, of User, mode 0700
	User      string // an unprivileged user that exists
}

// A Cluster is the private cluster.
type Cluster struct {
	cfg      Config
	uid, gid int
}

// FindBinaries finds the newest installed server's directory; dir, when given,
// must be one.
func FindBinaries(dir string) (string, error) {
	if dir != "" {
		return dir, complete(dir)
	}
	var best string
	var major float64
	for _, glob := range []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin"} {
		found, _ := filepath.Glob(glob) // the patterns are valid
		for _, d := range found {
			digits := strings.TrimPrefix(filepath.Base(filepath.Dir(d)), "pgsql-")
			if v, err := strconv.ParseFloat(digits, 64); err == nil && v > major && complete(d) == nil {
				best, major = d, v
			}
		}
	}
	if best != "" {
		return best, nil
	}
	if p, err := exec.LookPath("initdb"); err == nil && complete(filepath.Dir(p)) == nil {
		return filepath.Dir(p), nil
	}
	return "", errors.New("no PostgreSQL server binaries found")
}

func complete(dir string) error {
	for _, name := range []string{"initdb", "postgres"} {
		if _, err := exec.LookPath(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// New checks that the user exists.
func New(cfg Config) (*Cluster, error) {
	u, err := user.Lookup(cfg.User)
	if err != nil {
		return nil, err
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return nil, fmt.Errorf("user %s: uid %q is no number", cfg.User, u.Uid)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return nil, fmt.Errorf("user %s: gid %q is no number", cfg.User, u.Gid)
	}
	if uid == 0 {
		return nil, fmt.Errorf("user %s is root: PostgreSQL refuses to run as root", cfg.User)
	}
	return &Cluster{cfg: cfg, uid: uid, gid: gid}, nil
}

// URL is how the cluster's owner or root connects.
func (c *Cluster) URL() string {
	return "postgres:///" + database + "?user=" + database + "&host=" + url.QueryEscape(c.cfg.SocketDir)
}

// Prepare makes the cluster if there is none yet, and writes its settings. made
// tells the first time.
func (c *Cluster) Prepare(ctx context.Context) (made bool, err error) {
	for _, dir := range []string{c.cfg.DataDir, c.cfg.SocketDir} {
		if err := c.ownDir(dir); err != nil {
			return false, err
		}
	}
	current := filepath.Join(c.cfg.DataDir, "cluster")
	if _, err := os.Stat(current); errors.Is(err, fs.ErrNotExist) {
		if err := c.create(ctx, current); err != nil {
			return false, fmt.Errorf("making the PostgreSQL cluster in %s: %w", current, err)
		}
		made = true
	} else if err != nil {
		return false, err
	}
	if err := c.checkVersion(ctx, current); err != nil {
		return false, err
	}
	if err := c.writeSettings(current); err != nil {
		return false, err
	}
	return made, c.settle(ctx, current)
}

// Command runs the server in the foreground.
func (c *Cluster) Command(ctx context.Context) *exec.Cmd {
	return c.as(ctx, "postgres", "-D", filepath.Join(c.cfg.DataDir, "cluster"))
}

// StopSignal asks the server for a fast shutdown: clients are cut off, data is
// written out.
const StopSignal = syscall.SIGINT

// Ready succeeds once the server answers queries.
func (c *Cluster) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.URL())
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	return conn.Ping(ctx)
}

// create makes the cluster aside and renames it, so that an interrupted start
// leaves none half made.
func (c *Cluster) create(ctx context.Context, dir string) error {
	aside := dir + ".new"
	if err := os.RemoveAll(aside); err != nil {
		return err
	}
	initdb := c.as(ctx, "initdb", "-D", aside, "-U", database, "--auth=peer", "--encoding=UTF8", "--locale=C", "--data-checksums")
	if err := run(initdb); err != nil {
		return err
	}
	// A single-user server needs neither socket nor role map.
	single := c.as(ctx, "postgres", "--single", "-D", aside, "postgres")
	single.Stdin = strings.NewReader("CREATE DATABASE " + database + "\n")
	if err := run(single); err != nil {
		return err
	}
	return os.Rename(aside, dir)
}

func (c *Cluster) checkVersion(ctx context.Context, dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "PG_VERSION"))
	if err != nil {
		return err
	}
	out, err := c.as(ctx, "postgres", "--version").Output()
	if err != nil {
		return fmt.Errorf("asking PostgreSQL for its version: %w", err)
	}
	made, have := strings.TrimSpace(string(b)), strings.TrimSpace(string(out))
	if !strings.Contains(have+" ", " "+made+".") {
		return fmt.Errorf("the cluster in %s was made by PostgreSQL %s, the binaries in %s are %q: install PostgreSQL %s beside them, or upgrade the cluster with pg_upgrade", dir, made, c.cfg.BinDir, have, made)
	}
	return nil
}

// settings are for a database of small rows beside many sandboxes: little
// memory, full durability.
const settings = `# Written by s0d at each start; changes here are lost.
listen_addresses = ''
unix_socket_permissions = 0700
max_connections = 100
shared_buffers = 64MB
huge_pages = off
work_mem = 4MB
maintenance_work_mem = 32MB
fsync = on
synchronous_commit = on
full_page_writes = on
max_wal_size = 512MB
max_wal_senders = 0
wal_level = minimal
max_parallel_workers = 2
jit = off
timezone = 'UTC'
log_timezone = 'UTC'
log_checkpoints = off
log_min_duration_statement = 250ms
log_parameter_max_length = 0 # parameters are tenants' variables and hashes of passwords
log_parameter_max_length_on_error = 0
`

func (c *Cluster) writeSettings(dir string) error {
	conf := settings + "unix_socket_directories = '" + strings.ReplaceAll(c.cfg.SocketDir, "'", "''") + "'\n"
	files := map[string]string{
		"postgresql.conf": conf,
		"pg_hba.conf":     "local all all peer map=s0\n",
		"pg_ident.conf":   "s0 root " + database + "\ns0 " + c.cfg.User + " " + database + "\n",
	}
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return err
		}
		if err := os.Chown(path, c.uid, c.gid); err != nil {
			return err
		}
	}
	return nil
}

// settle waits for a server of this cluster that an earlier parent left behind:
// it was told to stop when its parent died, and two must not share the data.
func (c *Cluster) settle(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, settleFor)
	defer cancel()
	asked := false
	for {
		pid, alive := c.serverOf(dir)
		if !alive {
			return nil
		}
		if !asked {
			asked = syscall.Kill(pid, StopSignal) == nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL process %d still uses %s: stop it (kill -INT %d), then try again", pid, dir, pid)
		case <-time.After(settlePoll):
		}
	}
}

// serverOf reads the server's pid file and checks that the process is one of
// ours: pids are reused.
func (c *Cluster) serverOf(dir string) (pid int, alive bool) {
	b, err := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
	if err != nil {
		return 0, false
	}
	first, _, _ := strings.Cut(string(b), "\n")
	pid, err = strconv.Atoi(first)
	if err != nil || pid <= 1 {
		return 0, false
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return pid, err == nil && bytes.Contains(cmdline, []byte(dir))
}

func (c *Cluster) ownDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.Chown(dir, c.uid, c.gid); err != nil {
		return err
	}
	return os.Chmod(dir, 0o700)
}

// as makes a command that runs as the cluster's user, away from the caller's
// directory, which that user may not enter.
func (c *Cluster) as(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(c.cfg.BinDir, name), args...)
	cmd.Dir = c.cfg.DataDir
	cmd.Env = []string{"PATH=" + c.cfg.BinDir + ":/usr/bin:/bin", "LC_ALL=C", "HOME=" + c.cfg.DataDir}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(c.uid), Gid: uint32(c.gid)}}
	}
	return cmd
}

func run(cmd *exec.Cmd) error {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, strings.TrimSpace(out.String()))
	}
	return nil
}
