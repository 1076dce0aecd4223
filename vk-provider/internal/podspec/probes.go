package podspec

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"s0.run/internal/procapi"
	"s0.run/internal/warm"
)

// ProbesOf is what procd is asked to probe a container by. Requests and connections are
// made from inside, to the sandbox itself.
func ProbesOf(c *corev1.Container) (probes procapi.SessionProbes, r *Refusal) {
	for _, of := range []struct {
		name string
		from *corev1.Probe
		to   **procapi.SessionProbe
	}{{"startupProbe", c.StartupProbe, &probes.Startup}, {"readinessProbe", c.ReadinessProbe, &probes.Readiness}, {"livenessProbe", c.LivenessProbe, &probes.Liveness}} {
		if of.from == nil {
			continue
		}
		p, err := probeOf(c, of.from)
		if err != nil {
			return probes, refuse(ReasonInvalid, "%s of container %s: %v", of.name, c.Name, err)
		}
		*of.to = p
	}
	return probes, nil
}

func probeOf(c *corev1.Container, from *corev1.Probe) (*procapi.SessionProbe, error) {
	p := &procapi.SessionProbe{GraceSeconds: from.TerminationGracePeriodSeconds, Probe: warm.Probe{
		InitialDelaySeconds: int(from.InitialDelaySeconds), PeriodSeconds: int(from.PeriodSeconds), TimeoutSeconds: int(from.TimeoutSeconds),
		SuccessThreshold: int(from.SuccessThreshold), FailureThreshold: int(from.FailureThreshold),
	}}
	switch {
	case from.Exec != nil:
		p.Exec = from.Exec.Command
	case from.HTTPGet != nil:
		p.HTTP = httpOf(c, from.HTTPGet)
	case from.TCPSocket != nil:
		p.TCPPort = portOf(c, from.TCPSocket.Port)
	case from.GRPC != nil:
		p.GRPC = &warm.GRPC{Port: int(from.GRPC.Port)}
		if from.GRPC.Service != nil {
			p.GRPC.Service = *from.GRPC.Service
		}
	}
	p.Probe = withDefaults(p.Probe)
	return p, p.Validate()
}

// withDefaults gives numbers that are 0 the defaults that Kubernetes' own API server has.
func withDefaults(p warm.Probe) warm.Probe {
	if p.TimeoutSeconds == 0 {
		p.TimeoutSeconds = 1
	}
	return p.WithDefaults()
}

func httpOf(c *corev1.Container, from *corev1.HTTPGetAction) *warm.HTTPGet {
	h := &warm.HTTPGet{Path: "/" + strings.TrimPrefix(from.Path, "/"), Port: portOf(c, from.Port), TLS: from.Scheme == corev1.URISchemeHTTPS}
	for _, header := range from.HTTPHeaders {
		h.Headers = append(h.Headers, warm.Header{Name: header.Name, Value: header.Value})
	}
	return h
}

// portOf is a port by its number or its name; 0: there is none of that name.
func portOf(c *corev1.Container, port intstr.IntOrString) int {
	if port.Type == intstr.Int {
		return port.IntValue()
	}
	i := slices.IndexFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == port.StrVal })
	if i < 0 {
		return 0
	}
	return int(c.Ports[i].ContainerPort)
}

// stripProbes takes off what is probed inside. A host that is named stays: from in there
// it would be reached as the sandbox, not as the node that a kubelet's probes are from.
func stripProbes(c *corev1.Container) {
	for _, p := range []**corev1.Probe{&c.StartupProbe, &c.ReadinessProbe, &c.LivenessProbe} {
		if *p == nil {
			continue
		}
		var rest corev1.Probe
		if h := (*p).HTTPGet; h != nil && !local(h.Host) {
			rest.HTTPGet = &corev1.HTTPGetAction{Host: h.Host}
		}
		if s := (*p).TCPSocket; s != nil && !local(s.Host) {
			rest.TCPSocket = &corev1.TCPSocketAction{Host: s.Host}
		}
		if *p = nil; rest.HTTPGet != nil || rest.TCPSocket != nil {
			*p = &rest
		}
	}
}

func local(host string) bool {
	return slices.Contains([]string{"", "localhost", "127.0.0.1", "::1"}, host)
}
