package fault_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"s0.run/api/client"
	"s0.run/internal/failpoint"
	"s0.run/internal/netdapi"
	"s0.run/internal/nodeapi"
	"s0.run/internal/s0test"
	"s0.run/internal/s0test/freeport"
	"s0.run/internal/s0test/nodetest"
)

const (
	// patience bounds what must happen on a loaded machine.
	patience = 60 * time.Second
	// look is the pace at which a condition is looked at again.
	look = 25 * time.Millisecond
	// answerTime bounds one question to a daemon that may hang.
	answerTime = 5 * time.Second
)

// A stack is a whole s0 whose processes can be ended one by one.
type stack struct {
	testing.TB
	s0test.Machine
	node  string // its name
	ctd   *nodetest.Containerd
	pg    *s0test.PostgresCluster
	dsn   string
	image string
	url   string

	registry string

	noded *process
	netd  *process // nil: there is none
	api   *process
	c     *client.Client
	shape shape // of a whole sandbox, see oracle_test.go

	keep string // where the logs of a test that fails go; empty: nowhere
}

// newStack starts everything, with a pool of so many warm sandboxes. When the test
// ends all sandboxes are deleted; what then is left of anything fails it.
func newStack(t testing.TB, pool int) *stack { return newStackWith(t, pool, false) }

// newStackWith is newStack with a netd, or without, and with more arguments for noded.
func newStackWith(t testing.TB, pool int, netd bool, more ...string) *stack {
	t.Helper()
	s := newNode(t, "n1")
	s.pg = s0test.NewPostgresCluster(t)
	s.dsn = s.pg.Database(t)
	registry := nodetest.NewRegistry(t)
	s.registry = registry.Host
	// By its digest: what the API server pins later has its pool drained and filled anew.
	s.image = registry.Pinned(t, registry.Push(t, "test/probe:1", nodetest.Rootfs(t), v1.Config{Env: []string{"PATH=/bin"}}))
	s.install()
	if netd {
		more = append(more, "--netd-socket="+s.netdSocket())
		s.netd = newProcess(s, "netd", s.netdArgs())
	}
	s.noded = newProcess(s, "noded", append(s.nodedArgs(registry.Host), more...))
	s.api = newProcess(s, "api", s.apiArgs(pool, registry.Host))
	t.Cleanup(s.finish)
	s.startNoded("")
	s.startNetd()
	s.startAPI()
	s.c = s.newClient()
	s.learn(pool)
	return s
}

// newNode is a node of a stack, without its daemons.
func newNode(t testing.TB, name string) *stack {
	t.Helper()
	ctd := nodetest.NewContainerd(t)
	s := &stack{TB: t, node: name, ctd: ctd, Machine: s0test.Machine{
		Root: ctd.Dir, DataDir: ctd.Dir, RunDir: filepath.Join(ctd.Dir, "r"), CgroupParent: ctd.CgroupParent,
		Cluster:    "t" + strings.ToLower(strings.TrimPrefix(filepath.Base(ctd.Dir), "s0c-")),
		NodeSocket: filepath.Join(ctd.Dir, "r", "n.sock"), ContainerdSocket: ctd.Address, Namespace: nodetest.Namespace,
		BinDir: s0test.Programs(t),
	}}
	ctd.RunscRoot = filepath.Join(s.nodedRun(), "runsc")
	t.Cleanup(s.removeInfrastructure)
	return s
}

// install puts procd where it is alone, and makes the directory of sockets.
func (s *stack) install() {
	s.Helper()
	s.must(os.Mkdir(s.procdDir(), 0o755))
	program, err := os.ReadFile(filepath.Join(s.BinDir, "procd"))
	s.must(err)
	s.must(os.WriteFile(filepath.Join(s.procdDir(), "procd"), program, 0o755))
	s.must(os.Mkdir(s.RunDir, 0o711))
}

func (s *stack) nodedRun() string  { return filepath.Join(s.RunDir, "noded") }
func (s *stack) nodedData() string { return filepath.Join(s.Root, "d") }
func (s *stack) procdDir() string  { return filepath.Join(s.Root, "p") }
func (s *stack) journal() string   { return filepath.Join(s.nodedData(), "journal.db") }
func (s *stack) paused() string    { return filepath.Join(s.nodedData(), "paused") }

