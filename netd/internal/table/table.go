// Package table is what netd knows of the node's sandboxes: where each is, and what
// it may reach.
//
// noded tells it, in any order and again after every restart of either; the table
// compares and changes the kernel only where something differs. It is the way from an
// address or an event to a sandbox, for the proxy, the resolver and the audit. It
// keeps nothing that outlives the process: what does is in the kernel.
package table

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/netdapi"
	"s0.run/internal/policy"
	"s0.run/internal/sandbox"
	"s0.run/netd/internal/bpf"
	"s0.run/netd/internal/guest"
)

// Kernel is package bpf's face, where the contracts are.
type Kernel interface {
	Attach(bpf.Place) (serial uint32, err error)
	Detach(serial uint32) error
	SetPolicy(serial uint32, c *policy.Compiled, limits bpf.Limits) error
	SetAlways([]netip.Prefix) error
	Learn(bpf.Learnt) error
	Counters(serial uint32) (bpf.Counters, error)
	At(ifindex int) (bpf.Place, bool)
	Links() []bpf.Place
}

// Plane is package dataplane's.
type Plane interface {
	Attach(id sandbox.ID, ifindex int) error
	Links() (map[int]sandbox.ID, error)
	Forget(addrs ...netip.Addr) error
}

// A Watcher hears of what proxied connections may have to end for. It is called
// after the kernel judges by what is new, and must not block.
type Watcher interface {
	// Changing: the sandbox has another policy as soon as this returns. Until then nobody
	// can look it up, so that nobody has the policy without what came with it: it must not
	// ask the table.
	Changing(guest.Guest, netdapi.Policy)
	// Changed: everybody who looks the sandbox up has that.
	Changed(guest.Guest)
	// Ended: it is gone, or its generation is.
	Ended(guest.Guest)
}

// Config wires a Table. Every field is required.
type Config struct {
	Kernel  Kernel
	Plane   Plane
	Watcher Watcher
	Log     *slog.Logger
}

// Table is safe for concurrent use.
type Table struct {
	cfg        Config
	attaching  chan struct{} // holds a value while a sandbox gets its place
	forgetting sync.Mutex    // held while the kernel is made to

	mu        sync.RWMutex
	fixed     policy.Fixed
	byID      map[sandbox.ID]*entry
	byAddress map[netip.Addr]*entry
	bySerial  map[uint32]*entry
	left      []netip.Addr      // of those that ended, whose connections the kernel remembers
	ended     map[uint32]*entry // by serial: what is still to be told of them
	endedOld  map[uint32]*entry // the same, of those that ended earlier
}

// entry is one generation of a sandbox. Its turn is held while the kernel is told
// something of it, which takes no waiting for anybody.
type entry struct {
	slot   netdapi.Slot
	serial uint32
	turn   sync.Mutex

	// Table.mu guards what follows.
	policy netdapi.Policy // its generation is 0 while there is none
	digest string
	guest  guest.Guest
	gone   bool
}

// New makes a table that knows nobody.
func New(cfg Config) *Table {
	return &Table{cfg: cfg, attaching: make(chan struct{}, 1), byID: map[sandbox.ID]*entry{}, byAddress: map[netip.Addr]*entry{}, bySerial: map[uint32]*entry{}, ended: map[uint32]*entry{}}
}

// owner names a sandbox's generation in the kernel.
func owner(s netdapi.Slot) uint64 {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%d", s.ID, s.Generation))
	return binary.NativeEndian.Uint64(sum[:])
}

// Attach: see [netdapi.Client.Attach]. Who says it again, for he waits no longer, finds what
// became of the first.
func (t *Table) Attach(ctx context.Context, s netdapi.Slot) error {
	select {
	case t.attaching <- struct{}{}:
		defer func() { <-t.attaching }()
	case <-ctx.Done():
		return ctx.Err()
	}
	return t.attach(s)
}

// attach is called by one at a time.
func (t *Table) attach(s netdapi.Slot) error {
	old := t.find(s.ID)
	if old != nil && old.slot.Generation > s.Generation {
		return stale(s.ID, old.slot.Generation)
	}
	if old != nil && old.slot != s {
		if err := t.end(old); err != nil {
			return err
		}
		old = nil
	}
	mac, err := net.ParseMAC(s.MAC)
	if err != nil {
		return err
	}
	if old == nil {
		if err := t.makePlace(s); err != nil {
			return err
		}
	}
	serial, err := t.cfg.Kernel.Attach(bpf.Place{Ifindex: s.Ifindex, Owner: owner(s), IPv4: s.IPv4, IPv6: s.IPv6, MAC: mac})
	if err != nil {
		return fmt.Errorf("attaching %s: %w", s.ID, err)
	}
	if old != nil && old.serial != serial { // the kernel did not have it any more, nor its policy
		if err := t.end(old); err != nil {
			return err
		}
		old = nil
	}
	// Packets are judged only from here on.
	if err := t.cfg.Plane.Attach(s.ID, s.Ifindex); err != nil {
		err = fmt.Errorf("attaching %s: %w", s.ID, err)
		if old == nil { // what is known stays as it is
			err = errors.Join(err, t.cfg.Kernel.Detach(serial))
		}
		return err
	}
	if old == nil {
		t.add(&entry{slot: s, serial: serial, guest: guest.Guest{ID: s.ID, Gen: s.Generation}})
	}
	return nil
}

