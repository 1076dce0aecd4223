package templates

import (
	"s0.run/api/internal/egress"
	"s0.run/api/internal/openapi"
	"s0.run/internal/errdefs"
)

// checkNetwork checks a template's policy as a claim's is: it is a sandbox's when a
// claim brings none. That its bindings' sources are there is seen at the claim.
func checkNetwork(s *openapi.TemplateSpec) error {
	if s.Network == nil {
		return nil
	}
	if _, err := egress.Read(*s.Network); err != nil {
		return invalid("spec.%s", errdefs.From(err).Message)
	}
	return nil
}
