package egress

import (
	"context"
	"time"

	"s0.run/internal/netdapi"
	"s0.run/internal/sandbox"
)

const (
	// holdTime is how long connections wait for the next netd: many times what one takes
	// to come on a machine that does much else.
	holdTime = 2 * time.Minute
	// redialHeld is how often a netd is tried that does not take connections.
	redialHeld = time.Second
	// maxHeld and maxHeldEach bound them on a node and of a sandbox: each is two
	// descriptors.
	maxHeld, maxHeldEach = 2048, 512
)

// hold exchanges connections with each netd until ctx ends: it gets back what the one
// before has left, when it knows what every sandbox may reach.
func (a *Agent) hold(ctx context.Context) {
	defer a.dropHeld()
	var end <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-end:
			a.dropHeld()
		case netd := <-a.told:
			conn := a.dialHeld(netd, end)
			if conn == nil {
				continue
			}
			a.exchange(ctx, conn)
			end = time.After(holdTime)
		}
	}
}

// dialHeld tries until a netd takes it, or ends. What is held waits no longer for that.
func (a *Agent) dialHeld(netd context.Context, end <-chan time.Time) *netdapi.HeldConn {
	for said := false; ; said = true {
		conn, err := a.client.DialHeld(netd)
		if err == nil {
			return conn
		}
		if !said && netd.Err() == nil {
			a.log.Warn("connections that netd has will not outlive it", "error", err)
		}
		select {
		case <-netd.Done():
			return nil
		case <-end:
			a.dropHeld()
		case <-time.After(redialHeld):
		}
	}
}

// exchange lasts as long as one netd does.
func (a *Agent) exchange(ctx context.Context, conn *netdapi.HeldConn) {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	defer conn.Close()
	for _, h := range a.takeHeld() {
		if err := conn.Send(h); err != nil {
			a.log.Warn("a connection was not handed on", "sandbox", h.Sandbox, "error", err)
			h.Cut()
			continue
		}
		h.Close()
	}
	for {
		h, err := conn.Receive()
		if err != nil {
			return
		}
		a.putHeld(h)
	}
}

// putHeld keeps a connection of a sandbox that is there, if there is room.
func (a *Agent) putHeld(h netdapi.Held) {
	a.mu.Lock()
	defer a.mu.Unlock()
	d := a.want[h.Sandbox]
	if d == nil || d.slot.Generation != h.Generation || len(a.held[h.Sandbox]) >= maxHeldEach {
		h.Cut()
		return
	}
	a.held[h.Sandbox] = append(a.held[h.Sandbox], h)
	a.heldCount++
	if a.heldCount > maxHeld {
		a.cutOne()
	}
}

// cutOne ends one of the team that has most: the newest of its sandbox that has most. It
// is called with mu held.
func (a *Agent) cutOne() {
	of := map[string]int{}
	for id, some := range a.held {
		of[a.owner(id)] += len(some)
	}
	var most sandbox.ID
	for id, some := range a.held {
		if d := of[a.owner(id)] - of[a.owner(most)]; d > 0 || d == 0 && len(some) > len(a.held[most]) {
			most = id
		}
	}
	some := a.held[most]
	some[len(some)-1].Cut()
	if a.held[most] = some[:len(some)-1]; len(some) == 1 {
		delete(a.held, most)
	}
	a.heldCount--
}

// owner is whose share of what is held a sandbox has: its team's, if that is known. It is
// called with mu held.
func (a *Agent) owner(id sandbox.ID) string {
	if d := a.want[id]; d != nil && d.policy != nil && d.policy.Team != "" {
		return "team " + d.policy.Team
	}
	return "sandbox " + string(id)
}

// takeHeld empties what is held.
func (a *Agent) takeHeld() (all []netdapi.Held) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, some := range a.held {
		all = append(all, some...)
	}
	a.held, a.heldCount = map[sandbox.ID][]netdapi.Held{}, 0
	return all
}

// dropHeld ends all of it.
func (a *Agent) dropHeld() {
	for _, h := range a.takeHeld() {
		h.Cut()
	}
}

// cutHeld ends what is held of a sandbox. It is called with mu held.
func (a *Agent) cutHeld(id sandbox.ID) {
	for _, h := range a.held[id] {
		h.Cut()
	}
	a.heldCount -= len(a.held[id])
	delete(a.held, id)
}