func (s *stack) nodedArgs(registry string) []string {
	return []string{
		"noded", "--node=" + s.node, "--cluster=" + s.Cluster, "--data-dir=" + s.nodedData(), "--run-dir=" + s.nodedRun(),
		"--socket=" + s.NodeSocket, "--admin-socket=" + filepath.Join(s.RunDir, "na.sock"),
		"--containerd-socket=" + s.ContainerdSocket, "--containerd-namespace=" + s.Namespace,
		"--runsc=" + s.ctd.Runsc, "--procd-dir=" + s.procdDir(), "--cgroup-parent=" + s.CgroupParent,
		"--plain-http-registries=" + registry, "--image-registries=" + registry, "--cold-starts=4", "--log-level=debug",
	}
}

func (s *stack) netdRun() string    { return filepath.Join(s.RunDir, "netd") }
func (s *stack) netdSocket() string { return filepath.Join(s.netdRun(), "s") }
func (s *stack) dataplane() string  { return filepath.Join(s.nodedRun(), "netns", "_dataplane") }

func (s *stack) netdArgs() []string {
	return []string{"netd", "--netns=" + s.dataplane(), "--run-dir=" + s.netdRun(), "--socket=" + s.netdSocket(), "--log-level=debug"}
}

// startNetd starts netd, where there is one, in the namespace that noded has made, and waits
// until it answers.
func (s *stack) startNetd() {
	s.Helper()
	if s.netd == nil {
		return
	}
	s.must(os.MkdirAll(s.netdRun(), 0o700))
	s.netd.start("")
	s.eventually("netd to answer", func() error {
		if s.netd.ended() {
			s.Fatalf("netd ended while it was starting:\n%s", s.netd.tail())
		}
		_, err := s.attached()
		return err
	})
}

// attached are the generations of the sandboxes that netd knows; nil: there is no netd.
func (s *stack) attached() (map[string]uint64, error) {
	if s.netd == nil {
		return nil, nil
	}
	c := netdapi.NewClient(s.netdSocket())
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), answerTime)
	defer cancel()
	list, err := c.List(ctx)
	all := map[string]uint64{}
	for _, known := range list {
		all[string(known.ID)] = uint64(known.Generation)
	}
	return all, err
}

func (s *stack) apiArgs(pool int, registry string) []string {
	port, err := freeport.Find()
	s.must(err)
	listen := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	s.url = "http://" + listen
	return []string{
		"api", "--listen=" + listen, "--database-url=" + s.dsn, "--nodes=unix://" + s.NodeSocket,
		"--cluster=" + s.Cluster, "--key-file=" + filepath.Join(s.Root, "api.key"), "--admin-password=" + s0test.AdminPassword,
		"--image-registries=" + registry, "--default-image=" + s.image, "--pool-min=" + strconv.Itoa(pool), "--pool-max=" + strconv.Itoa(pool),
		"--rate-limit=1000000", "--rate-burst=1000000", "--log-level=debug",
	}
}

// startNoded starts noded with failpoints armed, and waits until it answers.
func (s *stack) startNoded(failpoints string) {
	s.Helper()
	s.noded.start(failpoint.EnvVar + "=" + failpoints)
	s.eventually("noded to answer", func() error {
		if s.noded.ended() {
			s.Fatalf("noded ended while it was starting:\n%s", s.noded.tail())
		}
		_, err := s.Live()
		return err
	})
}

func (s *stack) startAPI() {
	s.Helper()
	s.api.start("")
	c, err := client.New(client.Config{BaseURL: s.url})
	s.must(err)
	s.eventually("the API to answer", func() error {
		if s.api.ended() {
			s.Fatalf("api ended while it was starting:\n%s", s.api.tail())
		}
		return c.Ready(s.ctx())
	})
}

// restartNoded ends noded as a crash would, and starts it with failpoints armed.
func (s *stack) restartNoded(failpoints string) {
	s.Helper()
	s.noded.kill()
	s.startNoded(failpoints)
}

// newClient logs in and makes a key, which outlives every process.
func (s *stack) newClient() *client.Client {
	s.Helper()
	anonymous, err := client.New(client.Config{BaseURL: s.url})
	s.must(err)
	login, err := anonymous.Login(s.ctx(), "admin@example.com", s0test.AdminPassword)
	s.must(err)
	admin, err := client.New(client.Config{BaseURL: s.url, Token: login.AccessToken})
	s.must(err)
	never := client.CreateAPIKeyRequestExpiresIn("never")
	key, err := admin.CreateAPIKey(s.ctx(), client.CreateAPIKeyRequest{Name: "fault", Roles: []client.Role{"admin"}, ExpiresIn: &never})
	s.must(err)
	c, err := client.New(client.Config{BaseURL: s.url, Token: key.Key})
	s.must(err)
	return c
}

