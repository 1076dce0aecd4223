package nodes_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"s0.run/api"
	"s0.run/internal/nodeapi"
	"s0.run/internal/nodeapi/nodeapiconnect"
	"s0.run/internal/s0test"
	"s0.run/internal/s0test/freeport"
	"s0.run/internal/s0test/nodetest"
	"s0.run/noded"
)

const (
	// patience is how long what must happen may take: a node counts as lost after half a
	// minute of silence, and silence is noticed after 20 s.
	patience = 3 * time.Minute
	look     = 50 * time.Millisecond

	clusterName = "several"
	room        = 100 // sandboxes of a node
	pool        = 9   // warm ones of the cluster
)

// A cluster is two API servers and some nodes.
type cluster struct {
	*testing.T
	dir     string
	s0d     string
	dsn     string
	pin     string
	joining string   // port of the first server's listener for nodes
	urls    []string // of the servers
	token   string   // of the first user
	db      *pgx.Conn
	admin   *api.Nodes
	nodes   map[string]*node
	adapt   func(*api.Config) // what its servers have of their own
}

func startCluster(t *testing.T, adapt func(*api.Config)) *cluster {
	t.Helper()
	s0test.NeedRoot(t)
	dir, err := os.MkdirTemp("", "s0n-") // short enough for sockets' names
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &cluster{T: t, dir: dir, s0d: filepath.Join(dir, "s0d"), dsn: s0test.Postgres(t), nodes: map[string]*node{}, adapt: adapt}
	nodetest.Build(t, c.s0d, "s0.run/cmd/s0d")
	c.must(noded.MakeObjectKey(filepath.Join(dir, "object.key")))
	if c.pin, err = api.NodeCAPin(filepath.Join(dir, "ca")); err != nil {
		t.Fatal(err)
	}
	if c.db, err = pgx.Connect(t.Context(), c.dsn); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.db.Close(context.Background()) })
	port, err := freeport.Find()
	c.must(err)
	c.joining = strconv.Itoa(port)
	c.server(":" + c.joining)
	c.server("") // which nobody joins at
	if c.admin, err = api.OpenNodes(t.Context(), c.dsn); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.admin.Close)
	return c
}

// server starts an API server, which ends with the test.
func (c *cluster) server(joining string) {
	c.Helper()
	ready, done := make(chan string, 1), make(chan error, 1)
	ctx, stop := context.WithCancel(context.Background())
	log, err := os.Create(filepath.Join(c.dir, fmt.Sprintf("api%d.log", len(c.urls))))
	c.must(err)
	cfg := api.Config{
		Listen: "127.0.0.1:0", DatabaseURL: c.dsn, NodeCADir: filepath.Join(c.dir, "ca"), NodeListen: joining, KeyFile: filepath.Join(c.dir, "api.key"), Cluster: clusterName, PublicDomain: "http://s0.test",
		DefaultImage: "image", PoolMin: pool, PoolMax: pool, AdminPassword: s0test.AdminPassword, RateLimit: 1e6, RateBurst: 1e6,
		Log: slog.New(slog.NewJSONHandler(log, nil)), Ready: func(addr string) { ready <- addr },
	}
	c.adapt(&cfg)
	go func() { done <- api.Run(ctx, cfg) }()
	c.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			c.Error(err)
		}
		log.Close()
	})
	select {
	case addr := <-ready:
		c.urls = append(c.urls, "http://"+addr)
	case err := <-done:
		done <- nil
		c.Fatal(err)
	case <-time.After(patience):
		c.Fatal("an API server is not ready")
	}
	if c.token == "" {
		var login struct {
			Token string `json:"access_token"`
		}
		c.call(http.MethodPost, "/auth/login", map[string]string{"email": "admin@example.com", "password": s0test.AdminPassword}, &login)
		c.token = login.Token
	}
}

