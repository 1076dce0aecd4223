package volumed_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"s0.run/internal/errdefs"
	"s0.run/internal/failpoint"
	"s0.run/internal/s0test"
	"s0.run/internal/volumeapi"
	"s0.run/volumed"
)

// patience is for a loaded machine.
const patience = 2 * time.Minute

// The test program is also a node's volumed, and what that starts for files.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 {
		switch os.Args[1] {
		case "volumed":
			os.Exit(serve(os.Args[2]))
		case "volume-files":
			os.Exit(volumed.FilesMain(os.Args[2:]))
		}
	}
	os.Exit(m.Run())
}

func serve(config string) int {
	cfg := volumed.Default()
	err := errors.Join(json.Unmarshal([]byte(config), &cfg), failpoint.Arm(os.Getenv(failpoint.EnvVar)))
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		cfg.Log = slog.Default()
		err = volumed.Run(ctx, cfg)
	}
	if err != nil {
		slog.Error("volumed", "error", err)
		return 1
	}
	return 0
}

// A cluster is nodes with one metadata database and one bucket, whose content is encrypted.
type cluster struct {
	*testing.T
	dir, meta, key string
	bucket         http.Handler
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	s0test.NeedRoot(t)
	dir, err := os.MkdirTemp("", "s0vn") // short: paths are bounded
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	backend := s3mem.New()
	c := &cluster{T: t, dir: dir, key: filepath.Join(dir, "key.pem")}
	c.must(backend.CreateBucket("volumes"))
	c.bucket = gofakes3.New(backend, gofakes3.WithLogger(gofakes3.StdLog(log.New(io.Discard, "", 0)))).Server()
	dsn, err := pgx.ParseConfig(s0test.Postgres(t))
	c.must(err)
	c.meta = fmt.Sprintf("postgres://%s@/%s?host=%s&sslmode=disable", dsn.User, dsn.Database, dsn.Host)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	c.must(err)
	c.must(os.WriteFile(c.key, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}), 0o600))
	return c
}

func (c *cluster) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

// A fault is what happens to a node's calls of the bucket, instead of the call or around it.
type fault func(w http.ResponseWriter, r *http.Request, bucket http.Handler)

// A node is a volumed with directories of its own.
type node struct {
	*cluster
	name  string
	cfg   volumed.Config
	way   *httptest.Server // to the bucket
	fault atomic.Pointer[fault]
	api   *volumeapi.Client

	cmd    *exec.Cmd
	exited chan struct{}
}

// node adds a node and starts it.
func (c *cluster) node(name string) *node {
	c.Helper()
	n := &node{cluster: c, name: name}
	n.way = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f := n.fault.Load(); f != nil {
			(*f)(w, r, c.bucket)
			return
		}
		c.bucket.ServeHTTP(w, r)
	}))
	dir := filepath.Join(c.dir, name)
	n.cfg = volumed.Config{
		Node: name, DataDir: filepath.Join(dir, "d"), RunDir: filepath.Join(dir, "r"), Socket: filepath.Join(dir, "sock"), CacheMiB: 64,
		JuiceFS: s0test.Binary(c.T, "juicefs"), Meta: c.meta, Bucket: n.way.URL + "/volumes", KeyFile: c.key,
		FilesCommand: []string{"/proc/self/exe", "volume-files"},
	}
	n.api = volumeapi.NewClient(n.cfg.Socket)
	c.Cleanup(func() {
		n.die()
		n.way.CloseClientConnections()
		n.way.Close()
	})
	c.must(os.MkdirAll(n.cfg.RunDir, 0o700))
	n.start("")
	return n
}

