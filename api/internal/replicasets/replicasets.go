// Package replicasets keeps templates' pools where Kubernetes is the engine: as one
// ReplicaSet for each, whose pods stand for slots.
//
// What is there is compared with what shall be after each kick and once in a while, and
// what Kubernetes is told is whole, so that a lost call is made good by the next. The
// ReplicaSet of a replaced spec goes when the one that took its place is ready. The
// package owns one goroutine while [Keeper.Run] runs; no claim ever waits for it, nor
// for Kubernetes.
package replicasets

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"s0.run/api/internal/templates"
	"s0.run/internal/nodeapi"
)

const (
	callTimeout = 10 * time.Second
	retryPause  = 2 * time.Second
	// lookInterval finds what others changed.
	lookInterval = 30 * time.Second
	// rollback is how long a replaced ReplicaSet stays at most while its successor is not ready.
	rollback = 10 * time.Minute
)

// Config names what to keep and where. The catalogue must have been loaded before Run:
// an empty one removes every ReplicaSet.
type Config struct {
	Catalog    *templates.Catalog
	Kubeconfig string // empty: the service account of the pod that this runs in
	Namespace  string // that holds nothing but pools
	Cluster    string // tells ours from those of another API server
	Log        *slog.Logger
}

// Keeper keeps ReplicaSets.
type Keeper struct {
	cfg  Config
	kube *kube
	kick chan struct{}
}

// New makes a Keeper; Kubernetes is not asked for anything yet.
func New(cfg Config) (*Keeper, error) {
	k, err := connect(cfg.Kubeconfig)
	if err != nil {
		return nil, err
	}
	return &Keeper{cfg: cfg, kube: k, kick: make(chan struct{}, 1)}, nil
}

// Kick says that templates changed. It never blocks.
func (k *Keeper) Kick() {
	select {
	case k.kick <- struct{}{}:
	default: // one that is waiting already covers this change
	}
}

// Run keeps the ReplicaSets until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	pause := time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.kick:
		case <-time.After(pause):
		}
		if pause = lookInterval; !k.keep(ctx, k.cfg.Catalog.All(), time.Now()) {
			pause = retryPause
		}
	}
}

// keep makes what is there what shall be, as far as that goes now.
func (k *Keeper) keep(ctx context.Context, all []*templates.Template, now time.Time) bool {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var have list
	if err := k.kube.call(ctx, http.MethodGet, k.path("")+"?labelSelector="+url.QueryEscape(labelCluster+"="+k.cfg.Cluster), nil, &have); err != nil {
		k.cfg.Log.Warn("could not list pools' ReplicaSets", "error", err)
		return false
	}
	wanted, ok := k.apply(ctx, all)
	if !ok { // what could not be applied may be what a name is of
		return false
	}
	for _, rs := range outdated(have.Items, wanted, now) {
		if err := k.remove(ctx, rs); err != nil {
			k.cfg.Log.Warn("could not remove a pool's ReplicaSet", "name", rs.Metadata.Name, "error", err)
			ok = false
		}
	}
	return ok
}

// apply tells Kubernetes of the ReplicaSets that shall be, and answers how they are.
func (k *Keeper) apply(ctx context.Context, all []*templates.Template) (wanted map[string]*replicaSet, ok bool) {
	wanted, ok = map[string]*replicaSet{}, true
	for _, t := range all {
		if t.MaxIdle == 0 {
			continue
		}
		rs, err := k.replicaSet(t)
		if err == nil && t.Unavailable == nil { // else it stays as it is
			err = k.kube.call(ctx, http.MethodPatch, k.path(rs.Metadata.Name)+"?fieldManager=s0-api&force=true", rs, rs)
		}
		if err != nil {
			k.cfg.Log.Warn("could not keep a pool's ReplicaSet", "pool", t.PoolKey, "error", err)
			ok = false
			continue
		}
		wanted[rs.Metadata.Name] = rs
	}
	return wanted, ok
}

// outdated are the ReplicaSets that no template wants any more, but for those whose
// successor is not ready yet.
func outdated(have []*replicaSet, wanted map[string]*replicaSet, now time.Time) (all []*replicaSet) {
	for _, rs := range have {
		if wanted[rs.Metadata.Name] != nil {
			continue
		}
		waits := false
		for _, next := range wanted {
			waits = waits || rs.family() != "" && next.family() == rs.family() && !next.ready() && now.Sub(next.Metadata.CreationTimestamp) < rollback
		}
		if !waits {
			all = append(all, rs)
		}
	}
	return all
}

func (rs *replicaSet) family() string {
	return nodeapi.PoolFamily(rs.Spec.Template.Metadata.Annotations[annotationPool])
}

func (rs *replicaSet) ready() bool { return rs.Status.ReadyReplicas >= rs.Spec.Replicas }

func (k *Keeper) remove(ctx context.Context, rs *replicaSet) error {
	k.cfg.Log.Info("removing a pool's ReplicaSet", "name", rs.Metadata.Name)
	return k.kube.call(ctx, http.MethodDelete, k.path(rs.Metadata.Name), map[string]any{
		"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background", "preconditions": map[string]string{"uid": rs.Metadata.UID},
	}, nil)
}

func (k *Keeper) path(name string) string {
	path := "/apis/apps/v1/namespaces/" + k.cfg.Namespace + "/replicasets"
	if name != "" {
		path += "/" + name
	}
	return path
}
