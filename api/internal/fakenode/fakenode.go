// Package fakenode is a node for tests of the API server: it speaks the node API
// and the data plane on a unix socket, keeps slots and sandboxes in memory, and
// does what a test tells it to do wrong.
//
// It is a remote control plane's stand-in, nothing else imports it. It owns its
// listener, which ends with the test.
package fakenode

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"s0.run/internal/nodeapi"
	"s0.run/internal/nodeapi/nodeapiconnect"
	"s0.run/internal/sandbox"
)

// Node is a node. Its exported fields are set before Start.
type Node struct {
	nodeapiconnect.UnimplementedNodeHandler

	Name          string
	Cluster       string
	NetworkPolicy bool
	Classes       []string     // beside gvisor
	ObjectStore   bool         // the node has one
	NoRefill      bool         // pools are filled once
	Proc          http.Handler // every sandbox's procd; it sees procd's own paths and the id in the header SandboxHeader

	Volumes *VolumeStore // nil: the node has none

	Layers http.Handler // what sandboxes have changed; nil: there are none

	// OnClaim may refuse or delay a claim, before it takes effect.
	OnClaim func(ctx context.Context, req *nodeapi.ClaimRequest) error
	// AfterClaim may lose a claim's answer, after it took effect.
	AfterClaim func(ctx context.Context, req *nodeapi.ClaimRequest) error

	// OnDelete may delay an end, before it takes effect, until its caller leaves.
	OnDelete func(ctx context.Context)

	// AfterPause is called before a pause that took effect is answered.
	AfterPause func(id string)

	// AfterRestore may lose a restore's answer, after it took effect.
	AfterRestore func(id string) error

	// OnResume may refuse a resume, before it takes effect.
	OnResume func(req *nodeapi.ResumeRequest) error

	// WhileResuming may delay a resume, before it takes effect, until its caller leaves.
	WhileResuming func(stop <-chan struct{})

	// AfterResume may undo a resume, or lose its answer, after it took effect.
	AfterResume func(n *Node, id string, gen uint64) error

	// AfterFork may lose a fork's answer, after it took effect.
	AfterFork func(req *nodeapi.ForkRequest) error

	// OnSnapshot may refuse or delay a snapshot, before it takes effect, and
	// OnDeleteSnapshot its end.
	OnSnapshot, OnDeleteSnapshot func(ctx context.Context, snapshot string) error

	// OnStats may delay an answer about a sandbox's usage.
	OnStats func(ctx context.Context)

	// OnResolve answers ResolveImage; without it no registry is in reach.
	OnResolve func(image string) (digest string, err error)

	Socket string

	mu        sync.Mutex
	flows     flows
	bandwidth *nodeapi.SetBandwidthRequest
	removed   []*nodeapi.RemoveStoredRequest
	networks  map[string]*nodeapi.Network
	pools     map[string]*nodeapi.Pool
	setPools  int
	free      map[string]*nodeapi.Slot
	sandboxes map[string]*nodeapi.Sandbox
	idle      map[string]uint32 // free slots by pool key
	claimed   map[string]uint32 // sandboxes by pool key
	claims    map[string]string // claim id → sandbox id, for good
	deletes   map[string]string // sandbox id → reason
	stats     map[string][]*nodeapi.StatsSample
	finals    []*nodeapi.SandboxCounters
	watchers  map[chan *nodeapi.Event]bool
	srv       *http.Server
	told      []*nodeapi.SandboxEvents
	leases    int
	snapshots map[string]string // snapshot → team
	filesOnly map[string]bool   // sandbox id → how it was paused last
	begun     map[string]string // sandbox id → snapshot that it began with, or went back to
	cordoned  bool
}

// SandboxHeader names the sandbox to the Proc handler.
const SandboxHeader = "X-Fake-Sandbox"

// Start serves the node until the test ends.
func Start(t testing.TB, n *Node) *Node {
	t.Helper()
	if n.Name == "" {
		n.Name = "n1"
	}
	if n.Cluster == "" {
		n.Cluster = "local"
	}
	if n.Socket == "" {
		n.Socket = filepath.Join(t.TempDir(), "node.sock")
	}
	n.pools, n.free, n.sandboxes = map[string]*nodeapi.Pool{}, map[string]*nodeapi.Slot{}, map[string]*nodeapi.Sandbox{}
	n.claims, n.deletes, n.watchers = map[string]string{}, map[string]string{}, map[chan *nodeapi.Event]bool{}
	n.idle, n.claimed, n.stats = map[string]uint32{}, map[string]uint32{}, map[string][]*nodeapi.StatsSample{}
	n.snapshots, n.filesOnly, n.begun = map[string]string{}, map[string]bool{}, map[string]string{}
	n.Listen(t)
	t.Cleanup(n.Stop)
	return n
}