// start starts the node's volumed, with a failpoint or "", and waits until it answers.
func (n *node) start(failpoints string) {
	n.Helper()
	cfg := n.cfg
	config, err := json.Marshal(map[string]any{
		"Node": cfg.Node, "DataDir": cfg.DataDir, "RunDir": cfg.RunDir, "Socket": cfg.Socket, "CacheMiB": cfg.CacheMiB,
		"JuiceFS": cfg.JuiceFS, "Meta": cfg.Meta, "Bucket": cfg.Bucket, "KeyFile": cfg.KeyFile, "FilesCommand": cfg.FilesCommand,
	})
	n.must(err)
	log, err := os.OpenFile(filepath.Join(n.dir, n.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	n.must(err)
	defer log.Close()
	n.cmd = exec.Command("/proc/self/exe", "volumed", string(config))
	n.cmd.Env = append(os.Environ(), "ACCESS_KEY=tester", "SECRET_KEY=secret", "JFS_RSA_PASSPHRASE=", failpoint.EnvVar+"="+failpoints)
	n.cmd.Stdout, n.cmd.Stderr = log, log
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	n.must(n.cmd.Start())
	n.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) { // ends with the process, which the test's end kills
		_ = cmd.Wait()
		close(exited)
	}(n.cmd, n.exited)
	n.until("it answers", func() bool {
		_, err := n.api.Info(n.Context())
		return err == nil
	})
}

func (n *node) until(what string, ok func() bool) {
	n.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			text, _ := os.ReadFile(filepath.Join(n.dir, n.name+".log"))
			more, _ := os.ReadFile(filepath.Join(n.cfg.DataDir, "juicefs.log"))
			n.Fatalf("node %s: never: %s; its log ends with\n%s\n%s", n.name, what, text[max(0, len(text)-4000):], more[max(0, len(more)-2000):])
		}
		tick := time.NewTimer(20 * time.Millisecond)
		<-tick.C
	}
}

// kill ends the volumed alone.
func (n *node) kill() {
	if n.cmd != nil {
		_ = n.cmd.Process.Kill()
		<-n.exited
		n.cmd = nil
	}
}

// die ends all of the node as a power cut does; its disk stays.
func (n *node) die() {
	n.kill()
	for again := true; again; {
		again = false
		lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, name := range lines {
			line, err := os.ReadFile(name)
			if err != nil || !strings.Contains(string(line), n.cfg.RunDir) || !bytes.Contains(line, []byte("juicefs")) {
				continue
			}
			var pid int
			if _, err := fmt.Sscanf(name, "/proc/%d/", &pid); err == nil && syscall.Kill(pid, syscall.SIGKILL) == nil {
				again = true
			}
		}
	}
	if err := volumed.Unmount(n.cfg.RunDir); err != nil {
		n.Error(err)
	}
	if err := volumed.Unmount(n.cfg.DataDir); err != nil { // rooms
		n.Error(err)
	}
	n.must(os.RemoveAll(n.cfg.RunDir))
	n.must(os.MkdirAll(n.cfg.RunDir, 0o700))
}

// fails has every call of the bucket go through f; nil: none.
func (n *node) fails(f fault) {
	if f == nil {
		n.fault.Store(nil)
	} else {
		n.fault.Store(&f)
	}
	n.way.CloseClientConnections()
}

func (n *node) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	n.Cleanup(cancel)
	return ctx
}

// Volumes are of one team; a writer says at which epoch he is.
func volume(id string, epoch uint64) volumeapi.Volume {
	return volumeapi.Volume{ID: id, Team: "team", Epoch: epoch, UID: 1000, GID: 1000}
}

func (n *node) create(id string) {
	n.Helper()
	_, err := n.api.Create(n.ctx(), volumeapi.Create{Volume: volume(id, 1)})
	n.must(err)
}

// use mounts a volume for writing.
func (n *node) use(id string, epoch uint64) (at string) {
	n.Helper()
	m, err := n.api.Use(n.ctx(), volumeapi.Use{Volume: volume(id, epoch), Use: "writer-" + id})
	n.must(err)
	return m.Path
}

// leave ends that, and with it what the node has of the volume.
func (n *node) leave(id string, epoch uint64) {
	n.Helper()
	n.must(n.api.Leave(n.ctx(), volumeapi.Leave{ID: id, Use: "writer-" + id}))
	n.must(n.api.Release(n.ctx(), volume(id, epoch)))
}

func (n *node) commit(id string) error {
	n.Helper()
	_, err := n.api.Commit(n.ctx(), id)
	return err
}

