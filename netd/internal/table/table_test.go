package table

import (
	"errors"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/netdapi"
	"s0.run/internal/policy"
	"s0.run/internal/sandbox"
	"s0.run/netd/internal/bpf"
	"s0.run/netd/internal/guest"
)

// machine is kernel, links and watcher in one.
type machine struct {
	serial   uint32
	places   map[int]bpf.Place
	policies map[int]*policy.Compiled
	joined   map[int]sandbox.ID
	links    map[int]sandbox.ID
	forgot   []netip.Addr
	learned  map[netip.Addr]uint64
	always   []netip.Prefix
	changing atomic.Pointer[policy.Compiled]
	changed  []guest.Guest
	ended    []guest.Guest
	refuse   error
	away     error        // the data plane's
	joining  func() error // by the data plane; nil: nothing
}

func newMachine() *machine {
	return &machine{places: map[int]bpf.Place{}, policies: map[int]*policy.Compiled{}, joined: map[int]sandbox.ID{}, links: map[int]sandbox.ID{}, learned: map[netip.Addr]uint64{}}
}

type (
	kernel  struct{ *machine }
	plane   struct{ *machine }
	watcher struct{ *machine }
)

func (m kernel) Attach(p bpf.Place) (uint32, error) {
	if old, ok := m.places[p.Ifindex]; ok && old.Owner == p.Owner {
		return old.Serial, nil
	}
	m.serial++
	p.Serial = m.serial
	m.places[p.Ifindex] = p
	return m.serial, m.refuse
}

func (m kernel) At(ifindex int) (bpf.Place, bool) {
	p, ok := m.places[ifindex]
	return p, ok
}

func (m kernel) link(serial uint32) int {
	for i, p := range m.places {
		if p.Serial == serial {
			return i
		}
	}
	return 0
}

func (m kernel) Detach(serial uint32) error {
	ifindex := m.link(serial)
	delete(m.places, ifindex)
	delete(m.policies, ifindex)
	return nil
}

func (m kernel) SetPolicy(serial uint32, c *policy.Compiled, _ bpf.Limits) error {
	if m.refuse == nil {
		m.policies[m.link(serial)] = c
	}
	return m.refuse
}

func (m kernel) SetAlways(p []netip.Prefix) error { m.always = p; return nil }

func (m kernel) Learn(l bpf.Learnt) error {
	m.learned[l.IP] = l.Slots
	return nil
}
func (m kernel) Counters(uint32) (bpf.Counters, error) { return bpf.Counters{Denied: 3}, nil }

func (m kernel) Links() (all []bpf.Place) {
	for _, p := range m.places {
		all = append(all, p)
	}
	return all
}

func (m plane) Attach(id sandbox.ID, ifindex int) error {
	if m.joining != nil {
		if err := m.joining(); err != nil {
			return err
		}
	}
	if m.away == nil {
		m.joined[ifindex] = id
	}
	return m.away
}
func (m plane) Links() (map[int]sandbox.ID, error) { return m.links, nil }
func (m plane) Forget(addrs ...netip.Addr) error {
	m.forgot = append(m.forgot, addrs...)
	return nil
}
func (m watcher) Changing(g guest.Guest, _ netdapi.Policy) { m.changing.Store(g.Policy) }
func (m watcher) Changed(g guest.Guest)                    { m.changed = append(m.changed, g) }
func (m watcher) Ended(g guest.Guest)                      { m.ended = append(m.ended, g) }

func newTable() (*Table, *machine) {
	m := newMachine()
	return New(Config{Kernel: kernel{m}, Plane: plane{m}, Watcher: watcher{m}, Log: slog.New(slog.DiscardHandler)}), m
}

func slot(t *testing.T, index int) netdapi.Slot {
	t.Helper()
	id, err := sandbox.NewID("t")
	if err != nil {
		t.Fatal(err)
	}
	return netdapi.Slot{
		ID: id, Generation: 1, Ifindex: index, MAC: "02:73:0a:4d:00:02",
		IPv4: netip.AddrFrom4([4]byte{10, 77, 0, byte(index)}), IPv6: netip.AddrFrom16([16]byte{0xfd, 0x77, 15: byte(index)}),
	}
}

