package egress

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/netdapi"
	"s0.run/internal/policy"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/netns"
)

const deadline = time.Minute

// fake is a netd that may die and come back having forgotten everything.
type fake struct {
	netdapi.Server // what no test needs

	mu       sync.Mutex
	serial   int // of this netd
	known    map[sandbox.ID]netdapi.Known
	policies map[sandbox.ID]netdapi.Policy
	attached int
	hang     chan struct{} // while it is there calls wait for it
}

func (f *fake) Info() netdapi.Info { return netdapi.Info{Version: "v"} }

func (f *fake) TakeEvents(_ context.Context, stored netdapi.Mark) netdapi.Events {
	return netdapi.Events{Mark: netdapi.Mark{Run: stored.Run, Through: stored.Through + 1}, Events: []netdapi.Event{{FlowID: fmt.Sprint(stored.Through)}}}
}

func (f *fake) Counters() (map[sandbox.ID]netdapi.Counters, error) {
	return map[sandbox.ID]netdapi.Counters{"a": {Denied: 7}}, nil
}

func (f *fake) wait(ctx context.Context) {
	f.mu.Lock()
	hang := f.hang
	f.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
		}
	}
}

func (f *fake) Attach(ctx context.Context, s netdapi.Slot) error {
	f.wait(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known[s.ID] = netdapi.Known{Slot: s}
	f.attached++
	return nil
}

func (f *fake) SetPolicy(ctx context.Context, p netdapi.Policy) error {
	f.wait(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	k, ok := f.known[p.ID]
	if !ok {
		return errdefs.New(errdefs.NotFound, "not attached")
	}
	k.Digest = p.Digest()
	f.known[p.ID], f.policies[p.ID] = k, p
	return nil
}

func (f *fake) Detach(_ context.Context, id sandbox.ID, _ sandbox.Generation) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.known, id)
	delete(f.policies, id)
	return nil
}

func (f *fake) List() (all []netdapi.Known) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range f.known {
		all = append(all, k)
	}
	return all
}

// policy is the text of a sandbox's policy; ok is false when there is none.
func (f *fake) policy(id sandbox.ID) (string, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, ok := f.policies[id]
	return string(p.Policy), ok
}

func (f *fake) CA(id sandbox.ID) (netdapi.CA, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return netdapi.CA{PEM: fmt.Sprintf("%s of netd %d", id, f.serial)}, nil
}

type node struct {
	t      *testing.T
	socket string
	agent  *Agent
	srv    *http.Server

	mu       sync.Mutex
	netds    int
	full     bool // nothing can be written
	asked    int  // to believe
	believed map[sandbox.ID]string
}

func (n *node) believe(id sandbox.ID, who netdapi.CA, _ []policy.Server) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked++
	if n.full {
		return errors.New("no space left")
	}
	n.believed[id] = who.PEM
	return nil
}

func (n *node) believes(id sandbox.ID) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.believed[id]
}

func newNode(t *testing.T) *node {
	n := &node{t: t, socket: filepath.Join(t.TempDir(), "netd.sock"), believed: map[sandbox.ID]string{}}
	n.agent = New(Config{Socket: n.socket, Log: slog.New(slog.DiscardHandler), Believe: n.believe})
	return n
}

func (n *node) run() {
	ctx, cancel := context.WithCancel(n.t.Context())
	done := make(chan error)
	go func() { done <- n.agent.Run(ctx) }()
	n.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Error(err)
		}
	})
}

func (n *node) startNetd() *fake {
	n.t.Helper()
	n.netds++
	f := &fake{serial: n.netds, known: map[sandbox.ID]netdapi.Known{}, policies: map[sandbox.ID]netdapi.Policy{}}
	l, err := net.Listen("unix", n.socket)
	if err != nil {
		n.t.Fatal(err)
	}
	n.srv = &http.Server{Handler: netdapi.Handler(f, func(string, error) {})}
	go n.srv.Serve(l)
	n.t.Cleanup(func() { n.srv.Close() })
	return f
}

