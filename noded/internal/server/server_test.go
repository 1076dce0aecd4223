package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"

	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/nodeapi/nodeapiconnect"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
	"s0.run/internal/volumeapi"
	"s0.run/noded/internal/events"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/lifecycle"
	"s0.run/noded/internal/noop"
	"s0.run/noded/internal/slots"
	"s0.run/noded/internal/snapshots"
	"s0.run/noded/internal/stats"
)

const patience = time.Minute

var spec = sandbox.Spec{Image: "img", MemoryBytes: 256 << 20, CPUMillis: 500, RuntimeClass: sandbox.GVisor}

// node is a server over a manager whose sandboxes are goroutines.
type node struct {
	t        *testing.T
	manager  *lifecycle.Manager
	hub      *events.Hub
	runtime  noop.Runtime
	rpc      nodeapiconnect.NodeClient
	http     *http.Client
	stopping chan struct{}
}

func start(t *testing.T, procd http.Handler) *node {
	t.Helper()
	dir := t.TempDir()
	j, err := journal.Open(filepath.Join(dir, "journal.db"))
	if err != nil {
		t.Fatal(err)
	}
	machine := noop.New()
	machine.Handler = procd
	n := &node{t: t, hub: events.NewHub(), runtime: noop.Runtime{Node: machine}, stopping: make(chan struct{})}
	reg, log := prometheus.NewRegistry(), slog.New(slog.NewTextHandler(io.Discard, nil))
	n.manager = lifecycle.New(lifecycle.Config{
		Cluster: "local", Scope: "test", Max: 100, ColdStarts: 1,
		DataDir: filepath.Join(dir, "data"), ImageDir: filepath.Join(dir, "images"), Snapshots: snapshots.NewStore(filepath.Join(dir, "snapshots")), RunDir: filepath.Join(dir, "run"), BinDir: "/bin",
		Journal: j, Runtime: n.runtime, Images: noop.Images{Node: machine}, Disk: noop.Disk{Node: machine},
		Network: noop.Network{Node: machine}, Egress: noop.Egress{}, Groups: noop.Groups{Node: machine},
		Hub: n.hub, Metrics: lifecycle.NewMetrics(reg), Log: log,
	})
	pools := slots.New(slots.Config{Lifecycle: n.manager, Images: noop.Images{Node: machine}, Warmups: 1, Hub: n.hub, Metrics: reg, Log: log})
	h := New(Config{
		Info:      &nodeapi.InfoResponse{Node: "n1", Cluster: "local"},
		Lifecycle: n.manager, Pools: pools, Hub: n.hub,
		Stats:    stats.New(stats.Config{Sandboxes: n.manager, Groups: noop.Groups{Node: machine}, Traffic: noop.Network{Node: machine}, Verdicts: fakeNetwork{}, Metrics: reg, Log: log}),
		Images:   noop.Images{Node: machine},
		Network:  fakeNetwork{},
		Stopping: n.stopping, Log: log,
	})
	n.run(j, pools)
	n.listen(dir, h)
	return n
}

func (n *node) run(j *journal.Journal, pools *slots.Pools) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, part := range []func(context.Context) error{j.Run, n.manager.Run, pools.Run} {
		wg.Go(func() { _ = part(ctx) })
	}
	n.t.Cleanup(func() {
		cancel()
		wg.Wait()
		n.runtime.Close()
	})
}