func kindOf(err error) errdefs.Kind {
	var typed *errdefs.Error
	errors.As(err, &typed)
	if typed == nil {
		return errdefs.Internal
	}
	return typed.Kind
}

// A statement that is repeated while it is carried out, for whoever made it waits no longer,
// takes nothing back of what was said since.
func TestAttachedTwiceAtOnce(t *testing.T) {
	t.Parallel()
	for _, failed := range []error{nil, errors.New("the link is busy")} {
		synctest.Test(t, func(t *testing.T) {
			tab, m := newTable()
			s := slot(t, 5)
			goOn, first := make(chan struct{}), true
			m.joining = func() error {
				if !first {
					return nil
				}
				first = false
				<-goOn
				return failed
			}
			go func() {
				if err := tab.Attach(t.Context(), s); !errors.Is(err, failed) {
					t.Error(err)
				}
			}()
			synctest.Wait()
			go func() {
				err := tab.Attach(t.Context(), s)
				if err := errors.Join(err, tab.SetPolicy(t.Context(), netdapi.Policy{ID: s.ID, Generation: 1})); err != nil {
					t.Error(err)
				}
			}()
			synctest.Wait()
			close(goOn)
			synctest.Wait()
			if _, ok := tab.Lookup(s.IPv4); !ok || len(m.places) != 1 {
				t.Errorf("the sandbox has a policy: %v, and %d links are judged", ok, len(m.places))
			}
		})
	}
}

// F12: who looks a sandbox up has its policy with what came with that, or neither.
func TestF12_APolicyIsSeenWithItsCredentials(t *testing.T) {
	t.Parallel()
	tab, m := newTable()
	s := slot(t, 5)
	if err := tab.Attach(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 1000 {
			p := netdapi.Policy{ID: s.ID, Generation: 1, Policy: []byte([]string{`{"mode":"block-all"}`, `{"mode":"allow-all"}`}[i%2])}
			if err := tab.SetPolicy(t.Context(), p); err != nil {
				t.Error(err)
			}
		}
	}()
	for {
		g, _ := tab.Lookup(s.IPv4)
		came := m.changing.Load()
		if again, _ := tab.Lookup(s.IPv4); again.Policy == g.Policy && came != g.Policy {
			t.Fatal("a policy was seen with what came with another")
		}
		select {
		case <-done:
			return
		default:
		}
	}
}