// makePlace ends who had a newcomer's place before, if nobody has told so, and has his
// connections forgotten at once.
func (t *Table) makePlace(s netdapi.Slot) error {
	t.mu.RLock()
	before := map[*entry]bool{t.byAddress[s.IPv4]: true, t.byAddress[s.IPv6]: true}
	t.mu.RUnlock()
	delete(before, nil)
	for e := range before {
		if err := t.end(e); err != nil {
			return err
		}
	}
	// Of another process's time the kernel alone knows.
	if place, ok := t.cfg.Kernel.At(s.Ifindex); ok && place.Owner != owner(s) {
		t.mu.Lock()
		t.left = append(t.left, place.IPv4, place.IPv6)
		t.mu.Unlock()
		if err := t.cfg.Kernel.Detach(place.Serial); err != nil {
			return err
		}
	}
	t.mu.RLock()
	owed := slices.Contains(t.left, s.IPv4) || slices.Contains(t.left, s.IPv6)
	t.mu.RUnlock()
	if owed {
		return t.forget()
	}
	return nil
}

func (t *Table) find(id sandbox.ID) *entry {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byID[id]
}

func (t *Table) add(e *entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byID[e.slot.ID], t.bySerial[e.serial] = e, e
	t.byAddress[e.slot.IPv4], t.byAddress[e.slot.IPv6] = e, e
}

func stale(id sandbox.ID, known sandbox.Generation) error {
	return errdefs.New(errdefs.Conflict, "sandbox %s has generation %d", id, known)
}

// SetPolicy: see [netdapi.Client.SetPolicy].
func (t *Table) SetPolicy(_ context.Context, p netdapi.Policy) error {
	e := t.find(p.ID)
	if e == nil {
		return errdefs.New(errdefs.NotFound, "sandbox %s is not attached", p.ID)
	}
	if e.slot.Generation != p.Generation {
		return stale(p.ID, e.slot.Generation)
	}
	digest := p.Digest()
	e.turn.Lock()
	defer e.turn.Unlock()
	if t.has(e, digest) {
		return nil
	}
	if err := t.apply(e, p, digest); err != nil {
		return err
	}
	t.cfg.Watcher.Changed(t.guestOf(e))
	return nil
}

func (t *Table) has(e *entry, digest string) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return e.digest == digest
}

func (t *Table) guestOf(e *entry) guest.Guest {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return e.guest
}

