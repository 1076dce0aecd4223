package procevents

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"s0.run/internal/nodeapi"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/events"
)

const id = sandbox.ID("local-aaaaaaaaaaaaaaaaaaaaaaaaaa")

// procd is a sandbox's side: lines that it streams and acknowledgements that it got.
type procd struct {
	mu    sync.Mutex
	lines []string // of the next streams, from their beginning
	asked []string // queries of streams
	acked uint64
	hold  chan struct{} // a stream stays open until it is closed
}

func (p *procd) RoundTrip(req *http.Request) (*http.Response, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if req.Method == http.MethodPost {
		var ack procapi.EventsAck
		if err := json.NewDecoder(req.Body).Decode(&ack); err != nil {
			return nil, err
		}
		p.acked = ack.Through
		return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
	}
	p.asked = append(p.asked, req.URL.RawQuery)
	var after uint64
	fmt.Sscanf(req.URL.RawQuery, "after=%d", &after)
	r, w := io.Pipe()
	lines, hold := p.lines, p.hold
	go func() {
		out := bufio.NewWriter(w)
		for _, l := range lines {
			var e procapi.Event
			if json.Unmarshal([]byte(l), &e) == nil && e.Seq <= after {
				continue
			}
			out.WriteString(l + "\n")
		}
		out.Flush()
		select {
		case <-hold:
		case <-req.Context().Done():
		}
		w.CloseWithError(io.ErrUnexpectedEOF)
	}()
	go func() {
		<-req.Context().Done()
		r.CloseWithError(req.Context().Err())
	}()
	return &http.Response{StatusCode: 200, Body: r}, nil
}

func (p *procd) ackedThrough() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.acked
}

func line(seq int) string {
	return fmt.Sprintf(`{"seq":%d,"id":"e%d","type":"agent.event","time":"2026-01-02T03:04:05Z","payload":{"n":%d}}`, seq, seq, seq)
}

func lines(n int) (all []string) {
	for i := range n {
		all = append(all, line(i+1))
	}
	return all
}

// running starts a relay over one claimed sandbox.
func running(t *testing.T, p *procd) (*Relay, *events.Hub) {
	t.Helper()
	if p.hold == nil {
		p.hold = make(chan struct{})
	}
	hub := events.NewHub()
	r := New(Config{Hub: hub, Log: slog.New(slog.DiscardHandler), Proc: func(sandbox.ID, sandbox.Generation) (http.RoundTripper, error) { return p, nil }})
	done := make(chan struct{})
	ctx := t.Context()
	go func() {
		r.Run(ctx)
		close(done)
	}()
	t.Cleanup(func() { <-done })
	tell(hub)
	return r, hub
}

func tell(hub *events.Hub) {
	hub.Set("sandbox/"+string(id), &nodeapi.Event{Event: &nodeapi.Event_Sandbox{Sandbox: &nodeapi.Sandbox{
		Id: string(id), Generation: 3, ClaimId: "claim", State: string(sandbox.Running), Events: &nodeapi.EventsConfig{},
	}}})
}

// take takes one batch.
func take(t *testing.T, r *Relay) *nodeapi.SandboxEvents {
	t.Helper()
	batches := r.Take(t.Context(), 20*time.Second)
	if len(batches) != 1 {
		t.Fatalf("took %d batches", len(batches))
	}
	return batches[0]
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("never happened: %s", what)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// Every event arrives once each in order, under the node's own names, and procd
// forgets what is stored and nothing else.
func TestEventsAreRelayedInOrder(t *testing.T) {
	t.Parallel()
	const all = 3*boxEvents + 1
	p := &procd{lines: lines(all)}
	r, _ := running(t, p)
	next := uint64(1)
	for next <= all {
		b := take(t, r)
		if b.GetSandbox() != string(id) || b.GetGeneration() != 3 || b.GetClaimId() != "claim" || len(b.GetEvents()) > boxEvents {
			t.Fatalf("batch %v", b)
		}
		for _, e := range b.GetEvents() {
			if e.GetId() != fmt.Sprint("e", next) || string(e.GetPayload()) != fmt.Sprintf(`{"n":%d}`, next) {
				t.Fatalf("want event %d, got %v", next, e)
			}
			next++
		}
		if p.ackedThrough() >= next-1 {
			t.Error("procd was told to forget what nobody has stored")
		}
		r.Ack([]string{b.GetLease()}, nil)
		eventually(t, "procd is told", func() bool { return p.ackedThrough() == next-1 })
	}
}

// A batch has one taker. When that does not acknowledge, it is handed out again.
func TestX39_ATakerThatDies(t *testing.T) {
	t.Parallel()
	r, _ := running(t, &procd{lines: lines(2)})
	eventually(t, "both events are there", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		b := r.boxes[key{id, 3}]
		return b != nil && len(b.queue) == 2
	})
	before := time.Now()
	first := take(t, r)
	if second, _ := r.take(before); len(second) != 0 {
		t.Fatalf("a second taker got %v", second)
	}
	second, _ := r.take(time.Now().Add(leaseTime + time.Second))
	if len(second) != 1 || len(second[0].GetEvents()) != len(first.GetEvents()) || second[0].GetLease() == first.GetLease() {
		t.Fatalf("after the lease: %v", second)
	}
	r.Ack([]string{first.GetLease()}, nil) // comes too late
	if len(r.boxes[key{id, 3}].queue) != 2 {
		t.Error("a late acknowledgement counted")
	}
	before = time.Now()
	r.Ack(nil, []string{second[0].GetLease()})
	if early, _ := r.take(before); len(early) != 0 {
		t.Error("handed out again at once")
	}
	if third := take(t, r); len(third.GetEvents()) != 2 {
		t.Errorf("after the pause: %v", third)
	}
}

