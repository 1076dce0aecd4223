package slots

import (
	"time"

	"google.golang.org/protobuf/proto"

	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
)

// tell publishes the counters that have changed, of wanted pools and of those
// that still have sandboxes.
func (p *Pools) tell(byKey map[string]*counts) {
	now := map[string]*nodeapi.PoolStatus{}
	for key := range byKey {
		now[key] = p.status(key, byKey[key])
	}
	for key := range p.pools {
		if now[key] == nil {
			now[key] = p.status(key, &counts{})
		}
	}
	for key, s := range now {
		if !proto.Equal(s, p.told[key]) {
			p.publish(s)
		}
	}
	for key := range p.told {
		if now[key] == nil {
			p.retract(key)
		}
	}
	p.told = now
}

// turn notes whether the pool has its least.
func (w *pool) turn(idle int, now time.Time) {
	if ready := idle >= w.Min && w.lastError == nil; ready != w.ready {
		w.ready, w.turned = ready, now
	}
}

func (p *Pools) status(key string, c *counts) *nodeapi.PoolStatus {
	s := &nodeapi.PoolStatus{Key: key, Idle: uint32(len(c.idle)), Warming: uint32(c.warming), Claimed: uint32(c.taken)}
	if w := p.pools[key]; w != nil {
		s.Warming = uint32(max(c.warming, w.inFlight))
		s.Ready, s.SinceUnixNano = w.ready, w.turned.UnixNano()
		if s.LastError, s.Message = explain(w.lastError); w.lastError == nil && c.waits != "" {
			s.Message = nodeapi.Text(c.waits)
		}
		if w.getting {
			if at := p.cfg.Images.Progress(w.Spec.Image); at != "" {
				s.Message = nodeapi.Text(at)
			}
		}
	}
	return s
}

// explain says why a pool is short of slots: all of it for the operator, and what is
// meant for tenants for the template's owner.
func explain(err error) (all, message string) {
	if err == nil {
		return "", ""
	}
	if e := errdefs.From(err); e.Kind != errdefs.Internal {
		message = e.Message
	}
	return nodeapi.Text(err.Error()), nodeapi.Text(message)
}

func (p *Pools) publish(s *nodeapi.PoolStatus) {
	p.cfg.Hub.Set("pool/"+s.Key, &nodeapi.Event{Event: &nodeapi.Event_Pool{Pool: s}})
	p.slots.WithLabelValues(s.Key, "idle").Set(float64(s.Idle))
	p.slots.WithLabelValues(s.Key, "warming").Set(float64(s.Warming))
	p.slots.WithLabelValues(s.Key, "claimed").Set(float64(s.Claimed))
}

// retract forgets a pool that is neither wanted nor has anything left; its last
// status says so.
func (p *Pools) retract(key string) {
	p.publish(&nodeapi.PoolStatus{Key: key})
	p.cfg.Hub.Clear("pool/"+key, nil)
	for _, state := range []string{"idle", "warming", "claimed"} {
		p.slots.DeleteLabelValues(key, state)
	}
}