func (n *node) eventually(what string, f func() bool) {
	n.t.Helper()
	for end := time.Now().Add(deadline); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			n.t.Fatalf("%s: not within %v", what, deadline)
		}
	}
}

func slot(t *testing.T, index uint32) netns.Slot {
	t.Helper()
	id, err := sandbox.NewID("t")
	if err != nil {
		t.Fatal(err)
	}
	return netns.Slot{ID: id, Index: index, IP: netip.AddrFrom4([4]byte{10, 77, 0, byte(index + 1)}), IP6: netip.MustParseAddr("fd77::5")}
}

func wants(text string) *journal.Network { return &journal.Network{Policy: json.RawMessage(text)} }

func TestToldAtOnce(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	f := n.startNetd()
	n.run()
	n.eventually("netd is noticed", n.agent.Available)
	s := slot(t, 3)
	n.agent.Attach(t.Context(), s, 1)
	if got := f.List(); len(got) != 1 || got[0].ID != s.ID || got[0].Ifindex != s.Ifindex() || got[0].MAC != "02:73:0a:4d:00:04" || got[0].Digest != "" {
		t.Fatalf("attached %+v", got)
	}
	if err := n.agent.SetPolicy(t.Context(), s.ID, "team", wants(`{"mode":"block-all"}`)); err != nil {
		t.Fatal(err)
	}
	if got, _ := f.policy(s.ID); got != `{"mode":"block-all"}` {
		t.Errorf("policy %q", got)
	}
	if err := n.agent.SetPolicy(t.Context(), s.ID, "team", nil); err != nil {
		t.Fatal(err)
	}
	if got, ok := f.policy(s.ID); got != "" || !ok {
		t.Errorf("the default is told as %q, %v", got, ok)
	}
	n.agent.Detach(t.Context(), s.ID)
	if got := f.List(); len(got) != 0 {
		t.Errorf("after its end netd knows %+v", got)
	}
	if err := n.agent.SetPolicy(t.Context(), s.ID, "team", nil); err == nil {
		t.Error("what has no network got a policy")
	}
}

func TestX31_ToldAgainWhenItComesBack(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	before, policed, slotOnly, ended := slot(t, 1), slot(t, 2), slot(t, 3), slot(t, 4)
	n.agent.Attach(t.Context(), before, 1)
	if err := n.agent.SetPolicy(t.Context(), before.ID, "team", wants(`{"mode":"block-all"}`)); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("without a netd: %v", err)
	}
	n.run()
	f := n.startNetd()
	n.eventually("what was said before is told", func() bool { _, ok := f.policy(before.ID); return ok })
	n.agent.Attach(t.Context(), policed, 2)
	if err := n.agent.SetPolicy(t.Context(), policed.ID, "team", nil); err != nil {
		t.Fatal(err)
	}
	n.agent.Attach(t.Context(), slotOnly, 1)
	n.agent.Attach(t.Context(), ended, 1)

	n.srv.Close()
	n.eventually("its end is noticed", func() bool { return !n.agent.Available() })
	n.agent.Detach(t.Context(), ended.ID)
	if err := n.agent.SetPolicy(t.Context(), policed.ID, "team", wants(`{"mode":"block-all"}`)); !errors.Is(err, ErrUnavailable) {
		t.Errorf("while it is away: %v", err)
	}
	f = n.startNetd()
	f.mu.Lock()
	f.known[ended.ID] = netdapi.Known{Slot: netdapi.Slot{ID: ended.ID, Generation: 1}}
	f.mu.Unlock()
	n.eventually("the newest policy is told", func() bool { p, _ := f.policy(policed.ID); return p == `{"mode":"block-all"}` })
	n.eventually("all are told, and none beyond", func() bool {
		known := f.List()
		return len(known) == 3 && !slices.ContainsFunc(known, func(k netdapi.Known) bool { return k.ID == ended.ID })
	})
	if _, ok := f.policy(slotOnly.ID); ok {
		t.Error("a slot got a policy")
	}
}