// read is what is committed of a volume: its files and what they hold.
func (n *node) read(id string, epoch uint64) map[string]string {
	n.Helper()
	use := volumeapi.Use{Volume: volume(id, epoch), Use: "reader-" + id, ReadOnly: true}
	m, err := n.api.Use(n.ctx(), use)
	n.must(err)
	all, err := content(m.Path)
	n.must(errors.Join(err, n.api.Leave(n.ctx(), volumeapi.Leave{ID: id, Use: use.Use})))
	return all
}

func content(at string) (map[string]string, error) {
	all := map[string]string{}
	entries, err := os.ReadDir(at)
	for _, e := range entries {
		b, rerr := os.ReadFile(filepath.Join(at, e.Name()))
		err = errors.Join(err, rerr)
		all[e.Name()] = string(b)
	}
	return all, err
}

func (c *cluster) want(what string, got, want map[string]string) {
	c.Helper()
	if !maps.Equal(got, want) {
		c.Errorf("%s: %.200q, want %.200q", what, fmt.Sprint(got), fmt.Sprint(want))
	}
}

// put writes a file to the disk, as who calls fsync does.
func (c *cluster) put(at, name, text string) {
	c.Helper()
	f, err := os.Create(filepath.Join(at, name))
	c.must(err)
	_, err = f.WriteString(text)
	c.must(errors.Join(err, f.Sync(), f.Close()))
}

func (c *cluster) wantFenced(what string, err error) {
	c.Helper()
	if errdefs.From(err).Code != volumeapi.CodeFenced {
		c.Errorf("%s: %v, want it to be fenced", what, err)
	}
}

// asides are the files that a node has put aside.
func (n *node) asides(name string) []string {
	n.Helper()
	all, err := filepath.Glob(filepath.Join(n.cfg.DataDir, "work", ".aside", "*", "upper", name))
	n.must(err)
	return all
}

// TestX47_TwoNodesAndOneVolume is volumes that go from one node to another, over one metadata
// database and one bucket, when nodes let them go, when they do not, and when they die.
func TestX47_TwoNodesAndOneVolume(t *testing.T) {
	c := newCluster(t)
	a, b := c.node("a"), c.node("b")
	for _, part := range []struct {
		name string
		run  func(a, b *node)
	}{{"moves", moves}, {"is fenced", isFenced}, {"is read by many", isReadByMany}, {"dies and comes back", diesAndComesBack}} {
		t.Run(part.name, func(t *testing.T) {
			whole := c.T
			defer func() { c.T = whole }()
			c.T = t
			part.run(a, b)
		})
	}
}

// A volume that a node lets go is on another one what it was, and back.
func moves(a, b *node) {
	a.create("moved")
	at, epoch := a.use("moved", 1), uint64(1)
	want := map[string]string{}
	for i, n := range []*node{b, a, b} {
		name := fmt.Sprint("f", i)
		want[name] = strings.Repeat(name, 50_000)
		a.put(at, name, want[name])
		a.leave("moved", epoch)
		epoch++
		at = n.use("moved", epoch)
		got, err := content(at)
		n.must(err)
		n.want("on node "+n.name, got, want)
		a = n
	}
	a.leave("moved", epoch)
	if all := append(a.asides("*"), b.asides("*")...); len(all) > 0 {
		a.Errorf("put aside: %v", all)
	}
}

