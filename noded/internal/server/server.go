// Package server is noded's face on the wire: the node API with Connect, and
// beside it the reverse proxy to each sandbox's procd.
//
// It translates and refuses; every decision is package lifecycle's or slots'.
// Who may connect is the listener's matter: a unix socket that only our user
// opens. The package keeps no state.
package server

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/nodeapi/nodeapiconnect"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/events"
	"s0.run/noded/internal/images"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/lifecycle"
	"s0.run/noded/internal/procevents"
	"s0.run/noded/internal/slots"
	"s0.run/noded/internal/stats"
)

// maxRequestBytes bounds one call: a claim has up to 1 MiB of environment, and
// SetPools names every pool of the node.
const maxRequestBytes = 8 << 20

// uncompressed: a call is small and stays on the machine or its network.
var uncompressed = connect.WithCompression("gzip", nil, nil)

// Config wires a Server. Every field is required.
type Config struct {
	Info      *nodeapi.InfoResponse
	Lifecycle *lifecycle.Manager
	Pools     *slots.Pools
	Stats     *stats.Sampler
	Images    Images
	Layers    Layers  // nil: there are none
	Archive   Archive // nil: there is no object store
	Volumes   Volumes // nil: there are none
	Hub       *events.Hub
	Events    *procevents.Relay
	Network   Network
	Stopping  <-chan struct{} // closed when the node stops: watchers never end by themselves
	Log       *slog.Logger
}

// Images knows images and their registries.
type Images interface {
	// Resolve answers the digest that a reference has now.
	Resolve(ctx context.Context, ref string) (digest string, err error)
	// Usage is what images take on the node.
	Usage(ctx context.Context) (*nodeapi.ImageUsage, error)
}

// Server implements the node API.
type Server struct {
	cfg     Config
	noFlows atomic.Bool // it was said that there is nobody to take flows from
}

var _ nodeapiconnect.NodeHandler = (*Server)(nil)

// New makes the handler of everything on the node's socket.
func New(cfg Config) http.Handler {
	s := &Server{cfg: cfg}
	_, api := nodeapiconnect.NewNodeHandler(s, connect.WithReadMaxBytes(maxRequestBytes), uncompressed)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Not through a ServeMux: it would answer odd paths with redirects.
		if strings.HasPrefix(r.URL.Path, nodeapi.ProcPrefix) {
			s.proxy(w, r)
			return
		}
		if strings.HasPrefix(r.URL.Path, nodeapi.LayerPrefix) {
			s.layer(w, r)
			return
		}
		if strings.HasPrefix(r.URL.Path, nodeapi.VolumePrefix) {
			s.volumeFiles(w, r)
			return
		}
		api.ServeHTTP(w, r)
	})
}

// SetPools implements the node API.
func (s *Server) SetPools(_ context.Context, req *nodeapi.SetPoolsRequest) (*nodeapi.SetPoolsResponse, error) {
	pools := make([]slots.Pool, 0, len(req.GetPools()))
	for _, p := range req.GetPools() {
		spec, _ := nodeapi.SpecFromWire(p.GetSpec()) // Set validates it, too, and refuses this pool alone
		pools = append(pools, slots.Pool{Key: p.GetKey(), Spec: spec, Min: int(p.GetMinIdle()), Max: int(p.GetMaxIdle()), Team: p.GetTeam()})
	}
	resp := &nodeapi.SetPoolsResponse{}
	for _, r := range s.cfg.Pools.Set(pools) {
		s.cfg.Log.Warn("pool refused", "pool", r.Key, "reason", r.Reason)
		resp.Refused = append(resp.Refused, &nodeapi.PoolRefusal{Key: r.Key, Reason: nodeapi.Text(r.Reason)})
	}
	return resp, nil
}

// Watch implements the node API.
func (s *Server) Watch(ctx context.Context, req *nodeapi.WatchRequest, stream *connect.ServerStream[nodeapi.Event]) error {
	initial, sub := s.cfg.Hub.Subscribe()
	defer sub.Cancel()
	initial = append(initial, &nodeapi.Event{Event: &nodeapi.Event_Synced{Synced: &nodeapi.Synced{}}})
	send := func(e *nodeapi.Event) error { return s.send(stream, e) }
	if err := nodeapi.SendEvents(initial, req, send); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.cfg.Stopping:
			return s.fail("Watch", errdefs.New(errdefs.Unavailable, "the node stops"))
		case e, ok := <-sub.C():
			if !ok {
				return s.fail("Watch", errdefs.New(errdefs.Exhausted, "the subscriber is too slow: start over"))
			}
			if err := nodeapi.SendEvents(nodeapi.Gather(e, sub.C()), req, send); err != nil {
				return err
			}
		}
	}
}

// send leaves out what can't be encoded: one bad word must not keep a watcher
// from all the rest, again and again. Of several, each is tried by itself.
func (s *Server) send(stream *connect.ServerStream[nodeapi.Event], e *nodeapi.Event) error {
	err := stream.Send(e)
	if err == nil {
		return nil
	}
	if _, invalid := proto.Marshal(e); invalid != nil && e.GetMany() == nil {
		s.cfg.Log.Error("an event can't be told", "event", e, "error", invalid)
		return nil
	}
	return err
}