// call makes one call of a server, each time of another one, and answers its status.
func (c *cluster) call(method, path string, in, out any) (status int) {
	c.Helper()
	var body []byte
	if in != nil {
		var err error
		body, err = json.Marshal(in)
		c.must(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	base := c.urls[0]
	if c.token != "" {
		c.urls = append(c.urls[1:], base)
	}
	req, err := http.NewRequestWithContext(ctx, method, base+path, bytes.NewReader(body))
	c.must(err)
	req.Header.Set("Authorization", "Bearer "+c.token)
	resp, err := http.DefaultClient.Do(req)
	c.must(err)
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	c.must(err)
	if resp.StatusCode >= 300 {
		c.Logf("%s %s: %d %s", method, path, resp.StatusCode, answer)
	} else if out != nil {
		c.must(json.Unmarshal(answer, &struct{ Data any }{out}))
	}
	return resp.StatusCode
}

func (c *cluster) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

// until waits for what must happen.
func (c *cluster) until(what string, ok func() bool) {
	c.Helper()
	for begin := time.Now(); !ok(); time.Sleep(look) {
		if time.Since(begin) > patience {
			logs, _ := filepath.Glob(filepath.Join(c.dir, "*.log"))
			for _, file := range logs {
				text, _ := os.ReadFile(file)
				c.Logf("%s ends with\n%s", filepath.Base(file), text[max(0, len(text)-4000):])
			}
			c.Fatal("never:", what)
		}
	}
}

// claim is a sandbox, and the node that it is on.
func (c *cluster) claim() (id, node string) {
	c.Helper()
	var sb struct {
		ID string `json:"sandbox_id"`
	}
	if status := c.call(http.MethodPost, "/api/v1/sandboxes", map[string]string{"template": "default"}, &sb); status != http.StatusCreated {
		c.Fatalf("a claim: %d", status)
	}
	return sb.ID, strings.Fields(c.row(sb.ID))[1]
}

// claimAt claims until a sandbox is on a node.
func (c *cluster) claimAt(name string) (id string) {
	c.Helper()
	c.until("a claim at "+name, func() bool {
		var at string
		if id, at = c.claim(); at != name {
			c.delete(id)
		}
		return at == name
	})
	return id
}

func (c *cluster) delete(id string) {
	c.Helper()
	if status := c.call(http.MethodDelete, "/api/v1/sandboxes/"+id, nil, nil); status >= 300 {
		c.Fatalf("a delete: %d", status)
	}
}

func (c *cluster) pause(id string) {
	c.Helper()
	if status := c.call(http.MethodPost, "/api/v1/sandboxes/"+id+"/pause", nil, nil); status >= 300 {
		c.Fatalf("a pause: %d", status)
	}
	c.until("it is stored", func() bool { return strings.Contains(c.row(id), "stored") })
}

// resume resumes a sandbox, which may have to wait, and answers where.
func (c *cluster) resume(id string) (node string) {
	c.Helper()
	c.until("a resume", func() bool {
		return c.call(http.MethodPost, "/api/v1/sandboxes/"+id+"/resume", nil, nil) == http.StatusOK
	})
	row := strings.Fields(c.row(id))
	if row[0] != "running" {
		c.Fatalf("resumed, it is %v", row)
	}
	return row[1]
}

// row is a sandbox's state, its node, and if it is stored or deleted.
func (c *cluster) row(id string) (row string) {
	c.Helper()
	c.must(c.db.QueryRow(context.Background(), `SELECT concat_ws(' ', status, node, CASE WHEN stored_generation IS NOT NULL THEN 'stored' END,
		CASE WHEN deleted_at IS NOT NULL THEN 'deleted' END) FROM sandboxes WHERE id = $1`, id).Scan(&row))
	return row
}

// A node is a noded in a network namespace.
type node struct {
	c       *cluster
	name    string
	netns   string
	link    string // outside
	outside string // this machine's address on that link
	inside  string // and the node's
	socket  string
	args    []string
	log     *os.File
	cmd     *exec.Cmd
	exited  chan struct{}
}

// node adds a node, whose network is the i-th, and starts it.
func (c *cluster) node(i int, name string) *node {
	c.Helper()
	n := c.place(i, name)
	n.args = append(n.simulated(), "--max-sandboxes", fmt.Sprint(room))
	c.Cleanup(n.kill)
	n.admit()
	n.start()
	return n
}

// simulated is how a node without real sandboxes is started.
func (n *node) simulated() []string {
	c, name := n.c, n.name
	return []string{
		"netns", "exec", n.netns, c.s0d, "noded", "--simulate", "--node", name, "--cluster", clusterName,
		"--data-dir", filepath.Join(c.dir, name), "--run-dir", filepath.Join(c.dir, name+"-run"), "--socket", n.socket,
		"--object-store", "file://" + filepath.Join(c.dir, "store"), "--object-key-file", filepath.Join(c.dir, "object.key"),
		"--listen", ":30083", "--control-plane", net.JoinHostPort(n.outside, c.joining), "--control-plane-pin", c.pin, "--join-token-file", filepath.Join(c.dir, name+".token"),
	}
}

// place makes a node's network, the i-th.
func (c *cluster) place(i int, name string) *node {
	c.Helper()
	n := &node{c: c, name: name, netns: fmt.Sprintf("s0n%d-%d", os.Getpid(), i), link: fmt.Sprintf("s0n%x.%d", os.Getpid(), i), socket: filepath.Join(c.dir, name+".sock")}
	n.outside, n.inside = fmt.Sprintf("10.203.%d.%d", os.Getpid()%256, 4*i+1), fmt.Sprintf("10.203.%d.%d", os.Getpid()%256, 4*i+2)
	outside, inside := n.outside, n.inside
	c.ip("netns", "add", n.netns)
	c.Cleanup(func() { _ = exec.Command("ip", "netns", "del", n.netns).Run() })
	c.ip("link", "add", n.link, "type", "veth", "peer", "name", "eth0", "netns", n.netns)
	c.Cleanup(func() { _ = exec.Command("ip", "link", "del", n.link).Run() })
	c.ip("addr", "add", outside+"/30", "dev", n.link)
	c.ip("link", "set", n.link, "up")
	c.ip("-n", n.netns, "addr", "add", inside+"/30", "dev", "eth0")
	c.ip("-n", n.netns, "link", "set", "eth0", "up")
	c.ip("-n", n.netns, "link", "set", "lo", "up")
	var err error
	n.log, err = os.Create(filepath.Join(c.dir, name+".log"))
	c.must(err)
	c.Cleanup(func() { n.log.Close() })
	c.nodes[name] = n
	return n
}

func (c *cluster) ip(args ...string) {
	c.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		c.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// admit gives the node a token, which admits it alone and once.
func (n *node) admit() {
	n.c.Helper()
	token, _, err := n.c.admin.NewToken(context.Background(), n.name, 1, time.Hour)
	n.c.must(err)
	n.c.must(os.WriteFile(filepath.Join(n.c.dir, n.name+".token"), []byte(token+"\n"), 0o600))
}

func (n *node) start() {
	n.c.Helper()
	n.cmd = exec.Command("ip", n.args...)
	n.cmd.Stdout, n.cmd.Stderr = n.log, n.log
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	n.c.must(n.cmd.Start())
	n.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) { // ends with the process, which the test's end kills
		_ = cmd.Wait()
		close(exited)
	}(n.cmd, n.exited)
}

// kill ends the node as a power cut would.
func (n *node) kill() {
	if n.cmd != nil {
		_ = n.cmd.Process.Kill()
		<-n.exited
		n.cmd = nil
	}
}

// cut cuts the node's network, or mends it.
func (n *node) cut(cut bool) {
	n.c.Helper()
	n.c.ip("link", "set", n.link, map[bool]string{true: "down", false: "up"}[cut])
}

// rpc asks the node from beside it, whatever its network is like.
func (n *node) rpc() nodeapiconnect.NodeClient {
	return nodeapiconnect.NewNodeClient(&http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", n.socket)
	}}}, "http://node")
}

// has is what the node has of a sandbox; empty: nothing.
func (n *node) has(id string) (state string) {
	n.c.Helper()
	sb, err := n.rpc().Get(context.Background(), &nodeapi.GetRequest{Id: id})
	if err != nil {
		return ""
	}
	return sb.GetState()
}

// free counts a node's free slots, which it tells in the beginning of its stream.
func (n *node) free() int {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	stream, err := n.rpc().Watch(ctx, &nodeapi.WatchRequest{})
	if err != nil {
		return 0
	}
	defer stream.Close()
	slots := 0
	for stream.Receive() {
		switch stream.Msg().GetEvent().(type) {
		case *nodeapi.Event_SlotFree:
			slots++
		case *nodeapi.Event_Synced:
			return slots
		}
	}
	return 0
}

// members are the names of nodes that the list has, those that were removed left out.
func (c *cluster) members() (names []string) {
	c.Helper()
	list, err := c.admin.List(context.Background())
	c.must(err)
	for _, n := range list {
		if !n.Removed {
			names = append(names, n.Name)
		}
	}
	return names
}