// finish deletes everything, and looks at what is left.
func (s *stack) finish() {
	defer s.keepLogs()
	s.noded.resume()
	s.api.resume()
	s.api.kill() // it would refill
	defer s.noded.kill()
	if s.noded.ended() {
		s.startNoded("")
	}
	s.eventually("nothing to be left", func() error {
		if err := s.drain(); err != nil {
			return err
		}
		traces, err := s.Traces()
		if err != nil {
			return err
		}
		var left []string
		for _, t := range traces {
			if t.ID != "" || t.Kind == "shim" {
				left = append(left, t.String())
			}
		}
		if len(left) > 0 {
			return fmt.Errorf("left:\n\t%s", strings.Join(left, "\n\t"))
		}
		return nil
	})
	s.stopNetd()
	if s.Failed() {
		s.Logf("noded's log ends with:\n%s", s.noded.tail())
		s.Logf("the API's log ends with:\n%s", s.api.tail())
	}
}

// keepLogs keeps what there is to explain a failure with: everybody's log, and the node's
// journal. What was kept of an earlier run there goes.
func (s *stack) keepLogs() {
	if !s.Failed() || s.keep == "" {
		return
	}
	logs, _ := filepath.Glob(filepath.Join(s.Root, "*.log"))
	err := errors.Join(os.RemoveAll(s.keep), os.MkdirAll(s.keep, 0o755))
	for _, path := range append(logs, s.journal()) {
		err = errors.Join(err, copyFile(filepath.Join(s.keep, filepath.Base(path)), path))
	}
	err = errors.Join(err, copyFile(filepath.Join(s.keep, "containerd.log"), filepath.Join(s.ctd.Dir, "log")))
	if err != nil {
		s.Logf("not all logs could be kept: %v", err)
	}
	s.Logf("the logs are in %s", s.keep)
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// stopNetd ends it in an orderly way: with no sandbox left it removes all that it has made.
func (s *stack) stopNetd() {
	if s.netd == nil {
		return
	}
	s.netd.resume()
	if !s.netd.ended() {
		s.netd.signal(syscall.SIGTERM)
		s.netd.died("it was told to stop")
	}
	_ = syscall.Unmount(filepath.Join(s.netdRun(), "bpf"), syscall.MNT_DETACH) // where it could not
}

// drain asks the node to end everything.
func (s *stack) drain() error {
	live, err := s.Live()
	if err != nil {
		return err
	}
	node, done := s.Node()
	defer done()
	if _, err := node.SetPools(s.ctx(), &nodeapi.SetPoolsRequest{}); err != nil {
		return err
	}
	for id, what := range live {
		if what != "sandbox" {
			continue
		}
		if _, err := node.Delete(s.ctx(), &nodeapi.DeleteRequest{Id: id}); err != nil {
			return err
		}
	}
	if len(live) > 0 {
		return fmt.Errorf("the node has %v", live)
	}
	return nil
}

// removeInfrastructure removes what a noded makes once and keeps, or that a killed
// one could not remove. What is still in use is found by containerd's own check.
func (s *stack) removeInfrastructure() {
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		groups, _ := filepath.Glob(filepath.Join(pattern, s.CgroupParent, "*"))
		for _, g := range groups {
			_ = os.Remove(g)
		}
	}
	if err := syscall.Unmount(s.dataplane(), syscall.MNT_DETACH); err != nil {
		s.Errorf("data plane: %v", err)
	}
	for _, dir := range []string{"portals/base", "portals"} { // where there are volumes
		err := syscall.Unmount(filepath.Join(s.nodedRun(), dir), syscall.MNT_DETACH)
		if err != nil && !errors.Is(err, syscall.ENOENT) {
			s.Errorf("%s: %v", dir, err)
		}
	}
}

func (s *stack) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	s.Cleanup(cancel)
	return ctx
}

func (s *stack) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// eventually waits until ok returns nil.
func (s *stack) eventually(what string, ok func() error) {
	s.Helper()
	s.within(patience, what, ok)
}

// within is eventually for what takes longer, however fast the machine is.
func (s *stack) within(limit time.Duration, what string, ok func() error) {
	s.Helper()
	for deadline := time.Now().Add(limit); ; <-time.After(look) {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("waited %s for %s: %v\nnoded: %s\napi: %s", limit, what, err, s.noded.tail(), s.api.tail())
		}
	}
}

// again reports whether an answer means that the same request may succeed later.
func again(err error) bool {
	var answer *client.APIError
	if !errors.As(err, &answer) {
		return true // no answer, or half of one
	}
	return answer.StatusCode >= 500 || answer.StatusCode == 429
}
