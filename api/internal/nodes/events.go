package nodes

import (
	"time"

	"s0.run/api/internal/placement"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
)

// watcher is one stream of a node.
type watcher struct {
	set      *Set
	conn     *conn
	node     placement.Node
	snapshot *placement.Snapshot // until it is whole
	synced   bool
}

// see takes one event: what a node begins with counts once all of it is there.
func (w *watcher) see(e *nodeapi.Event) {
	switch {
	case w.synced:
		w.set.apply(w.node.Name, e)
	case e.GetSynced() != nil:
		w.synced = true
		w.set.cfg.Table.Sync(w.node, w.snapshot)
		w.set.cfg.Log.Info("synced with a node", "node", w.node.Name, "slots", len(w.snapshot.Slots), "sandboxes", len(w.snapshot.Sandboxes))
		w.snapshot = nil
		w.set.cfg.OnSync(w.node.Name)
		w.conn.settle()
	default:
		collect(w.snapshot, w.node.Name, e)
	}
}

// end says that the stream has ended.
func (w *watcher) end() {
	if w.synced {
		w.set.cfg.Table.Lost(w.node.Name)
	}
}

// collect adds an event of the initial state to a snapshot.
func collect(s *placement.Snapshot, node string, e *nodeapi.Event) {
	switch ev := e.GetEvent().(type) {
	case *nodeapi.Event_SlotFree:
		slot := slotFromWire(node, ev.SlotFree)
		s.Slots[slot.ID] = slot
	case *nodeapi.Event_SlotTaken:
		delete(s.Slots, sandbox.ID(ev.SlotTaken))
	case *nodeapi.Event_Sandbox:
		if ofKubernetes(ev.Sandbox) {
			return
		}
		sb := sandboxFromWire(node, ev.Sandbox)
		s.Sandboxes[sb.ID] = sb
	case *nodeapi.Event_SandboxGone:
		delete(s.Sandboxes, sandbox.ID(ev.SandboxGone))
	case *nodeapi.Event_Pool:
		p := poolFromWire(ev.Pool)
		s.Pools[p.Key] = p
	case *nodeapi.Event_Cordoned:
		s.Cordoned = &ev.Cordoned
	}
}

// apply changes the table by one event. Unknown events are of a newer node.
func (s *Set) apply(node string, e *nodeapi.Event) {
	t := s.cfg.Table
	switch ev := e.GetEvent().(type) {
	case *nodeapi.Event_SlotFree:
		t.SlotFree(slotFromWire(node, ev.SlotFree))
	case *nodeapi.Event_SlotTaken:
		t.SlotTaken(node, sandbox.ID(ev.SlotTaken))
	case *nodeapi.Event_Sandbox:
		if ofKubernetes(ev.Sandbox) {
			return
		}
		sb := sandboxFromWire(node, ev.Sandbox)
		was, _, _ := t.Lookup(sb.ID)
		t.SandboxChanged(sb)
		if sb.Stored != was.Stored && s.cfg.OnStored != nil {
			s.cfg.OnStored(node, sb.ID)
		}
		if sb.State == sandbox.Failed {
			s.cfg.OnEnd(node, sb.ID)
		}
	case *nodeapi.Event_SandboxGone:
		id := sandbox.ID(ev.SandboxGone)
		t.SandboxGone(node, id)
		s.cfg.OnEnd(node, id)
	case *nodeapi.Event_Pool:
		t.PoolChanged(node, poolFromWire(ev.Pool))
	case *nodeapi.Event_Cordoned:
		if t.Cordon(node, ev.Cordoned) && s.cfg.OnCordon != nil {
			s.cfg.OnCordon()
		}
	}
}

// ofKubernetes reports whether a sandbox was claimed for a pod: it has no row and needs
// none, and nobody here has a say in it.
func ofKubernetes(w *nodeapi.Sandbox) bool {
	_, ok := nodeapi.ClaimedPod(w.GetClaimId())
	return ok
}

func slotFromWire(node string, w *nodeapi.Slot) placement.Slot {
	return placement.Slot{Node: node, ID: sandbox.ID(w.GetId()), Generation: sandbox.Generation(w.GetGeneration()), PoolKey: w.GetPoolKey()}
}

func sandboxFromWire(node string, w *nodeapi.Sandbox) placement.Sandbox {
	return placement.Sandbox{
		Node: node, ID: sandbox.ID(w.GetId()), Generation: sandbox.Generation(w.GetGeneration()), PoolKey: w.GetPoolKey(),
		State: sandbox.State(w.GetState()), Reason: w.GetReason(), Team: w.GetTeam(), ClaimID: w.GetClaimId(),
		Stored: sandbox.Generation(w.GetStoredGeneration()),
	}
}

func poolFromWire(w *nodeapi.PoolStatus) placement.Pool {
	p := placement.Pool{
		Key: w.GetKey(), Warming: w.GetWarming(), LastError: w.GetLastError(), Message: w.GetMessage(), Ready: w.GetReady(), At: time.Now(),
	}
	if since := w.GetSinceUnixNano(); since != 0 {
		p.Since = time.Unix(0, since).UTC()
	}
	return p
}