func (n *node) listen(dir string, h http.Handler) {
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		n.t.Fatal(err)
	}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: h, Protocols: protocols, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	n.t.Cleanup(func() {
		srv.Close()
		wg.Wait()
	})
	n.http = &http.Client{
		Transport: &http.Transport{
			Protocols:   protocols,
			DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", l.Addr().String()) },
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	n.rpc = nodeapiconnect.NewNodeClient(n.http, "http://node")
}

func (n *node) ctx() context.Context {
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	n.t.Cleanup(cancel)
	return ctx
}

// slot warms a slot; sandbox claims one.
func (n *node) slot() string {
	n.t.Helper()
	if err := n.manager.Create(n.ctx(), "pool", spec, nil); err != nil {
		n.t.Fatal(err)
	}
	for _, s := range n.manager.Slots() {
		if s.State == lifecycle.Free {
			return string(s.ID)
		}
	}
	n.t.Fatal("no free slot")
	return ""
}

func (n *node) sandbox() string {
	n.t.Helper()
	id := n.slot()
	if _, err := n.rpc.Claim(n.ctx(), &nodeapi.ClaimRequest{ClaimId: "c-" + id, Slot: id, Team: "t"}); err != nil {
		n.t.Fatal(err)
	}
	return id
}

func (n *node) request(method, path string, body io.Reader) *http.Request {
	n.t.Helper()
	req, err := http.NewRequestWithContext(n.ctx(), method, "http://node"+path, body)
	if err != nil {
		n.t.Fatal(err)
	}
	return req
}

func (n *node) do(req *http.Request) (status int, body string) {
	n.t.Helper()
	resp, err := n.http.Do(req)
	if err != nil {
		n.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func code(t *testing.T, what string, err error, want connect.Code) {
	t.Helper()
	if connect.CodeOf(err) != want {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func TestCalls(t *testing.T) {
	t.Parallel()
	n := start(t, nil)
	id := n.slot()
	_, err := n.rpc.Get(n.ctx(), &nodeapi.GetRequest{Id: id})
	code(t, "get of a slot", err, connect.CodeNotFound)
	resp, err := n.rpc.Claim(n.ctx(), &nodeapi.ClaimRequest{ClaimId: "c", Slot: id, PoolKey: "pool", Team: "t", Env: map[string]string{"A": "1"}})
	if err != nil {
		t.Fatal(err)
	}
	if sb := resp.GetSandbox(); resp.GetCold() || sb.GetId() != id || sb.GetState() != "running" || sb.GetTeam() != "t" || sb.GetEnv()["A"] != "1" {
		t.Errorf("claim answered %v", resp)
	}
	_, err = n.rpc.Claim(n.ctx(), &nodeapi.ClaimRequest{ClaimId: "d", Slot: id, Team: "t"})
	code(t, "second claim", err, connect.CodeAborted)
	_, err = n.rpc.Claim(n.ctx(), &nodeapi.ClaimRequest{ClaimId: "d", Slot: "../../etc", Team: "t"})
	code(t, "claim of no id", err, connect.CodeInvalidArgument)
	_, err = n.rpc.Claim(n.ctx(), &nodeapi.ClaimRequest{ClaimId: "d", Team: "t"})
	code(t, "cold claim without a spec", err, connect.CodeInvalidArgument)
	cold, err := n.rpc.Claim(n.ctx(), &nodeapi.ClaimRequest{ClaimId: "e", Team: "t", Spec: nodeapi.SpecToWire(spec)})
	if err != nil || !cold.GetCold() {
		t.Errorf("cold claim: %v (%v)", cold, err)
	}
	up, err := n.rpc.Update(n.ctx(), &nodeapi.UpdateRequest{Id: id, MemoryBytes: 512 << 20})
	if err != nil || up.GetMemoryBytes() != 512<<20 {
		t.Errorf("update: %v (%v)", up, err)
	}
	_, err = n.rpc.Delete(n.ctx(), &nodeapi.DeleteRequest{Id: id, Generation: 5})
	code(t, "delete of another generation", err, connect.CodeFailedPrecondition)
	if _, err = n.rpc.Delete(n.ctx(), &nodeapi.DeleteRequest{Id: id, Generation: 1, Reason: "done"}); err != nil {
		t.Error(err)
	}
	refused, err := n.rpc.SetPools(n.ctx(), &nodeapi.SetPoolsRequest{Pools: []*nodeapi.Pool{
		{Key: "nothing", Spec: &nodeapi.Spec{}}, {Key: "good", Spec: nodeapi.SpecToWire(spec), MinIdle: 1, MaxIdle: 1},
	}})
	if r := refused.GetRefused(); err != nil || len(r) != 1 || r[0].GetKey() != "nothing" || r[0].GetReason() == "" {
		t.Errorf("a pool of nothing beside a good one: %v (%v)", refused, err)
	}
	if i, err := n.rpc.Info(n.ctx(), &nodeapi.InfoRequest{}); err != nil || i.GetNode() != "n1" {
		t.Errorf("info: %v (%v)", i, err)
	}
}

// watch gives the events of a watcher, one after the other, and its stream.
func (n *node) watch(many bool) (next func() *nodeapi.Event, stream *connect.ServerStreamForClient[nodeapi.Event]) {
	n.t.Helper()
	stream, err := n.rpc.Watch(n.ctx(), &nodeapi.WatchRequest{Many: many})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { stream.Close() })
	var queue []*nodeapi.Event
	return func() *nodeapi.Event {
		n.t.Helper()
		for len(queue) == 0 {
			if !stream.Receive() {
				n.t.Fatalf("the stream ended: %v", stream.Err())
			}
			if queue = stream.Msg().All(); stream.Msg().GetMany() != nil && !many {
				n.t.Error("several events for who takes one")
			}
		}
		e := queue[0]
		queue = queue[1:]
		return e
	}, stream
}

// A watcher sees first everything, then each change, through a pool's whole life.
func TestWatch(t *testing.T) {
	t.Parallel()
	for _, many := range []bool{false, true} {
		t.Run(fmt.Sprintf("many=%t", many), func(t *testing.T) {
			t.Parallel()
			testWatch(t, many)
		})
	}
}

func testWatch(t *testing.T, many bool) {
	n := start(t, nil)
	claimed := n.sandbox()
	next, stream := n.watch(many)
	seen := map[string]string{}
	for e := next(); e.GetSynced() == nil; e = next() {
		if sb := e.GetSandbox(); sb != nil {
			seen[sb.GetId()] = sb.GetState()
		}
	}
	if seen[claimed] != "running" || len(seen) != 1 {
		t.Errorf("initial state %v", seen)
	}
	pool := &nodeapi.Pool{Key: "p", Spec: nodeapi.SpecToWire(spec), MinIdle: 1, MaxIdle: 1}
	if _, err := n.rpc.SetPools(n.ctx(), &nodeapi.SetPoolsRequest{Pools: []*nodeapi.Pool{pool}}); err != nil {
		t.Fatal(err)
	}
	var free string
	for idle := uint32(0); free == "" || idle != 1; {
		e := next()
		if s := e.GetSlotFree(); s != nil {
			free = s.GetId()
		}
		if p := e.GetPool(); p != nil {
			idle = p.GetIdle()
		}
	}
	if _, err := n.rpc.SetPools(n.ctx(), &nodeapi.SetPoolsRequest{}); err != nil {
		t.Fatal(err)
	}
	for next().GetSlotTaken() != free {
	}
	close(n.stopping)
	for stream.Receive() { // what was queued
	}
	code(t, "watch when the node stops", stream.Err(), connect.CodeUnavailable)
}

// A cordon is told to who watches, and to who begins to: API servers don't ask Kubernetes.
func TestCordon(t *testing.T) {
	t.Parallel()
	n := start(t, nil)
	early, _ := n.watch(false)
	for early().GetSynced() == nil {
	}
	for _, want := range []bool{true, false} {
		if _, err := n.rpc.Cordon(n.ctx(), &nodeapi.CordonRequest{Cordoned: want}); err != nil {
			t.Fatal(err)
		}
		if e, ok := early().GetEvent().(*nodeapi.Event_Cordoned); !ok || e.Cordoned != want {
			t.Errorf("told %v of %v", e, want)
		}
		late, _ := n.watch(false)
		for e := late(); e.GetSynced() == nil; e = late() {
			if c, ok := e.GetEvent().(*nodeapi.Event_Cordoned); !ok || c.Cordoned != want {
				t.Errorf("at first told %v of %v", e, want)
			}
		}
	}
}

// What can't be encoded is left out: the watcher gets all the rest.
func TestWatchSkipsWhatCannotBeTold(t *testing.T) {
	t.Parallel()
	for _, many := range []bool{false, true} {
		n := start(t, nil)
		bad := func() *nodeapi.Event {
			return &nodeapi.Event{Event: &nodeapi.Event_Pool{Pool: &nodeapi.PoolStatus{Key: "p", LastError: "no \xff text"}}}
		}
		n.hub.Set("pool/p", bad())
		next, _ := n.watch(many)
		if e := next(); e.GetSynced() == nil {
			t.Fatalf("first %v, want synced", e)
		}
		n.hub.Set("pool/p", bad())
		n.hub.Clear("pool/p", &nodeapi.Event{Event: &nodeapi.Event_SlotTaken{SlotTaken: "next"}})
		if e := next(); e.GetSlotTaken() != "next" {
			t.Fatalf("then %v, want what came after it", e)
		}
	}
}

// echo is a procd that answers with what it was asked.
func echo(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Set-Cookie", "a=b")
	w.Header().Set("X-Powered-By", "sandbox")
	_ = json.NewEncoder(w).Encode(map[string]any{"method": r.Method, "uri": r.URL.RequestURI(), "header": r.Header, "body": string(body)})
}

func TestProxyPassesOnlyWhatIsListed(t *testing.T) {
	t.Parallel()
	n := start(t, http.HandlerFunc(echo))
	id := n.sandbox()
	req := n.request(http.MethodPost, nodeapi.ProcPrefix+id+"/files/move?path=/a%20b&x=1", strings.NewReader("hello"))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(procapi.TimeoutHeader, "1500")
	req.Header.Set("Authorization", "Bearer secret")
	req.Header.Set("Cookie", "session=secret")
	resp, err := n.http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got struct {
		Method, URI, Body string
		Header            http.Header
	}
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if got.Method != "POST" || got.URI != "/files/move?path=/a%20b&x=1" || got.Body != "hello" || got.Header.Get("Content-Type") != "application/json" {
		t.Errorf("procd got %+v", got)
	}
	if got.Header.Get(procapi.TimeoutHeader) != "1500" {
		t.Errorf("the caller's patience did not reach procd: %v", got.Header)
	}
	if got.Header.Get("Authorization") != "" || got.Header.Get("Cookie") != "" {
		t.Errorf("credentials reached the sandbox: %v", got.Header)
	}
	if resp.Header.Get("Set-Cookie") != "" || resp.Header.Get("X-Powered-By") != "" || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("answer's headers %v", resp.Header)
	}
}

func TestProxyRefuses(t *testing.T) {
	t.Parallel()
	n := start(t, http.HandlerFunc(echo))
	id, slot := n.sandbox(), n.slot()
	unknown, _ := sandbox.NewID("local")
	for _, c := range []struct {
		path, generation string
		status           int
		code             string
	}{
		{nodeapi.ProcPrefix + id + "/init", "", 404, "not_found"},
		{nodeapi.ProcPrefix + id + "/hello", "", 404, "not_found"},
		{nodeapi.ProcPrefix + id + "/env", "", 404, "not_found"},
		{nodeapi.ProcPrefix + id, "", 404, "not_found"},
		{nodeapi.ProcPrefix + id + "/contextsx", "", 404, "not_found"},
		{nodeapi.ProcPrefix + id + "/contexts/../init", "", 404, "not_found"},
		{nodeapi.ProcPrefix + id + "/contexts/%2e%2e/init", "", 404, "not_found"},
		{nodeapi.ProcPrefix + id + "/contexts//", "", 404, "not_found"},
		{nodeapi.ProcPrefix + string(unknown) + "/files", "", 404, "not_found"},
		{nodeapi.ProcPrefix + slot + "/files", "", 404, "not_found"}, // nobody's: nobody may know of it
		{nodeapi.ProcPrefix + "..%2f..%2fetc/files", "", 404, "not_found"},
		{nodeapi.ProcPrefix + id + "/files", "2", 409, lifecycle.CodeStaleGeneration},
		{nodeapi.ProcPrefix + id + "/files", "x", 400, "bad_request"},
		{nodeapi.ProcPrefix + id + "/files", "1", 200, ""},
	} {
		req := n.request(http.MethodGet, c.path, nil)
		if c.generation != "" {
			req.Header.Set(nodeapi.GenerationHeader, c.generation)
		}
		status, body := n.do(req)
		var e procapi.Error
		if err := json.Unmarshal([]byte(body), &e); err != nil || status != c.status || e.Code != c.code {
			t.Errorf("%s, generation %q: %d %s (%v)", c.path, c.generation, status, body, err)
		}
	}
}

// Both directions flow at the same time, byte by byte.
func TestProxyIsFullDuplex(t *testing.T) {
	t.Parallel()
	n := start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		_ = rc.Flush()
		buf := make([]byte, 1)
		for {
			if _, err := r.Body.Read(buf); err != nil {
				return
			}
			_, _ = w.Write(bytes.ToUpper(buf))
			_ = rc.Flush()
		}
	}))
	in, out := io.Pipe()
	resp, err := n.http.Do(n.request(http.MethodPost, nodeapi.ProcPrefix+n.sandbox()+"/contexts/c/attach", in))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	buf := make([]byte, 1)
	for _, c := range "duplex" {
		if _, err := io.WriteString(out, string(c)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(resp.Body, buf); err != nil || string(buf) != strings.ToUpper(string(c)) {
			t.Fatalf("sent %c, got %s (%v)", c, buf, err)
		}
	}
	out.Close()
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) != 0 {
		t.Errorf("the end: %q, %v", rest, err)
	}
}