// Listen serves again after Stop; what the node had is still there.
func (n *Node) Listen(t testing.TB) {
	t.Helper()
	l, err := net.Listen("unix", n.Socket)
	if err != nil {
		t.Fatal(err)
	}
	n.serve(l, nil)
}

// ListenTLS serves on a port of this machine, too, and answers where.
func (n *Node) ListenTLS(t testing.TB, cfg *tls.Config) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := n.serve(tls.NewListener(l, cfg), cfg)
	t.Cleanup(func() { srv.Close() })
	return l.Addr().String()
}

func (n *Node) serve(l net.Listener, cfg *tls.Config) *http.Server {
	mux := http.NewServeMux()
	mux.Handle(nodeapiconnect.NewNodeHandler(n))
	mux.HandleFunc(nodeapi.ProcPrefix+"{id}/{path...}", n.proxy)
	mux.HandleFunc(nodeapi.VolumePrefix+"{id}/{path...}", n.volumeFiles)
	if n.Layers != nil {
		mux.Handle(nodeapi.LayerPrefix, n.Layers)
	}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(cfg == nil)
	protocols.SetHTTP2(cfg != nil)
	srv := &http.Server{Handler: mux, Protocols: protocols, TLSConfig: cfg, HTTP2: &http.HTTP2Config{MaxReadFrameSize: 32 << 10}} // as noded's
	if cfg == nil {
		n.mu.Lock()
		n.srv = srv
		n.mu.Unlock()
	}
	go srv.Serve(l)
	return srv
}

// Stop ends every connection, as a crash of the node's daemon does.
func (n *Node) Stop() {
	n.mu.Lock()
	srv := n.srv
	n.mu.Unlock()
	srv.Close()
}

