// Package members is the cluster's list of nodes: it admits those that join, certifies
// them again in time, and tells package nodes who they are and where.
//
// The list is in the database, so that every API server follows it. A server has the
// cluster's authority and certifies itself. Who may be a member is decided by a token or
// by a present certificate alone; what a request says of its sender otherwise is not
// believed. The package owns the goroutine of [Keeper.Run], and in memory its own
// certificate.
package members

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"s0.run/api/internal/nodes"
	"s0.run/api/internal/placement"
	"s0.run/api/internal/ratelimit"
	"s0.run/api/internal/store"
	"s0.run/internal/nodecert"
)

const (
	// lookEvery is how often the list is read though nobody says that it changed, and
	// how exact the times are at which nodes were seen.
	lookEvery = 30 * time.Second
	// retryPause is how long after it could not be read it is tried again.
	retryPause = 2 * time.Second

	// A network may try so many tokens, a node ask for so many certificates.
	attemptRate, attemptBurst = 5, 20
)

// Config names what a Keeper works with. Zero durations mean the defaults.
type Config struct {
	Store     *store.Store
	Authority *nodecert.Authority
	Cluster   string
	Table     *placement.Table
	Log       *slog.Logger

	Drained func() // called when other nodes are drained than before; must not block

	Attempts          *ratelimit.Limiter // of each network and each node; nil: few
	NodeLife, APILife time.Duration      // of certificates
}

// Keeper is safe for concurrent use.
type Keeper struct {
	cfg    Config
	kicked chan struct{}

	mu   sync.Mutex
	mine *nodecert.Credentials
}

// New makes a Keeper.
func New(cfg Config) *Keeper {
	if cfg.NodeLife == 0 {
		cfg.NodeLife = nodecert.NodeLife
	}
	if cfg.APILife == 0 {
		cfg.APILife = nodecert.APILife
	}
	if cfg.Attempts == nil {
		cfg.Attempts = ratelimit.New(attemptRate, attemptBurst)
	}
	return &Keeper{kicked: make(chan struct{}, 1), cfg: cfg}
}

// Kick has the list read soon. It never blocks.
func (k *Keeper) Kick() {
	select {
	case k.kicked <- struct{}{}:
	default: // one that is waiting already covers this change
	}
}

// Run keeps a set of nodes in line with the list, until ctx ends.
func (k *Keeper) Run(ctx context.Context, set *nodes.Set) error {
	for {
		pause := lookEvery
		if err := k.pass(ctx, set); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			k.cfg.Log.Warn("could not keep the list of nodes", "err", err)
			pause = retryPause
		}
		select {
		case <-k.kicked:
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
	}
}

func (k *Keeper) pass(ctx context.Context, set *nodes.Set) error {
	removed, err := k.load(ctx, set)
	if err != nil {
		return err
	}
	return k.look(ctx, removed)
}

// Load tells a set of nodes who there are.
func (k *Keeper) Load(ctx context.Context, set *nodes.Set) error {
	_, err := k.load(ctx, set)
	return err
}

func (k *Keeper) load(ctx context.Context, set *nodes.Set) (removed []string, err error) {
	list, err := k.cfg.Store.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	local, allLocal := set.Local()
	var all []nodes.Member
	draining := map[string]bool{}
	for _, n := range list {
		if local[n.Name] {
			continue // it serves over its socket, whatever became of a member of its name
		}
		if n.RemovedAt != nil {
			removed = append(removed, n.Name)
			continue
		}
		all = append(all, nodes.Member{Name: n.Name, Membership: n.Membership, Endpoint: n.Endpoint})
		if n.DrainingAt != nil {
			draining[n.Name] = true
		}
	}
	if k.cfg.Table.Drain(draining) && k.cfg.Drained != nil {
		k.cfg.Drained()
	}
	set.Members(all)
	if !allLocal {
		removed = nil // it may be one of those that have not said their names: until then nothing is lost
	}
	return removed, nil
}

// look records which nodes answer, and what follows from those that never will again.
func (k *Keeper) look(ctx context.Context, removed []string) error {
	var seen []string
	for _, n := range k.cfg.Table.Synced() {
		seen = append(seen, n.Name)
	}
	slices.Sort(seen)
	if err := k.cfg.Store.NodesSeen(ctx, seen); err != nil {
		return err
	}
	return k.cfg.Store.SettleRemoved(ctx, removed)
}

// credentials are this server's own. They are made anew in the middle of their life.
func (k *Keeper) credentials() *nodecert.Credentials {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.mine != nil && time.Until(k.mine.Cert.Leaf.NotAfter) > k.cfg.APILife/2 {
		return k.mine
	}
	cert, err := k.cfg.Authority.IssueAPI(k.cfg.Cluster, k.cfg.APILife)
	if err != nil {
		k.cfg.Log.Error("could not certify this server to its nodes", "err", err)
		return k.mine
	}
	k.mine = &nodecert.Credentials{Cert: cert, Trust: k.cfg.Authority.Trust()}
	return k.mine
}

// Dial connects to a member. Whoever else answers there, another member included, is
// hung up on.
func (k *Keeper) Dial(ctx context.Context, m nodes.Member) (net.Conn, error) {
	have := k.credentials()
	if have == nil {
		return nil, nodecert.ErrNoCredentials
	}
	d := tls.Dialer{Config: nodecert.Client(have, nodecert.Identity{Cluster: k.cfg.Cluster, Node: m.Name, Membership: m.Membership})}
	conn, err := d.DialContext(ctx, "tcp", m.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("connecting to node %s at %s: %w", m.Name, m.Endpoint, err)
	}
	return conn, nil
}