// The caller's going reaches procd.
func TestProxyCancels(t *testing.T) {
	t.Parallel()
	cancelled := make(chan struct{})
	n := start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		close(cancelled)
	}))
	req := n.request(http.MethodGet, nodeapi.ProcPrefix+n.sandbox()+"/contexts", nil)
	ctx, cancel := context.WithCancel(req.Context())
	resp, err := n.http.Do(req.WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	cancel()
	select {
	case <-cancelled:
	case <-time.After(patience):
		t.Fatal("procd still answers nobody")
	}
}

// B13: what a hostile procd can say is an error at most, never a clean lie.
func TestB13_HostileProcd(t *testing.T) {
	t.Parallel()
	n := start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch strings.TrimPrefix(r.URL.Path, "/files/") {
		case "cut":
			_, _ = io.WriteString(w, "half of it")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		case "short":
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "half of it")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		case "head":
			w.Header().Set("Content-Length", "100")
		case "hints":
			w.Header().Set("Link", "</evil>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusOK)
		case "trailer":
			w.Header().Set(http.TrailerPrefix+"Evil", "1")
			_, _ = io.WriteString(w, "ok")
		case "redirect":
			http.Redirect(w, r, "http://169.254.169.254/", http.StatusFound)
		case "odd":
			w.WriteHeader(999)
		case "huge":
			w.Header().Set("X", strings.Repeat("x", 1<<20))
		}
	}))
	base := nodeapi.ProcPrefix + n.sandbox() + "/files/"
	get := func(what string) (*http.Response, string, error) {
		resp, err := n.http.Do(n.request(http.MethodGet, base+what, nil))
		if err != nil {
			return &http.Response{}, "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return resp, string(b), err
	}
	for _, what := range []string{"cut", "short"} {
		if _, body, err := get(what); err == nil {
			t.Errorf("a cut answer ends well: %q", body)
		}
	}
	if status, body := n.do(n.request(http.MethodHead, base+"head", nil)); status != http.StatusOK || body != "" {
		t.Errorf("a header alone: %d %q", status, body)
	}
	if resp, _, err := get("hints"); err != nil || resp.StatusCode != 200 || resp.Header.Get("Link") != "" {
		t.Errorf("hints: %v (%v)", resp.Header, err)
	}
	if resp, body, err := get("trailer"); err != nil || body != "ok" || len(resp.Trailer) != 0 {
		t.Errorf("trailer: %v (%v)", resp.Trailer, err)
	}
	if resp, _, err := get("redirect"); err != nil || resp.Header.Get("Location") != "" {
		t.Errorf("redirect: %v (%v)", resp.Header, err)
	}
	if resp, _, err := get("odd"); err != nil || resp.StatusCode != http.StatusBadGateway {
		t.Errorf("status 999: %d (%v)", resp.StatusCode, err)
	}
	if resp, _, err := get("huge"); err != nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("huge header: %d (%v)", resp.StatusCode, err)
	}
}