// A stream that breaks goes on behind the last event that was read.
func TestABrokenStreamGoesOn(t *testing.T) {
	t.Parallel()
	p := &procd{lines: lines(2), hold: make(chan struct{})}
	r, _ := running(t, p)
	eventually(t, "the stream is open", func() bool { return len(r.Take(t.Context(), 0)) == 1 })
	p.mu.Lock()
	p.lines = lines(3)
	close(p.hold)
	p.hold = make(chan struct{})
	p.mu.Unlock()
	eventually(t, "the stream is asked for again", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.asked) == 2 && p.asked[1] == "after=2"
	})
}

// B13: what a sandbox says is checked, and what makes no sense costs next to nothing.
func TestB13_LinesThatMakeNoSense(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, l := range map[string]string{
		"no JSON":           `{`,
		"a lifecycle event": `{"seq":1,"id":"x","type":"sandbox.deleted","payload":{}}`,
		"an unknown type":   `{"seq":1,"id":"x","type":"nonsense","payload":{}}`,
		"no id":             `{"seq":1,"type":"agent.event","payload":{}}`,
		"a path as an id":   `{"seq":1,"id":"../x","type":"agent.event","payload":{}}`,
		"a long id":         `{"seq":1,"id":"` + strings.Repeat("x", 200) + `","type":"agent.event","payload":{}}`,
		"no payload":        `{"seq":1,"id":"x","type":"agent.event"}`,
		"a negative number": `{"seq":-1,"id":"x","type":"agent.event","payload":{}}`,
	} {
		if e, err := parse([]byte(l), now); err == nil {
			t.Errorf("%s: %v", name, e)
		}
	}
	e, err := parse([]byte("{\"seq\":1,\"id\":\"x\",\"type\":\"agent.event\",\"time\":\"2999-01-01T00:00:00Z\",\"payload\":\"\xff\"}"), now)
	if err != nil || e.wire.GetUnixNano() != now.UnixNano() || string(e.wire.GetPayload()) != "\"\uFFFD\"" {
		t.Errorf("a wrong clock and bytes that are no text: %v, %v", e.wire, err)
	}

	p := &procd{lines: []string{line(1), strings.Repeat("x", procapi.MaxEventBytes+10), line(2)}}
	r, _ := running(t, p)
	if b := take(t, r); len(b.GetEvents()) != 1 {
		t.Errorf("took %v", b)
	}
	eventually(t, "the sandbox is asked again", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.asked) > 1
	})
}

// B08: a sandbox that tells without end fills its box, not the node.
func TestB08_ABoxIsBounded(t *testing.T) {
	t.Parallel()
	r, _ := running(t, &procd{lines: lines(1000)})
	eventually(t, "the box is full", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		b := r.boxes[key{id, 3}]
		return b != nil && len(b.queue) == boxEvents
	})
	if b := take(t, r); len(b.GetEvents()) != boxEvents {
		t.Errorf("took %d events", len(b.GetEvents()))
	}
}

// B08: beyond its burst a sandbox is paced.
func TestB08_ATalkativeSandboxIsPaced(t *testing.T) {
	t.Parallel()
	f := &follower{}
	began := time.Now()
	for range burst + 10 {
		if err := f.awaitTurn(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took < 5*pace {
		t.Errorf("%d events in %s", burst+10, took)
	}
}

// What an ended sandbox told still waits for a taker, for a while.
func TestAnEndedSandbox(t *testing.T) {
	t.Parallel()
	r, hub := running(t, &procd{lines: lines(1)})
	b := take(t, r)
	hub.Clear("sandbox/"+string(id), &nodeapi.Event{Event: &nodeapi.Event_SandboxGone{SandboxGone: string(id)}})
	eventually(t, "the end is seen", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		box := r.boxes[key{id, 3}]
		return box != nil && !box.ended.IsZero()
	})
	r.Ack([]string{b.GetLease()}, nil)
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.boxes)+len(r.order)+len(r.leased) != 0 {
		t.Errorf("left: %d boxes, %d in order, %d leased", len(r.boxes), len(r.order), len(r.leased))
	}
}

func TestNobodyWantsToKnow(t *testing.T) {
	t.Parallel()
	p := &procd{lines: lines(1)}
	r, hub := running(t, p)
	hub.Set("sandbox/x", &nodeapi.Event{Event: &nodeapi.Event_Sandbox{Sandbox: &nodeapi.Sandbox{Id: "x", State: string(sandbox.Running)}}})
	take(t, r)
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.boxes) != 1 {
		t.Errorf("%d boxes", len(r.boxes))
	}
}

// Whatever a sandbox writes is refused, or is an event that every reader behind
// understands in the same way.
func FuzzParse(f *testing.F) {
	f.Add([]byte(line(1)))
	f.Add([]byte("{\"seq\":1,\"id\":\"x\",\"type\":\"file.modified\",\"payload\":{\"path\":\"\\u0000\xff\"}}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		now := time.Now()
		e, err := parse(b, now)
		if err != nil {
			return
		}
		w := e.wire
		if !types[w.GetType()] || !idPattern.MatchString(w.GetId()) || !json.Valid(w.GetPayload()) || !utf8.Valid(w.GetPayload()) ||
			len(w.GetPayload()) > 3*len(b) || now.Sub(time.Unix(0, w.GetUnixNano())).Abs() > timeSlack {
			t.Errorf("%q became %v", b, w)
		}
	})
}