func TestWordsAreCompared(t *testing.T) {
	t.Parallel()
	tab, m := newTable()
	ctx, s := t.Context(), slot(t, 5)
	if err := tab.SetPolicy(ctx, netdapi.Policy{ID: s.ID, Generation: 1}); kindOf(err) != errdefs.NotFound {
		t.Errorf("a policy of nobody's: %v", err)
	}
	for range 2 {
		if err := tab.Attach(ctx, s); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := tab.Lookup(s.IPv4); ok {
		t.Error("a sandbox without a policy is a guest")
	}
	p := netdapi.Policy{ID: s.ID, Generation: 1, Team: "team", Policy: []byte(`{"mode":"block-all"}`)}
	for range 2 {
		if err := tab.SetPolicy(ctx, p); err != nil {
			t.Fatal(err)
		}
	}
	if len(m.changed) != 1 {
		t.Errorf("the same policy twice is %d changes", len(m.changed))
	}
	for _, a := range []netip.Addr{s.IPv4, s.IPv6, netip.AddrFrom16(s.IPv4.As16())} {
		if g, ok := tab.Lookup(a); !ok || g.ID != s.ID || g.Team != "team" || g.Policy == nil {
			t.Errorf("%v is %+v", a, g)
		}
	}
	if known := tab.List(); len(known) != 1 || known[0].Digest != p.Digest() || known[0].Slot != s {
		t.Errorf("known: %+v", known)
	}
	p.Policy = []byte(`{"mode":"none"}`)
	if err := tab.SetPolicy(ctx, p); kindOf(err) != errdefs.InvalidArgument || len(m.changed) != 1 {
		t.Errorf("a policy that is none: %v", err)
	}
	m.refuse = errors.New("the table is full")
	p.Policy = []byte(`{"mode":"allow-all"}`)
	if err := tab.SetPolicy(ctx, p); err == nil || tab.List()[0].Digest == p.Digest() || len(m.changed) != 1 {
		t.Errorf("X31: a policy that the kernel has no room for: %v", err)
	}
}

// What runs keeps its place and its policy whatever comes of attaching it again.
func TestAttachingAgainTakesNothingAway(t *testing.T) {
	t.Parallel()
	tab, m := newTable()
	ctx, s := t.Context(), slot(t, 5)
	m.away = errors.New("no such device")
	if err := tab.Attach(ctx, s); err == nil || len(m.places) != 0 || tab.Has(s.ID) {
		t.Fatalf("what was never attached: %v; left %+v", err, m.places)
	}
	m.away = nil
	p := netdapi.Policy{ID: s.ID, Generation: 1}
	if err := errors.Join(tab.Attach(ctx, s), tab.SetPolicy(ctx, p)); err != nil {
		t.Fatal(err)
	}
	m.away = errors.New("no such device")
	if err := tab.Attach(ctx, s); !errors.Is(err, m.away) {
		t.Errorf("attached: %v", err)
	}
	known := tab.List()
	if len(m.places) != 1 || m.policies[5] == nil || len(m.ended) != 0 || len(known) != 1 || known[0].Digest != p.Digest() {
		t.Errorf("left: %+v, known %+v", m, known)
	}
}

// What the kernel has lost is known as new, so that it is told its policy again.
func TestAttachingWhatTheKernelHasLost(t *testing.T) {
	t.Parallel()
	tab, m := newTable()
	ctx, s := t.Context(), slot(t, 5)
	p := netdapi.Policy{ID: s.ID, Generation: 1}
	if err := errors.Join(tab.Attach(ctx, s), tab.SetPolicy(ctx, p)); err != nil {
		t.Fatal(err)
	}
	if err := (kernel{m}).Detach(m.places[5].Serial); err != nil {
		t.Fatal(err)
	}
	if err := tab.Attach(ctx, s); err != nil {
		t.Fatal(err)
	}
	if known := tab.List(); len(known) != 1 || known[0].Digest != "" || len(m.ended) != 1 {
		t.Errorf("known %+v, ended %v", known, m.ended)
	}
	if err := tab.SetPolicy(ctx, p); err != nil || m.policies[5] == nil {
		t.Errorf("its policy: %v; in force %v", err, m.policies)
	}
}

func TestE23_AnEndTakesEverythingAlong(t *testing.T) {
	t.Parallel()
	tab, m := newTable()
	ctx, s := t.Context(), slot(t, 5)
	if err := errors.Join(tab.Attach(ctx, s), tab.SetPolicy(ctx, netdapi.Policy{ID: s.ID, Generation: 1})); err != nil {
		t.Fatal(err)
	}
	g, _ := tab.Lookup(s.IPv4)
	if err := tab.Detach(ctx, s.ID, 2); err != nil || len(m.places) != 1 {
		t.Errorf("another generation's end: %v", err)
	}
	if err := errors.Join(tab.Detach(ctx, s.ID, 1), tab.Forget(), tab.Forget()); err != nil {
		t.Fatal(err)
	}
	if _, ok := tab.Lookup(s.IPv4); ok || len(m.places) != 0 || len(m.forgot) != 2 || len(m.ended) != 1 || len(tab.List()) != 0 {
		t.Errorf("left: %+v", m)
	}
	tab.Learn(g, netip.MustParseAddr("93.184.0.2"), 1, time.Minute)
	if len(m.learned) != 0 {
		t.Error("a name of a sandbox that ended was learnt")
	}
	if err := tab.Detach(ctx, s.ID, 0); err != nil {
		t.Errorf("again: %v", err)
	}
}

func TestANewGenerationReplacesTheOld(t *testing.T) {
	t.Parallel()
	tab, m := newTable()
	ctx, s := t.Context(), slot(t, 5)
	if err := errors.Join(tab.Attach(ctx, s), tab.SetPolicy(ctx, netdapi.Policy{ID: s.ID, Generation: 1})); err != nil {
		t.Fatal(err)
	}
	next := slot(t, 6)
	next.ID, next.Generation = s.ID, 2
	if err := tab.Attach(ctx, next); err != nil {
		t.Fatal(err)
	}
	if _, ok := tab.Lookup(s.IPv4); ok || len(m.ended) != 1 || len(m.places) != 1 {
		t.Errorf("the old one is still there: %+v", m)
	}
	if err := tab.Attach(ctx, s); kindOf(err) != errdefs.Conflict {
		t.Errorf("the old one again: %v", err)
	}
	if err := tab.SetPolicy(ctx, netdapi.Policy{ID: s.ID, Generation: 1}); kindOf(err) != errdefs.Conflict {
		t.Errorf("the old one's policy: %v", err)
	}
}

func TestSweepTakesWhatLinksHaveLeft(t *testing.T) {
	t.Parallel()
	tab, m := newTable()
	ctx, known, alive := t.Context(), slot(t, 5), slot(t, 6)
	if err := errors.Join(tab.Attach(ctx, known), tab.Attach(ctx, alive)); err != nil {
		t.Fatal(err)
	}
	m.places[9] = bpf.Place{Serial: 99, Ifindex: 9, IPv4: netip.MustParseAddr("10.77.0.9"), IPv6: netip.MustParseAddr("fd77::9")} // of an earlier process
	m.links = map[int]sandbox.ID{6: alive.ID}
	if err := errors.Join(tab.Sweep(), tab.Forget()); err != nil {
		t.Fatal(err)
	}
	if len(m.places) != 1 || m.places[6].Ifindex != 6 || len(m.forgot) != 4 || len(tab.List()) != 1 {
		t.Errorf("left: %+v, known %+v", m, tab.List())
	}
}

func TestWhatTheOperatorDeniesHoldsAtOnce(t *testing.T) {
	t.Parallel()
	tab, m := newTable()
	ctx, s := t.Context(), slot(t, 5)
	if err := errors.Join(tab.Attach(ctx, s), tab.SetPolicy(ctx, netdapi.Policy{ID: s.ID, Generation: 1})); err != nil {
		t.Fatal(err)
	}
	host := netip.MustParseAddr("93.184.0.1")
	g, _ := tab.Lookup(s.IPv4)
	if tab.Forbidden(host) || !g.Policy.Reachable(host) {
		t.Fatal("it is denied before it was said")
	}
	if err := tab.SetFixed(policy.Fixed{Denied: []netip.Prefix{netip.PrefixFrom(host, 32)}}); err != nil {
		t.Fatal(err)
	}
	g, _ = tab.Lookup(s.IPv4)
	if !tab.Forbidden(host) || !tab.Forbidden(netip.MustParseAddr("169.254.169.254")) || g.Policy.Reachable(host) || len(m.changed) != 2 || len(m.always) == 0 {
		t.Errorf("%v is still open", host)
	}
}

// A sandbox's end that is told late is not its successor's.
func TestE23_AnEndThatIsToldLate(t *testing.T) {
	t.Parallel()
	tab, m := newTable()
	ctx, old := t.Context(), slot(t, 5)
	next := slot(t, 5)
	if err := errors.Join(tab.Attach(ctx, old), tab.SetPolicy(ctx, netdapi.Policy{ID: old.ID, Generation: 1})); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(tab.Attach(ctx, next), tab.SetPolicy(ctx, netdapi.Policy{ID: next.ID, Generation: 1})); err != nil {
		t.Fatal(err)
	}
	if len(m.forgot) != 2 || len(m.ended) != 1 || m.ended[0].ID != old.ID {
		t.Errorf("forgotten %v, ended %v: want the old one's before the next is there", m.forgot, m.ended)
	}
	if err := tab.Detach(ctx, old.ID, 0); err != nil {
		t.Fatal(err)
	}
	if g, ok := tab.Lookup(next.IPv4); !ok || g.ID != next.ID || m.policies[5] == nil {
		t.Errorf("the next one is %v, %v; its policy %v", g, ok, m.policies[5])
	}
}

// E23: what had a place before this process did is forgotten before another has it.
func TestE23_APlaceOfAnEarlierProcess(t *testing.T) {
	t.Parallel()
	tab, m := newTable()
	s := slot(t, 5)
	m.places[5] = bpf.Place{Serial: 99, Ifindex: 5, Owner: 1, IPv4: s.IPv4, IPv6: s.IPv6}
	if err := tab.Attach(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if len(m.forgot) != 2 || m.places[5].Owner != owner(s) {
		t.Errorf("forgotten %v, there is %+v", m.forgot, m.places[5])
	}
}
