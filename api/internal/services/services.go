// Package services is the model of what a sandbox offers to the world outside:
// its services with their routes, the exposed ports of older clients, and the
// names under which both are reached.
//
// It is pure: it checks what clients send, puts it into the one form that is
// stored in a sandbox's config, and reads and shows what is stored. Serving is
// package exposure's, starting what is not running is package runtimes'.
package services

import (
	"encoding/json"
	"fmt"
	"slices"

	"s0.run/api/internal/openapi"
	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
)

// FunctionPort stands for the functions of a sandbox in names and URLs. Nothing
// is exposed by listening on it: inside, it is the platform's.
const FunctionPort = procapi.EventPort

// Config is the part of a sandbox's config that this package is about.
type Config struct {
	Services     []openapi.SandboxAppService `json:"services"`
	ExposedPorts []openapi.ExposedPort       `json:"exposed_ports"`
	AutoResume   *bool                       `json:"auto_resume"`
}

// Stored reads a sandbox's config.
func Stored(config json.RawMessage) (Config, error) {
	var c Config
	if err := json.Unmarshal(config, &c); err != nil {
		return Config{}, fmt.Errorf("reading the services of a stored config: %w", err)
	}
	return c, nil
}

// Resumes reports whether requests may wake the sandbox; they may unless that
// was turned off.
func (c Config) Resumes() bool { return c.AutoResume == nil || *c.AutoResume }

// With is the config after an update: what is absent there stays.
func (c Config) With(u openapi.SandboxUpdateConfig) Config {
	if u.Services != nil {
		c.Services = u.Services
	}
	if u.ExposedPorts != nil {
		c.ExposedPorts = u.ExposedPorts
	}
	if u.AutoResume != nil {
		c.AutoResume = u.AutoResume
	}
	return c
}

// Check checks what the parts of a config, each normalized, must be to each other.
func (c Config) Check() error {
	for _, svc := range c.Services {
		for _, r := range svc.Ingress.Routes {
			if r.Resume && svc.Ingress.Public && !c.Resumes() {
				return invalid("route %s of service %s has resume, and the sandbox's auto_resume is off", r.ID, svc.ID)
			}
		}
	}
	for _, p := range c.ExposedPorts {
		at := slices.IndexFunc(c.Services, func(s openapi.SandboxAppService) bool { return *s.Port == p.Port })
		if at >= 0 {
			return invalid("exposed_ports: port %d belongs to service %s", p.Port, c.Services[at].ID)
		}
	}
	return nil
}

// Kind is a service's runtime.
func Kind(s openapi.SandboxAppService) openapi.ServiceRuntimeType {
	if s.Runtime == nil {
		return openapi.ServiceRuntimeTypeManual
	}
	return s.Runtime.Type
}

// Startable reports whether the platform can start the service by itself.
func Startable(s openapi.SandboxAppService) bool {
	switch Kind(s) {
	case openapi.ServiceRuntimeTypeCMD:
		return len(s.Runtime.Command) > 0
	case openapi.ServiceRuntimeTypeFunction:
		return Code(s) != ""
	}
	return false
}

// Code is a function's source, "" when there is none.
func Code(s openapi.SandboxAppService) string {
	if s.Runtime == nil || s.Runtime.Function == nil || s.Runtime.Function.Source == nil || s.Runtime.Function.Source.Code == nil {
		return ""
	}
	return *s.Runtime.Function.Source.Code
}

// View shows a stored service of a sandbox.
func View(id sandbox.ID, s openapi.SandboxAppService, d Domain) openapi.SandboxAppServiceView {
	v := openapi.SandboxAppServiceView{
		ID: s.ID, DisplayName: s.DisplayName, Port: s.Port, Runtime: s.Runtime, Ingress: s.Ingress, HealthCheck: s.HealthCheck,
		PublishBlockers: blockers(s),
	}
	v.Publishable = len(v.PublishBlockers) == 0
	if s.Ingress.Public {
		v.PublicURL = new(d.URL(id, *s.Port))
	}
	return v
}

func blockers(s openapi.SandboxAppService) []openapi.SandboxAppServiceViewPublishBlockers {
	list := []openapi.SandboxAppServiceViewPublishBlockers{}
	if !s.Ingress.Public {
		list = append(list, openapi.SandboxAppServiceViewPublishBlockersNotPublic)
	}
	switch {
	case s.Runtime == nil:
		list = append(list, openapi.SandboxAppServiceViewPublishBlockersMissingRuntime)
	case s.Runtime.Type == openapi.ServiceRuntimeTypeManual:
		list = append(list, openapi.SandboxAppServiceViewPublishBlockersManualRuntime)
	case Startable(s):
	case s.Runtime.Type == openapi.ServiceRuntimeTypeCMD:
		list = append(list, openapi.SandboxAppServiceViewPublishBlockersMissingCommand)
	default:
		list = append(list, openapi.SandboxAppServiceViewPublishBlockersMissingFunction)
	}
	return list
}

// Views shows all services of a sandbox.
func (c Config) Views(id sandbox.ID, d Domain) []openapi.SandboxAppServiceView {
	list := make([]openapi.SandboxAppServiceView, 0, len(c.Services))
	for _, s := range c.Services {
		list = append(list, View(id, s, d))
	}
	return list
}

// PortViews shows all exposed ports of a sandbox.
func (c Config) PortViews(id sandbox.ID, d Domain) []openapi.ExposedPortView {
	list := make([]openapi.ExposedPortView, 0, len(c.ExposedPorts))
	for _, p := range c.ExposedPorts {
		list = append(list, openapi.ExposedPortView{Port: p.Port, Resume: p.Resume, PublicURL: new(d.URL(id, p.Port))})
	}
	return list
}

func invalid(format string, args ...any) error {
	return errdefs.New(errdefs.InvalidArgument, format, args...)
}
