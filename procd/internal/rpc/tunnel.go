package rpc

import (
	"net/http"
	"net/url"
	"strconv"
	"time"

	"s0.run/internal/procapi"
	"s0.run/internal/procapi/answer"
	"s0.run/procd/internal/tunnel"
)

func (s *server) openTunnel(w http.ResponseWriter, r *http.Request) error {
	to, err := tunnelTarget(r)
	if err != nil {
		return err
	}
	t, err := s.tunnels.Dial(r.Context(), to)
	if err != nil {
		return err
	}
	defer t.Close()
	control := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/octet-stream")
	w.WriteHeader(http.StatusOK)
	if err := control.Flush(); err != nil {
		return nil // the caller has gone
	}
	err = t.Carry(r.Context(), tunnel.Peer{
		Input: r.Body,
		Stop:  func() { _ = control.SetReadDeadline(time.Unix(1, 0)) },
		Write: func(b []byte) error {
			if _, err := w.Write(b); err != nil {
				return err
			}
			return control.Flush()
		},
	})
	if err != nil {
		panic(http.ErrAbortHandler) // the caller sees that this is not the end
	}
	return nil
}

// tunnelTarget reads which service a tunnel is for.
func tunnelTarget(r *http.Request) (tunnel.Target, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil || len(q) != 1 {
		return tunnel.Target{}, answer.Invalid("want one of %s and %s", procapi.TunnelPort, procapi.TunnelFunction)
	}
	port, function := q[procapi.TunnelPort], q[procapi.TunnelFunction]
	switch {
	case len(port) == 1:
		n, err := strconv.ParseUint(port[0], 10, 16)
		if err != nil || n == 0 {
			return tunnel.Target{}, answer.Invalid("port: want 1 to 65535")
		}
		return tunnel.Port(uint16(n)), nil
	case len(function) == 1 && label(function[0]):
		return tunnel.Function(function[0]), nil
	}
	return tunnel.Target{}, answer.Invalid("want one %s or one %s", procapi.TunnelPort, procapi.TunnelFunction)
}

// label reports whether s is a DNS label.
func label(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}