// R2: of two nodes that write, the later one has the volume. What the earlier one had committed
// is in it, what not is put aside there, and nothing of it comes later.
func isFenced(a, b *node) {
	a.create("fenced")
	first := a.use("fenced", 1)
	a.put(first, "committed", "1")
	a.must(a.commit("fenced"))
	held, err := os.OpenRoot(first) // as a sandbox holds it
	a.must(err)
	defer held.Close()
	second := b.use("fenced", 2)
	a.must(errors.Join(held.WriteFile("late", []byte("1"), 0o600), held.WriteFile("committed", []byte("changed"), 0o600)))
	a.wantFenced("a commit of the earlier one", a.commit("fenced"))
	_, err = a.api.Use(a.ctx(), volumeapi.Use{Volume: volume("fenced", 1), Use: "writer-fenced"})
	a.wantFenced("a mount of the earlier one", err)
	_, err = a.api.Snapshot(a.ctx(), volumeapi.Snapshot{Volume: volume("fenced", 1), Snapshot: "s"})
	a.wantFenced("a snapshot of the earlier one", err)
	got, err := content(second)
	a.must(err)
	a.want("for the later one", got, map[string]string{"committed": "1"})
	b.put(second, "mine", "2")
	b.leave("fenced", 2)
	want := map[string]string{"committed": "1", "mine": "2"}
	a.want("on the later one's node", b.read("fenced", 2), want)
	a.want("on the earlier one's node", a.read("fenced", 2), want)
	if all := a.asides("late"); len(all) != 1 {
		a.Errorf("R7: put aside: %v", all)
	}
	a.wantFenced("the end of its mount", a.api.Leave(a.ctx(), volumeapi.Leave{ID: "fenced", Use: "writer-fenced"}))
}

// Many read one volume, on both nodes, while it is written to: each what was committed when it
// began, and nobody can write there.
func isReadByMany(a, b *node) {
	a.create("read")
	at := a.use("read", 1)
	a.put(at, "f", "one")
	a.must(a.commit("read"))
	paths := map[string]*node{}
	for i := range 3 {
		for _, n := range []*node{a, b} {
			m, err := n.api.Use(n.ctx(), volumeapi.Use{Volume: volume("read", 1), Use: fmt.Sprint("many", i), ReadOnly: true})
			n.must(err)
			paths[m.Path] = n
		}
	}
	a.put(at, "f", "two")
	a.must(a.commit("read"))
	for path := range paths {
		got, err := content(path)
		a.must(err)
		a.want("who began before", got, map[string]string{"f": "one"})
		if err := os.WriteFile(filepath.Join(path, "g"), nil, 0o600); !errors.Is(err, syscall.EROFS) {
			a.Errorf("writing to it: %v", err)
		}
	}
	a.want("who begins now", b.read("read", 1), map[string]string{"f": "two"})
	for i := range 3 {
		for _, n := range []*node{a, b} {
			n.must(n.api.Leave(n.ctx(), volumeapi.Leave{ID: "read", Use: fmt.Sprint("many", i)}))
		}
	}
	a.leave("read", 1)
}

// A node dies with what it has not committed. Whoever goes on elsewhere has all that was; when
// the node is back it has lost the volume, and what it had is put aside. One that nobody took
// meanwhile is whole there, what was fsynced and not committed as well.
func diesAndComesBack(a, b *node) {
	places := map[string]string{"taken": "", "kept": ""}
	for id := range places {
		a.create(id)
		places[id] = a.use(id, 1)
		a.put(places[id], "committed", id)
		a.must(a.commit(id))
	}
	a.must(a.cmd.Process.Signal(syscall.SIGSTOP)) // it commits nothing any more
	for id, at := range places {
		a.put(at, "fsynced", id)
	}
	a.die()
	at := b.use("taken", 2)
	got, err := content(at)
	a.must(err)
	a.want("elsewhere", got, map[string]string{"committed": "taken"})
	b.put(at, "elsewhere", "b")
	b.must(b.commit("taken"))
	a.start("")
	got, err = content(a.use("kept", 1))
	a.must(err)
	a.want("R7: what nobody took", got, map[string]string{"committed": "kept", "fsynced": "kept"})
	_, err = a.api.Use(a.ctx(), volumeapi.Use{Volume: volume("taken", 1), Use: "stale"})
	a.wantFenced("the node that is back", err)
	if all := a.asides("fsynced"); len(all) != 1 {
		a.Errorf("R7: put aside: %v", all)
	}
	b.leave("taken", 2)
	a.want("the volume", a.read("taken", 2), map[string]string{"committed": "taken", "elsewhere": "b"})
	got, err = content(a.use("taken", 3))
	a.must(err)
	a.want("the volume that is back", got, map[string]string{"committed": "taken", "elsewhere": "b"})
	a.leave("taken", 3)
	a.leave("kept", 1)
}