func TestX30_ProcdGone(t *testing.T) {
	t.Parallel()
	n := start(t, http.HandlerFunc(echo))
	id := n.sandbox()
	n.runtime.Kill(sandbox.ID(id), false)
	status, body := n.do(n.request(http.MethodGet, nodeapi.ProcPrefix+id+"/contexts", nil))
	var e procapi.Error
	if err := json.Unmarshal([]byte(body), &e); err != nil || status != http.StatusServiceUnavailable || e.Code != "unavailable" {
		t.Errorf("%d %s (%v)", status, body, err)
	}
}

// What passes is not held: memory stays flat however much it is, and all of it arrives.
func TestProxyBulk(t *testing.T) {
	t.Parallel()
	const size = 32 << 20
	n := start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			got, err := io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, got, " ", err)
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(size))
		_, _ = io.Copy(w, io.LimitReader(zeroes{}, size))
	}))
	path := nodeapi.ProcPrefix + n.sandbox() + "/files"
	resp, err := n.http.Do(n.request(http.MethodGet, path, nil))
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	got, err := io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if err != nil || got != size || resp.ContentLength != size {
		t.Errorf("download of %d of %d bytes: %v", got, size, err)
	}
	t.Logf("download %.0f MB/s", size/time.Since(begin).Seconds()/1e6)
	begin = time.Now()
	if _, body := n.do(n.request(http.MethodPost, path, io.LimitReader(zeroes{}, size))); body != fmt.Sprint(size, " <nil>") {
		t.Errorf("upload: %s", body)
	}
	t.Logf("upload %.0f MB/s", size/time.Since(begin).Seconds()/1e6)
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { return len(p), nil }