// Claim implements the node API.
func (s *Server) Claim(ctx context.Context, req *nodeapi.ClaimRequest) (*nodeapi.ClaimResponse, error) {
	mounts, err := mountsFromWire(req.GetMounts())
	if err != nil {
		return nil, s.fail("Claim", err)
	}
	claim := lifecycle.ClaimRequest{
		ClaimID: req.GetClaimId(), PoolKey: req.GetPoolKey(), Team: req.GetTeam(), User: req.GetUser(),
		Env: req.GetEnv(), MemoryBytes: req.GetMemoryBytes(), CPUMillis: req.GetCpuMillis(), Mounts: mounts,
	}
	if e := req.GetEvents(); e != nil {
		claim.Events = &journal.Events{WatchDir: e.GetWatchDir()}
	}
	claim.Network = network(req.GetNetwork())
	if slot := req.GetSlot(); slot != "" {
		id, err := parseID(slot)
		if err != nil {
			return nil, s.fail("Claim", err)
		}
		claim.Slot = id
	} else {
		spec, err := nodeapi.SpecFromWire(req.GetSpec())
		if err != nil {
			return nil, s.fail("Claim", errdefs.New(errdefs.InvalidArgument, "claim: %v", err))
		}
		claim.Spec, claim.Snapshot = spec, req.GetSnapshot()
	}
	sb, cold, err := s.cfg.Lifecycle.Claim(images.ForTeam(ctx, claim.Team), claim)
	if err != nil {
		return nil, s.fail("Claim", err)
	}
	return &nodeapi.ClaimResponse{Sandbox: sb.Wire(), Cold: cold}, nil
}

// Get implements the node API.
func (s *Server) Get(_ context.Context, req *nodeapi.GetRequest) (*nodeapi.Sandbox, error) {
	id, err := parseID(req.GetId())
	if err != nil {
		return nil, s.fail("Get", err)
	}
	sb, err := s.cfg.Lifecycle.Get(id)
	if err != nil {
		return nil, s.fail("Get", err)
	}
	return sb.Wire(), nil
}

// Update implements the node API.
func (s *Server) Update(ctx context.Context, req *nodeapi.UpdateRequest) (*nodeapi.Sandbox, error) {
	id, err := parseID(req.GetId())
	if err != nil {
		return nil, s.fail("Update", err)
	}
	sb, err := s.cfg.Lifecycle.Update(ctx, lifecycle.UpdateRequest{
		ID: id, Generation: sandbox.Generation(req.GetGeneration()), ReplaceEnv: req.GetReplaceEnv(), Env: req.GetEnv(),
		MemoryBytes: req.GetMemoryBytes(), CPUMillis: req.GetCpuMillis(), Network: network(req.GetNetwork()),
	})
	if err != nil {
		return nil, s.fail("Update", err)
	}
	return sb.Wire(), nil
}

// network is what a message says of the network; nil: nothing.
func network(n *nodeapi.Network) *journal.Network {
	if n == nil {
		return nil
	}
	return &journal.Network{Policy: n.GetPolicy(), Credentials: nodeapi.CredentialsFromWire(n.GetCredentials())}
}

// Delete implements the node API.
func (s *Server) Delete(ctx context.Context, req *nodeapi.DeleteRequest) (*nodeapi.DeleteResponse, error) {
	if req.GetId() == "" && req.GetClaimId() != "" {
		if err := s.cfg.Lifecycle.DeleteClaim(ctx, req.GetClaimId(), req.GetReason()); err != nil {
			return nil, s.fail("Delete", err)
		}
		return &nodeapi.DeleteResponse{}, nil
	}
	id, err := parseID(req.GetId())
	if err != nil {
		return nil, s.fail("Delete", err)
	}
	gen := sandbox.Generation(req.GetGeneration())
	if req.GetClaimId() != "" {
		err = s.cfg.Lifecycle.DeleteOf(ctx, id, gen, req.GetClaimId(), req.GetReason())
	} else {
		err = s.cfg.Lifecycle.Delete(ctx, id, gen, req.GetReason())
	}
	if err != nil {
		return nil, s.fail("Delete", err)
	}
	return &nodeapi.DeleteResponse{}, nil
}

// TakeEvents implements the node API.
func (s *Server) TakeEvents(ctx context.Context, req *nodeapi.TakeEventsRequest) (*nodeapi.TakeEventsResponse, error) {
	batches := s.cfg.Events.Take(ctx, time.Duration(req.GetWaitMillis())*time.Millisecond)
	return &nodeapi.TakeEventsResponse{Batches: batches}, nil
}

// AckEvents implements the node API.
func (s *Server) AckEvents(_ context.Context, req *nodeapi.AckEventsRequest) (*nodeapi.AckEventsResponse, error) {
	s.cfg.Events.Ack(req.GetStored(), req.GetAgain())
	return &nodeapi.AckEventsResponse{}, nil
}

// ResolveImage implements the node API.
func (s *Server) ResolveImage(ctx context.Context, req *nodeapi.ResolveImageRequest) (*nodeapi.ResolveImageResponse, error) {
	digest, err := s.cfg.Images.Resolve(ctx, req.GetImage())
	if err != nil {
		return nil, s.fail("ResolveImage", err)
	}
	return &nodeapi.ResolveImageResponse{Digest: digest}, nil
}

// Info implements the node API.
func (s *Server) Info(ctx context.Context, _ *nodeapi.InfoRequest) (*nodeapi.InfoResponse, error) {
	info := proto.CloneOf(s.cfg.Info)
	info.Holding = uint32(s.cfg.Lifecycle.Holding())
	usage, err := s.cfg.Images.Usage(ctx)
	if err != nil { // the node is no worse for it
		s.cfg.Log.Warn("counting images", "error", err)
	}
	info.Images = usage
	info.Volumes = s.volumeSupport(ctx)
	if s.cfg.Archive != nil {
		info.ObjectStore = s.cfg.Archive.Status()
	}
	return info, nil
}

func parseID(s string) (sandbox.ID, error) {
	id, err := sandbox.ParseID(s)
	if err != nil {
		return "", errdefs.New(errdefs.InvalidArgument, "%v", err)
	}
	return id, nil
}
