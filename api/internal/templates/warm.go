package templates

import (
	"fmt"
	"net"
	"strings"

	"s0.run/api/internal/openapi"
	"s0.run/internal/warm"
)

// warmProcesses translates a spec's warm processes, with every default filled in.
func warmProcesses(spec *openapi.TemplateSpec) ([]warm.Process, error) {
	var all []warm.Process
	for i, w := range spec.WarmProcesses {
		p := warm.Process{
			Name: warmName(i, &w), Type: string(w.Type), Alias: value(w.Alias), Command: w.Command, Cwd: value(w.Cwd), Env: w.EnvVars,
			KeepOnClaim: w.RestartOnClaim != nil && !*w.RestartOnClaim,
		}
		if w.Probes != nil {
			if err := setProbes(&p, w.Probes); err != nil {
				return nil, fmt.Errorf("spec.warmProcesses: %s: %w", p.Name, err)
			}
		}
		all = append(all, p)
	}
	if err := warm.Validate(all); err != nil {
		return nil, fmt.Errorf("spec.warmProcesses: %w", err)
	}
	return all, nil
}

// warmName is what a process is called in a message, where its author has not
// said.
func warmName(i int, w *openapi.WarmProcess) string {
	if name := value(w.Name); name != "" {
		return name
	}
	return fmt.Sprintf("process-%d", i+1)
}

func setProbes(p *warm.Process, w *openapi.WarmProcessProbes) error {
	for _, of := range []struct {
		name string
		from *openapi.Probe
		to   **warm.Probe
	}{{"startup", w.Startup, &p.Startup}, {"readiness", w.Readiness, &p.Readiness}, {"liveness", w.Liveness, &p.Liveness}} {
		if of.from == nil {
			continue
		}
		probe, err := probeOf(of.from)
		if err != nil {
			return fmt.Errorf("probes.%s: %w", of.name, err)
		}
		*of.to = &probe
	}
	return nil
}

func probeOf(w *openapi.Probe) (warm.Probe, error) {
	p := warm.Probe{
		Process:             w.Process != nil,
		InitialDelaySeconds: int(value(w.InitialDelaySeconds)), PeriodSeconds: int(value(w.PeriodSeconds)), TimeoutSeconds: int(value(w.TimeoutSeconds)),
		SuccessThreshold: int(value(w.SuccessThreshold)), FailureThreshold: int(value(w.FailureThreshold)),
	}
	if w.Exec != nil {
		if p.Exec = w.Exec.Command; len(p.Exec) == 0 {
			return p, fmt.Errorf("exec: command is required")
		}
	}
	if t := w.TCPSocket; t != nil {
		if p.TCPPort = int(t.Port); p.TCPPort == 0 {
			return p, fmt.Errorf("tcpSocket: port: want 1 to 65535")
		}
		if err := checkHost(t.Host); err != nil {
			return p, fmt.Errorf("tcpSocket: %w", err)
		}
	}
	if h := w.HTTPGet; h != nil {
		var err error
		if p.HTTP, err = httpGet(h); err != nil {
			return p, fmt.Errorf("httpGet: %w", err)
		}
	}
	return p.WithDefaults(), nil
}

func httpGet(h *openapi.HTTPProbe) (*warm.HTTPGet, error) {
	get := &warm.HTTPGet{Path: value(h.Path), Port: int(h.Port)}
	if get.Path == "" {
		get.Path = "/"
	}
	switch strings.ToUpper(value(h.Scheme)) {
	case "", "HTTP":
	case "HTTPS":
		get.TLS = true
	default:
		return nil, fmt.Errorf("scheme %.20q: want HTTP or HTTPS", value(h.Scheme))
	}
	for _, header := range h.HTTPHeaders {
		get.Headers = append(get.Headers, warm.Header{Name: header.Name, Value: header.Value})
	}
	return get, checkHost(h.Host)
}

// checkHost allows the sandbox itself alone: a probe is no way to reach others.
func checkHost(host *string) error {
	h := value(host)
	if ip := net.ParseIP(h); h == "" || h == "localhost" || ip != nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("host %.80q: a probe reaches localhost alone", h)
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
