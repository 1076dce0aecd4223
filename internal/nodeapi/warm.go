package nodeapi

import "s0.run/internal/warm"

func warmToWire(all []warm.Process) []*WarmProcess {
	var wire []*WarmProcess
	for _, p := range all {
		wire = append(wire, &WarmProcess{
			Name: p.Name, Type: p.Type, Alias: p.Alias, Command: p.Command, Cwd: p.Cwd, Env: p.Env, KeepOnClaim: p.KeepOnClaim,
			Startup: probeToWire(p.Startup), Readiness: probeToWire(p.Readiness), Liveness: probeToWire(p.Liveness),
		})
	}
	return wire
}

func probeToWire(p *warm.Probe) *Probe {
	if p == nil {
		return nil
	}
	w := &Probe{
		Process: p.Process, Exec: p.Exec, TcpPort: int32(p.TCPPort),
		InitialDelaySeconds: int32(p.InitialDelaySeconds), PeriodSeconds: int32(p.PeriodSeconds), TimeoutSeconds: int32(p.TimeoutSeconds),
		SuccessThreshold: int32(p.SuccessThreshold), FailureThreshold: int32(p.FailureThreshold),
	}
	if h := p.HTTP; h != nil {
		w.Http = &HTTPGet{Path: h.Path, Port: int32(h.Port), Tls: h.TLS}
		for _, header := range h.Headers {
			w.Http.Headers = append(w.Http.Headers, &HTTPGet_Header{Name: header.Name, Value: header.Value})
		}
	}
	return w
}

// warmFromWire keeps what is absent nil: a spec's hash must survive the wire.
func warmFromWire(wire []*WarmProcess) []warm.Process {
	var all []warm.Process
	for _, w := range wire {
		all = append(all, warm.Process{
			Name: w.GetName(), Type: w.GetType(), Alias: w.GetAlias(), Command: w.GetCommand(), Cwd: w.GetCwd(), Env: w.GetEnv(),
			KeepOnClaim: w.GetKeepOnClaim(),
			Startup:     probeFromWire(w.GetStartup()), Readiness: probeFromWire(w.GetReadiness()), Liveness: probeFromWire(w.GetLiveness()),
		})
	}
	return all
}

func probeFromWire(w *Probe) *warm.Probe {
	if w == nil {
		return nil
	}
	p := &warm.Probe{
		Process: w.GetProcess(), Exec: w.GetExec(), TCPPort: int(w.GetTcpPort()),
		InitialDelaySeconds: int(w.GetInitialDelaySeconds()), PeriodSeconds: int(w.GetPeriodSeconds()), TimeoutSeconds: int(w.GetTimeoutSeconds()),
		SuccessThreshold: int(w.GetSuccessThreshold()), FailureThreshold: int(w.GetFailureThreshold()),
	}
	if h := w.GetHttp(); h != nil {
		p.HTTP = &warm.HTTPGet{Path: h.GetPath(), Port: int(h.GetPort()), TLS: h.GetTls()}
		for _, header := range h.GetHeaders() {
			p.HTTP.Headers = append(p.HTTP.Headers, warm.Header{Name: header.GetName(), Value: header.GetValue()})
		}
	}
	return p
}