func TestErrorsKeepTheirCausesHere(t *testing.T) {
	t.Parallel()
	var logged bytes.Buffer
	s := &Server{cfg: Config{Log: slog.New(slog.NewTextHandler(&logged, nil))}}
	err := s.fail("Claim", errors.New("/var/lib/secret: no space left"))
	var ce *connect.Error
	if !errors.As(err, &ce) || ce.Code() != connect.CodeInternal || strings.Contains(ce.Message(), "secret") {
		t.Errorf("the wire gets %v", err)
	}
	if !strings.Contains(logged.String(), "no space left") {
		t.Errorf("the log has %q", logged.String())
	}
	if !slices.Contains(proxiedPaths, procapi.PathFiles) || proxied(procapi.PathInit) {
		t.Error("the proxy's list is wrong")
	}
}

// What could not be made of one instant is tried at another, a few times; what will not be
// different then is not.
func TestAnInstantIsTriedAgain(t *testing.T) {
	t.Parallel()
	s := &Server{cfg: Config{Lifecycle: start(t, nil).manager}}
	written := errdefs.New(errdefs.Unavailable, "it is written to")
	for _, c := range []struct {
		fails int
		with  error
		want  error
		tries int
	}{
		{0, nil, nil, 1}, {2, written, nil, 3}, {9, written, written, instantTries}, {9, errdefs.New(errdefs.Conflict, "no"), errdefs.New(errdefs.Conflict, "no"), 1},
	} {
		tries := 0
		err := s.instant(t.Context(), nil, volumeapi.Volume{ID: "v"}, func(captured string) error {
			if tries++; tries <= c.fails {
				return c.with
			}
			return nil
		})
		if tries != c.tries || (err == nil) != (c.want == nil) || err != nil && errdefs.From(err).Kind != errdefs.From(c.want).Kind {
			t.Errorf("%+v: %d tries, %v", c, tries, err)
		}
	}
}