// apply compiles a policy and puts it into force. The caller has the entry's turn.
func (t *Table) apply(e *entry, p netdapi.Policy, digest string) error {
	t.mu.RLock()
	fixed, gone := t.fixed, e.gone
	t.mu.RUnlock()
	if gone {
		return errdefs.New(errdefs.NotFound, "sandbox %s is not attached", p.ID)
	}
	compiled, err := compile(p, fixed)
	if err != nil {
		return err
	}
	limits := bpf.Limits{Team: p.Team, Own: bandwidth(p.SandboxBandwidth), Shared: bandwidth(p.TeamBandwidth)}
	if err := t.cfg.Kernel.SetPolicy(e.serial, compiled, limits); err != nil {
		return fmt.Errorf("policy of %s: %w", p.ID, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	e.policy, e.digest = p, digest
	e.guest.Team, e.guest.Policy = p.Team, compiled
	t.cfg.Watcher.Changing(e.guest, p)
	return nil
}

func bandwidth(b netdapi.Bandwidth) bpf.Bandwidth {
	return bpf.Bandwidth{Sent: bpf.Rate(b.Egress), Received: bpf.Rate(b.Ingress)}
}

func compile(p netdapi.Policy, fixed policy.Fixed) (*policy.Compiled, error) {
	parsed := policy.Default()
	var err error
	if len(p.Policy) > 0 {
		if parsed, err = policy.Parse(p.Policy); err == nil {
			err = parsed.Validate()
		}
	}
	if err != nil {
		return nil, errdefs.New(errdefs.InvalidArgument, "network policy: %v", err)
	}
	c, err := policy.Compile(parsed, fixed)
	if errors.Is(err, policy.ErrTooComplex) {
		return nil, errdefs.New(errdefs.InvalidArgument, "network policy: %v", err)
	}
	return c, err
}

// Detach: see [netdapi.Client.Detach].
func (t *Table) Detach(_ context.Context, id sandbox.ID, gen sandbox.Generation) error {
	e := t.find(id)
	if e == nil || gen != 0 && e.slot.Generation != gen {
		return nil
	}
	return t.end(e)
}

// end takes a sandbox out, its packets first.
func (t *Table) end(e *entry) error {
	e.turn.Lock()
	defer e.turn.Unlock()
	if err := t.cfg.Kernel.Detach(e.serial); err != nil {
		return fmt.Errorf("detaching %s: %w", e.slot.ID, err)
	}
	t.mu.Lock()
	gone := e.gone
	e.gone = true
	if t.byID[e.slot.ID] == e {
		delete(t.byID, e.slot.ID)
	}
	delete(t.bySerial, e.serial)
	for _, a := range []netip.Addr{e.slot.IPv4, e.slot.IPv6} {
		if t.byAddress[a] == e {
			delete(t.byAddress, a)
		}
	}
	g := e.guest
	if !gone {
		t.left = append(t.left, e.slot.IPv4, e.slot.IPv6)
		t.ended[e.serial] = e
	}
	t.mu.Unlock()
	if !gone {
		t.cfg.Watcher.Ended(g)
	}
	return nil
}

// Forget has the kernel forget the connections of those that have ended. All that is
// known is looked through for it, so it is done for many at a time, well within the
// minutes for which no address is given out again. Who those were is forgotten the
// next time.
func (t *Table) Forget() error {
	t.mu.Lock()
	t.ended, t.endedOld = map[uint32]*entry{}, t.ended
	t.mu.Unlock()
	return t.forget()
}

// forget is also for an address that is given out again, which waits for it.
func (t *Table) forget() error {
	t.forgetting.Lock()
	defer t.forgetting.Unlock()
	t.mu.RLock()
	left := t.left[:len(t.left):len(t.left)]
	t.mu.RUnlock()
	if len(left) == 0 {
		return nil
	}
	if err := t.cfg.Plane.Forget(left...); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.left = slices.Clone(t.left[len(left):])
	return nil
}

// List: see [netdapi.Client.List].
func (t *Table) List() []netdapi.Known {
	t.mu.RLock()
	defer t.mu.RUnlock()
	all := make([]netdapi.Known, 0, len(t.byID))
	for _, e := range t.byID {
		all = append(all, netdapi.Known{Slot: e.slot, Team: e.policy.Team, Digest: e.digest})
	}
	return all
}

// Has reports whether a sandbox is attached.
func (t *Table) Has(id sandbox.ID) bool { return t.find(id) != nil }

// Lookup finds the sandbox that has an address and a policy. It is a [guest.Lookup].
func (t *Table) Lookup(a netip.Addr) (guest.Guest, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	e := t.byAddress[a.Unmap()]
	if e == nil {
		return guest.Guest{}, false
	}
	return e.guest, e.guest.Policy != nil
}

// Known finds the sandbox of a serial, with its addresses, also for a while after its
// end.
func (t *Table) Known(serial uint32) (guest.Guest, netdapi.Slot, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	e := cmp.Or(t.bySerial[serial], t.ended[serial], t.endedOld[serial])
	if e == nil {
		return guest.Guest{}, netdapi.Slot{}, false
	}
	return e.guest, e.slot, true
}

// Learn opens an address to a sandbox, for the slots of its policy that a name is in.
func (t *Table) Learn(g guest.Guest, a netip.Addr, slots uint64, ttl time.Duration) {
	e := t.find(g.ID)
	if e == nil || e.slot.Generation != g.Gen || slots == 0 {
		return
	}
	if err := t.cfg.Kernel.Learn(bpf.Learnt{Serial: e.serial, Naming: g.Policy.Naming(), IP: a, Slots: slots, TTL: ttl}); err != nil {
		t.cfg.Log.Warn("an address was not learnt", "guest", g, "error", err)
	}
}

// SetFixed says what the operator decides for all sandboxes, and has every policy
// compiled again.
func (t *Table) SetFixed(fixed policy.Fixed) error {
	if err := t.cfg.Kernel.SetAlways(fixed.Always()); err != nil {
		return fmt.Errorf("what is always denied: %w", err)
	}
	t.mu.Lock()
	t.fixed = fixed
	all := make([]*entry, 0, len(t.byID))
	for _, e := range t.byID {
		all = append(all, e)
	}
	t.mu.Unlock()
	var errs []error
	for _, e := range all {
		errs = append(errs, t.again(e))
	}
	return errors.Join(errs...)
}

// Forbidden reports whether no policy opens an address.
func (t *Table) Forbidden(a netip.Addr) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, p := range t.fixed.Always() {
		if p.Contains(a.Unmap()) {
			return true
		}
	}
	return false
}

func (t *Table) again(e *entry) error {
	e.turn.Lock()
	defer e.turn.Unlock()
	t.mu.RLock()
	p, digest, gone := e.policy, e.digest, e.gone
	t.mu.RUnlock()
	if digest == "" || gone {
		return nil
	}
	if err := t.apply(e, p, digest); err != nil {
		return err
	}
	t.cfg.Watcher.Changed(t.guestOf(e))
	return nil
}
