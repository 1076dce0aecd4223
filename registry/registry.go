// Package registry is the image registry of one machine: teams push to it, nodes
// pull from it.
//
// It speaks the OCI distribution protocol. Who may push and pull what is in the
// credential, which the API server signs and the registry checks without asking
// anybody; names below regauth.PublicPrefix are the operator's, and are filled
// from OCI layouts at start. It owns its directory. An upload that stands still is
// dropped; what no template names, nothing tags and nobody has wanted for a day is
// removed, and only after the API server has said twice, a day apart, that nothing
// uses it. It never reads what is in a layer.
package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"s0.run/internal/daemon"
	"s0.run/internal/regauth"
	"s0.run/registry/internal/store"
)

const (
	// headerTimeout bounds a request's head, idleTimeout a connection without one.
	headerTimeout, idleTimeout = 10 * time.Second, 2 * time.Minute
	// pieceTimeout is how long the next bytes of an upload or a download may take to
	// pass: a client that stands still gives its place back.
	pieceTimeout = time.Minute
	// metaTimeout bounds a manifest's way in.
	metaTimeout = 30 * time.Second
	stopGrace   = 5 * time.Second

	// uploadIdle is how long an upload may stand still between two requests.
	uploadIdle    = 30 * time.Minute
	sweepInterval = 10 * time.Minute
	// grace is how long what nothing needs any more stays. It is far more than a
	// push takes, and than the API server may be away between two of its words.
	grace = 24 * time.Hour
)

// Bounds of what is stored.
const (
	maxManifestBytes  = 4 << 20
	maxManifestParts  = 1000
	maxBlobBytes      = 10 << 30 // a layer, compressed
	maxUploadsPerTeam = 16
)

// perTeam bounds what one team has, looked at when an upload begins: those under way
// may go beyond it. What has no bytes to speak of has a file and its records.
var perTeam = store.Usage{Bytes: 100 << 30, Repositories: 1_000, Manifests: 5_000, Blobs: 50_000}

// Config is what a registry needs. Every field is required.
type Config struct {
	Dir string // its own
	Key regauth.Key
	// Room says why there is no room for more, if there is none.
	Room func() error
	Log  *slog.Logger
}

// Registry serves images. It is safe for concurrent use.
type Registry struct {
	cfg   Config
	store *store.Store
	now   func() time.Time
	most  store.Usage // perTeam, but in tests

	mu   sync.Mutex
	told time.Time // when the API server last said what is in use
}

// New opens the registry's directory. [Registry.Close] gives it back.
func New(cfg Config) (*Registry, error) {
	r := &Registry{cfg: cfg, now: time.Now, most: perTeam}
	s, err := store.Open(cfg.Dir, func() time.Time { return r.now() })
	if err != nil {
		return nil, err
	}
	r.store = s
	return r, nil
}

// Close ends what is under way.
func (r *Registry) Close() error { return r.store.Close() }

// Serve answers on a listener and sweeps, until ctx ends.
func (r *Registry) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler: r, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: 32 << 10,
		ErrorLog: slog.NewLogLogger(r.cfg.Log.Handler(), slog.LevelDebug), // clients that break off
	}
	ctx, cancel := context.WithCancel(ctx)
	var sweeping sync.WaitGroup
	sweeping.Go(func() { r.sweep(ctx) })
	err := daemon.Serve(ctx, srv, l, stopGrace)
	cancel()
	sweeping.Wait()
	return err
}

func (r *Registry) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := r.Collect(); err != nil {
			r.cfg.Log.Warn("sweeping the registry", "error", err)
		}
	}
}

// tellAge is how old the API server's word may be for manifests to be removed.
const tellAge = time.Hour

// Collect removes what nothing needs any more.
func (r *Registry) Collect() error {
	uploads := r.store.SweepUploads(uploadIdle)
	manifests := 0
	r.mu.Lock()
	known := !r.told.IsZero() && r.now().Sub(r.told) < tellAge
	r.mu.Unlock()
	var err error
	if known { // else nobody can say what is in use now
		manifests, err = r.store.Collect(grace)
	}
	files, serr := r.store.Sweep(grace)
	if uploads+manifests+files > 0 {
		r.cfg.Log.Info("registry swept", "uploads", uploads, "manifests", manifests, "files", files)
	}
	return errors.Join(err, serr)
}

// Usage is what the registry holds.
type Usage struct {
	Repositories int   `json:"repositories"`
	Images       int   `json:"images"`
	Bytes        int64 `json:"bytes"`
}

// Usage sums up what the registry holds.
func (r *Registry) Usage() (Usage, error) {
	u, err := r.store.Of("")
	return Usage{Repositories: u.Repositories, Images: u.Manifests, Bytes: u.Bytes}, err
}

// inUse takes the API server's word which images templates name.
func (r *Registry) inUse(list regauth.InUse) error {
	used := make([]store.Used, 0, len(list.Images))
	for _, u := range list.Images {
		used = append(used, store.Used{Repo: u.Repository, Tag: u.Tag, Digest: hexOf(u.Digest)})
	}
	if err := r.store.Mark(used); err != nil {
		return fmt.Errorf("marking what is in use: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(used) > 0 { // an empty list is no evidence
		r.told = r.now()
	}
	return nil
}
