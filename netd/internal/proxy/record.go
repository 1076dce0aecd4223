package proxy

import (
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/policy"
	"s0.run/netd/internal/audit"
	"s0.run/netd/internal/dial"
	"s0.run/netd/internal/dnsproxy"
)

// deny notes why a flow was refused that no rule refused.
func (s *session) deny(reason string) { s.verdict(refusal(reason)) }

func refusal(reason string) policy.Verdict { return policy.Verdict{Rule: "proxy", Reason: reason} }

func (s *session) verdict(v policy.Verdict) {
	switch {
	case v == (policy.Verdict{}): // nothing was said
		return
	case v.WouldDeny:
		s.record.Action = audit.WouldDeny
	case v.Allow:
		return
	default:
		s.record.Action = audit.Deny
	}
	s.record.Reason = reason(v)
}

func reason(v policy.Verdict) string {
	if v.Rule == "" {
		return v.Reason
	}
	return v.Rule + ": " + v.Reason
}

// end writes the flow's record.
func (s *session) end(err error) {
	r := &s.record
	r.DurationMS = time.Since(r.Timestamp).Milliseconds()
	r.EgressBytes, r.IngressBytes = s.flow.Bytes()
	r.Outcome = audit.Completed
	var known *errdefs.Error
	refused := errors.Is(err, dial.ErrForbidden) || errors.As(err, &known) && known.Kind == errdefs.PermissionDenied
	switch {
	case s.flow.WasCut():
		r.Outcome, r.Reason = audit.Denied, "cut: no longer allowed, or hardly moving"
	case r.Action == audit.Deny || refused:
		r.Action, r.Outcome = audit.Deny, audit.Denied
		if r.Reason == "" && known != nil {
			r.Reason = known.Message
		}
	case err != nil && !ordinary(err, r.IngressBytes):
		r.Outcome, r.Error = audit.Failed, tellable(err)
	}
	s.p.config.Records.Add(*r)
	s.p.config.Log.Debug("a flow ended", "sandbox", r.SandboxID, "gen", r.Generation, "flow", r.FlowID, "host", r.Host,
		"port", r.DestPort, "action", r.Action, "outcome", r.Outcome, "error", err)
}

// ordinary are ends that nothing is wrong with. Who has an answer may end with a
// reset: clients that close before they read everything do.
func ordinary(err error, answered int64) bool {
	reset := errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || reset && answered > 0
}

// tellable is what of an error a tenant may read: causes hold this node's addresses.
func tellable(err error) string {
	var known *errdefs.Error
	var op *net.OpError
	switch {
	case errors.As(err, &known):
		return known.Message
	case errors.As(err, &op) && op.Err != nil:
		return op.Op + ": " + op.Err.Error()
	}
	return "the connection failed"
}

// observe writes a query's record.
func (p *Proxy) observe(e dnsproxy.Event) {
	r := audit.Record{
		Timestamp: time.Now().Add(-e.Duration).UTC(), FlowID: flowID(), SandboxID: string(e.Guest.ID), Generation: uint64(e.Guest.Gen), TeamID: e.Guest.Team,
		DestPort: 53, Transport: policy.UDP, Protocol: policy.DNS, Host: e.Name, ClassifierResult: e.Type, Adapter: policy.DNS,
		Action: audit.Allow, Outcome: audit.Completed, DurationMS: e.Duration.Milliseconds(),
	}
	switch {
	case e.Verdict.WouldDeny:
		r.Action, r.Reason = audit.WouldDeny, reason(e.Verdict)
	case !e.Verdict.Allow:
		r.Action, r.Outcome, r.Reason = audit.Deny, audit.Denied, reason(e.Verdict)
	case e.Err != nil:
		r.Outcome, r.Error = audit.Failed, tellable(e.Err)
	}
	p.config.Records.Add(r)
}