func TestX31_OneThatHangsHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	f := n.startNetd()
	n.run()
	n.eventually("netd is noticed", n.agent.Available)
	s := slot(t, 1)
	n.agent.Attach(t.Context(), s, 1)
	f.mu.Lock()
	f.hang = make(chan struct{})
	f.mu.Unlock()
	began := time.Now()
	if err := n.agent.SetPolicy(t.Context(), s.ID, "team", wants(`{"mode":"block-all"}`)); err == nil {
		t.Error("a netd that hangs took a policy")
	}
	if took := time.Since(began); took > deadline/2 {
		t.Errorf("it took %v", took)
	}
	f.mu.Lock()
	close(f.hang)
	f.hang = nil
	f.mu.Unlock()
	n.eventually("it is told later", func() bool { p, _ := f.policy(s.ID); return p == `{"mode":"block-all"}` })
}

func TestTheLastWordCounts(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	f := n.startNetd()
	n.run()
	n.eventually("netd is noticed", n.agent.Available)
	s := slot(t, 1)
	n.agent.Attach(t.Context(), s, 1)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 20 {
				_ = n.agent.SetPolicy(t.Context(), s.ID, "team", wants(`{"mode":"allow-all"}`))
				_ = n.agent.reconcile(t.Context())
			}
		})
	}
	wg.Wait()
	if err := n.agent.SetPolicy(t.Context(), s.ID, "team", wants(`{"mode":"block-all"}`)); err != nil {
		t.Fatal(err)
	}
	if err := n.agent.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p, _ := f.policy(s.ID); p != `{"mode":"block-all"}` {
		t.Errorf("policy %q", p)
	}
}

// intercepting is a policy that has TLS opened.
const intercepting = `{"mode":"allow-all","egress":{"protocolRules":[{"protocol":"http","http":{}}]}}`

// Who answers a sandbox is believed before he does, whichever netd that is; that he can't
// be keeps no policy from being enforced.
func TestF08_X31_WhoAnswersIsBelieved(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	f := n.startNetd()
	n.run()
	n.eventually("netd is noticed", n.agent.Available)
	s, plain := slot(t, 1), slot(t, 2)
	n.agent.Attach(t.Context(), s, 1)
	n.agent.Attach(t.Context(), plain, 1)
	for id, text := range map[sandbox.ID]string{s.ID: intercepting, plain.ID: `{"mode":"block-all"}`} {
		if err := n.agent.SetPolicy(t.Context(), id, "team", wants(text)); err != nil {
			t.Fatal(err)
		}
	}
	if got := n.believes(s.ID); got != string(s.ID)+" of netd 1" || n.believes(plain.ID) != "" {
		t.Fatalf("it believes %q, and who needs it not %q", got, n.believes(plain.ID))
	}
	n.mu.Lock()
	n.full = true
	n.mu.Unlock()
	n.srv.Close()
	n.eventually("its end is noticed", func() bool { return !n.agent.Available() })
	f = n.startNetd()
	n.eventually("the policy is enforced", func() bool { p, _ := f.policy(s.ID); return p == intercepting })
	n.mu.Lock()
	n.full = false
	n.mu.Unlock()
	n.eventually("the next netd's is believed", func() bool { return n.believes(s.ID) == string(s.ID)+" of netd 2" })
}

func TestWithoutNetdNothingIsAvailable(t *testing.T) {
	t.Parallel()
	a := New(Config{Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- a.Run(ctx) }()
	s := slot(t, 1)
	a.Attach(ctx, s, 1)
	if err := a.SetPolicy(ctx, s.ID, "team", nil); !errors.Is(err, ErrUnavailable) || a.Available() {
		t.Errorf("SetPolicy: %v", err)
	}
	a.Detach(ctx, s.ID)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
