package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"s0.run/internal/sandbox"
	"s0.run/netd/internal/audit"
	"s0.run/netd/internal/relay"
)

// pauseGrace is what the sides of a connection get to take what is under way: netd's
// end waits for it, where one does not.
const pauseGrace = time.Second

// Handover is a spliced connection that nobody passes on now. Whoever has it has both
// sockets; what is sent to it waits in the kernel.
type Handover struct {
	Sandbox          sandbox.ID
	Generation       sandbox.Generation
	State            []byte // the proxy's own
	Client, Upstream *net.TCPConn
}

// Cut ends it, so that both sides see that it was cut.
func (h Handover) Cut() {
	for _, c := range []*net.TCPConn{h.Client, h.Upstream} {
		if c != nil {
			reset(c)
		}
	}
}

// handover is its state: what the connection is judged by again, and its record so far.
type handover struct {
	Seen             sighting
	Dialled          netip.Addr // which may be behind a proxy
	Out              wayOut
	UpDone, DownDone bool
	Up, Down         int64
	Record           audit.Record
}

// interrupt ends what is served when the proxy stops, or when a policy cut it. What is
// spliced is handed over when the proxy stops, if anybody takes it.
func (s *session) interrupt() {
	line := s.line.Load()
	switch {
	case line == nil:
		reset(s.conn)
	case s.flow.WasCut() || s.p.config.Keep == nil:
		reset(line.Client)
		reset(line.Upstream)
	default:
		line.Pause(pauseGrace)
	}
}

// pass has a line pass until it ends, or is handed over.
func (s *session) pass(ctx context.Context, line *relay.Line, head []byte, state handover) error {
	s.line.Store(line)
	if ctx.Err() != nil { // nobody saw the line then
		reset(line.Client)
		reset(line.Upstream)
	}
	err := line.Pass(head)
	if !errors.Is(err, relay.ErrPaused) {
		return err
	}
	state.UpDone, state.DownDone, state.Record = line.UpDone, line.DownDone, s.record
	state.Up, state.Down = s.flow.Bytes()
	h := Handover{Sandbox: s.guest.ID, Generation: s.gen, Client: line.Client, Upstream: line.Upstream}
	if h.State, err = json.Marshal(state); err == nil {
		err = s.p.config.Keep(h)
	}
	if err != nil {
		h.Cut()
		return fmt.Errorf("handing a connection over: %w", err)
	}
	s.handedOver = true
	return nil
}

// Resume goes on with a connection that was handed over, until it ends, if it may still
// be, and closes it.
func (p *Proxy) Resume(ctx context.Context, h Handover) {
	s := &session{p: p, conn: h.Client, gen: h.Generation, src: peer(h.Client.RemoteAddr()), dst: peer(h.Client.LocalAddr())}
	var state handover
	err := json.Unmarshal(h.State, &state)
	g, ok := p.config.Lookup(s.src.Addr())
	if err != nil || !ok || g.ID != h.Sandbox || g.Gen != h.Generation || p.flows.Open(g.ID) >= maxFlows {
		h.Cut()
		p.config.Log.Debug("a connection that was handed over has ended", "sandbox", h.Sandbox, "gen", h.Generation, "error", err)
		return
	}
	s.guest, s.record = g, state.Record
	s.see(ctx, func(ctx context.Context) error { return s.resume(ctx, h, state) })
}

// resume judges the connection as one that begins now is judged.
func (s *session) resume(ctx context.Context, h Handover, state handover) error {
	s.flow.Resume(state.Up, state.Down)
	up, err := s.p.dialer.Adopt(h.Sandbox, h.Upstream, state.Dialled)
	if err != nil {
		h.Cut()
		return err
	}
	defer up.Close()
	if !s.judge(state.Seen.To, state.Seen.way) {
		reset(h.Upstream)
		return nil
	}
	to := state.Seen.To
	to.Addr, s.out = state.Dialled, &state.Out
	if s.how != spliced || !s.allow(s.still(to)) {
		h.Cut()
		s.deny("the policy changed meanwhile")
		return nil
	}
	line := &relay.Line{Client: h.Client, Upstream: up.TCPConn, Flow: s.flow, UpDone: state.UpDone, DownDone: state.DownDone}
	return s.pass(ctx, line, nil, state)
}