func (n *Node) proxy(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	n.mu.Lock()
	sb := n.sandboxes[id]
	running := sb.GetState() == string(sandbox.Running)
	n.mu.Unlock()
	if !running || n.Proc == nil {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"code":"sandbox_not_found","message":"sandbox not found"}`)
		return
	}
	r = r.Clone(r.Context())
	r.URL.Path = "/" + r.PathValue("path")
	r.URL.RawPath = ""
	r.Header.Set(SandboxHeader, id)
	n.Proc.ServeHTTP(w, r)
}

// Info implements the node API.
func (n *Node) Info(context.Context, *nodeapi.InfoRequest) (*nodeapi.InfoResponse, error) {
	var volumes *nodeapi.VolumeSupport
	if n.Volumes != nil {
		volumes = &nodeapi.VolumeSupport{Store: n.Volumes.Name, S3: n.Volumes.Buckets}
	}
	return &nodeapi.InfoResponse{Volumes: volumes, Node: n.Name, Cluster: n.Cluster, Version: "fake", RuntimeClasses: append([]string{"gvisor"}, n.Classes...), NetworkPolicy: n.NetworkPolicy, ObjectStore: n.objectStore()}, nil
}

// SetPools implements the node API: slots are there at once.
func (n *Node) SetPools(_ context.Context, req *nodeapi.SetPoolsRequest) (*nodeapi.SetPoolsResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.setPools++
	pools := map[string]*nodeapi.Pool{}
	for _, p := range req.GetPools() {
		pools[p.GetKey()] = p
	}
	for id, s := range n.free {
		if pools[s.GetPoolKey()] == nil {
			n.takeLocked(id)
		}
	}
	for key := range pools {
		if old := n.pools[key]; old == nil || !n.NoRefill {
			n.fillLocked(pools[key])
		}
	}
	n.pools = pools
	return &nodeapi.SetPoolsResponse{}, nil
}

func (n *Node) fillLocked(p *nodeapi.Pool) {
	for id, s := range n.free {
		if n.idle[p.GetKey()] <= max(p.GetMinIdle(), p.GetMaxIdle()) {
			break
		}
		if s.GetPoolKey() == p.GetKey() {
			n.takeLocked(id)
		}
	}
	for n.idle[p.GetKey()] < p.GetMinIdle() {
		n.addLocked(p.GetKey())
	}
	n.poolLocked(p.GetKey())
}

// addLocked adds a free slot to a pool.
func (n *Node) addLocked(key string) string {
	id, err := sandbox.NewID(n.Cluster)
	if err != nil {
		panic(err)
	}
	s := &nodeapi.Slot{Id: string(id), PoolKey: key, Generation: 1}
	n.free[s.GetId()] = s
	n.idle[key]++
	n.tellLocked(&nodeapi.Event{Event: &nodeapi.Event_SlotFree{SlotFree: s}})
	return s.GetId()
}

func (n *Node) poolLocked(key string) {
	st := &nodeapi.PoolStatus{Key: key, Idle: n.idle[key], Claimed: n.claimed[key]}
	n.tellLocked(&nodeapi.Event{Event: &nodeapi.Event_Pool{Pool: st}})
}

func (n *Node) takeLocked(id string) {
	n.dropLocked(id)
	n.tellLocked(&nodeapi.Event{Event: &nodeapi.Event_SlotTaken{SlotTaken: id}})
}

func (n *Node) dropLocked(id string) {
	if s := n.free[id]; s != nil {
		delete(n.free, id)
		n.idle[s.GetPoolKey()]--
	}
}

// tellLocked drops a watcher that does not keep up, as the node API says.
func (n *Node) tellLocked(e *nodeapi.Event) {
	for ch := range n.watchers {
		select {
		case ch <- e:
		default:
			delete(n.watchers, ch)
			close(ch)
		}
	}
}

// Watch implements the node API.
func (n *Node) Watch(ctx context.Context, req *nodeapi.WatchRequest, stream *connect.ServerStream[nodeapi.Event]) error {
	ch := make(chan *nodeapi.Event, 4096)
	n.mu.Lock()
	var first []*nodeapi.Event
	for _, s := range n.free {
		first = append(first, &nodeapi.Event{Event: &nodeapi.Event_SlotFree{SlotFree: s}})
	}
	for _, sb := range n.sandboxes {
		first = append(first, &nodeapi.Event{Event: &nodeapi.Event_Sandbox{Sandbox: sb}})
	}
	first = append(first, &nodeapi.Event{Event: &nodeapi.Event_Cordoned{Cordoned: n.cordoned}})
	n.watchers[ch] = true
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.watchers, ch)
	}()
	first = append(first, &nodeapi.Event{Event: &nodeapi.Event_Synced{Synced: &nodeapi.Synced{}}})
	if err := nodeapi.SendEvents(first, req, stream.Send); err != nil {
		return err
	}
	for {
		select {
		case e, ok := <-ch:
			if !ok {
				return connect.NewError(connect.CodeResourceExhausted, errors.New("too slow"))
			}
			if err := nodeapi.SendEvents(nodeapi.Gather(e, ch), req, stream.Send); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// Claim implements the node API.
func (n *Node) Claim(ctx context.Context, req *nodeapi.ClaimRequest) (*nodeapi.ClaimResponse, error) {
	if n.OnClaim != nil {
		if err := n.OnClaim(ctx, req); err != nil {
			return nil, err
		}
	}
	resp, err := n.claim(req)
	if err == nil {
		err = n.mountAll(ctx, "Claim", resp.GetSandbox().GetId(), req.GetMounts())
	}
	if err == nil && n.AfterClaim != nil {
		err = n.AfterClaim(ctx, req)
	}
	return resp, err
}

func (n *Node) claim(req *nodeapi.ClaimRequest) (*nodeapi.ClaimResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if id := n.claims[req.GetClaimId()]; id != "" && n.sandboxes[id] != nil {
		return &nodeapi.ClaimResponse{Sandbox: n.sandboxes[id], Cold: req.GetSlot() == ""}, nil
	}
	id := req.GetSlot()
	if s := req.GetSnapshot(); s != "" && n.snapshots[s] != req.GetTeam() {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such snapshot"))
	}
	if id == "" {
		cold, err := sandbox.NewID(n.Cluster)
		if err != nil {
			return nil, err
		}
		id = string(cold)
	} else {
		if n.free[id] == nil {
			return nil, connect.NewError(connect.CodeAborted, errors.New("the slot is not free"))
		}
		n.takeLocked(id)
	}
	sb := &nodeapi.Sandbox{
		Id: id, Generation: 1, PoolKey: req.GetPoolKey(), State: string(sandbox.Running), Team: req.GetTeam(), User: req.GetUser(),
		ClaimId: req.GetClaimId(), ClaimedUnixNano: time.Now().UnixNano(), MemoryBytes: req.GetMemoryBytes(), CpuMillis: req.GetCpuMillis(), Env: req.GetEnv(), Events: req.GetEvents(),
	}
	n.sandboxes[id] = sb
	n.putNetworkLocked(id, req.GetNetwork())
	n.begun[id] = req.GetSnapshot()
	n.claimed[sb.GetPoolKey()]++
	n.claims[req.GetClaimId()] = id
	n.tellLocked(&nodeapi.Event{Event: &nodeapi.Event_Sandbox{Sandbox: sb}})
	if p := n.pools[req.GetPoolKey()]; p != nil && !n.NoRefill {
		n.fillLocked(p)
	}
	return &nodeapi.ClaimResponse{Sandbox: sb, Cold: req.GetSlot() == ""}, nil
}

// Get implements the node API.
func (n *Node) Get(_ context.Context, req *nodeapi.GetRequest) (*nodeapi.Sandbox, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if sb := n.sandboxes[req.GetId()]; sb != nil {
		return sb, nil
	}
	return nil, connect.NewError(connect.CodeNotFound, errors.New("unknown"))
}

// Update implements the node API.
func (n *Node) Update(_ context.Context, req *nodeapi.UpdateRequest) (*nodeapi.Sandbox, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	sb := n.sandboxes[req.GetId()]
	if sb == nil {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("unknown"))
	}
	if g := req.GetGeneration(); g != 0 && g != sb.GetGeneration() {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("stale generation"))
	}
	n.putNetworkLocked(sb.GetId(), req.GetNetwork())
	next := &nodeapi.Sandbox{
		Id: sb.Id, Generation: sb.Generation, PoolKey: sb.PoolKey, State: sb.State, Team: sb.Team, User: sb.User,
		ClaimId: sb.ClaimId, ClaimedUnixNano: sb.ClaimedUnixNano, MemoryBytes: sb.MemoryBytes, CpuMillis: sb.CpuMillis, Env: sb.Env,
	}
	if req.GetReplaceEnv() {
		next.Env = req.GetEnv()
	}
	if req.GetMemoryBytes() > 0 {
		next.MemoryBytes, next.CpuMillis = req.GetMemoryBytes(), req.GetCpuMillis()
	}
	n.sandboxes[next.Id] = next
	n.tellLocked(&nodeapi.Event{Event: &nodeapi.Event_Sandbox{Sandbox: next}})
	return next, nil
}

// Delete implements the node API.
func (n *Node) Delete(ctx context.Context, req *nodeapi.DeleteRequest) (*nodeapi.DeleteResponse, error) {
	if n.OnDelete != nil {
		n.OnDelete(ctx)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if req.GetId() == "" {
		if id := n.claims[req.GetClaimId()]; id != "" {
			n.deletes[id] = req.GetReason()
			n.goneLocked(id)
		}
		return &nodeapi.DeleteResponse{}, nil
	}
	if sb := n.sandboxes[req.GetId()]; sb != nil && req.GetClaimId() != "" && sb.GetClaimId() != req.GetClaimId() {
		return &nodeapi.DeleteResponse{}, nil
	}
	if sb := n.sandboxes[req.GetId()]; sb != nil && req.GetGeneration() != 0 && req.GetGeneration() < sb.GetGeneration() {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("stale generation"))
	}
	n.deletes[req.GetId()] = req.GetReason()
	n.goneLocked(req.GetId())
	return &nodeapi.DeleteResponse{}, nil
}

func (n *Node) goneLocked(id string) {
	sb := n.sandboxes[id]
	if sb == nil {
		return
	}
	delete(n.sandboxes, id)
	n.Volumes.unmount(func(_, sandbox string) bool { return sandbox == id })
	if sb.GetState() == string(sandbox.Running) && n.claimed[sb.GetPoolKey()] > 0 {
		n.claimed[sb.GetPoolKey()]--
	}
	n.tellLocked(&nodeapi.Event{Event: &nodeapi.Event_SandboxGone{SandboxGone: id}})
}
