package templates

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"s0.run/api/internal/openapi"
	"s0.run/api/internal/quantity"
	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
)

// Bounds of what a template may carry.
const (
	maxTextBytes  = 4 << 10
	maxTags       = 64
	maxImageBytes = 512
	maxEnvVars    = 1000
	maxEnvBytes   = 256 << 10
	maxPoolIdle   = 1000
	minDiskBytes  = 64 << 20
	maxDiskBytes  = 1 << 40
)

var (
	idPattern    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	imagePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/@-]*$`)
)

// ParseID lower-cases a template's name and checks that it is a DNS label.
func ParseID(s string) (string, error) {
	id := strings.ToLower(s)
	if !idPattern.MatchString(id) {
		return "", errdefs.New(errdefs.InvalidArgument, "template_id must be a DNS label")
	}
	return id, nil
}

// Validate checks a spec that a client sent. What this server does not serve is
// refused by name: a setting that is stored and has no effect would be a lie.
func Validate(spec *openapi.TemplateSpec) error {
	for _, check := range []func(*openapi.TemplateSpec) error{
		checkServed, checkTexts, checkContainer, checkEnvironment, checkPool, checkLifecycle, checkWarm,
	} {
		if err := check(spec); err != nil {
			return err
		}
	}
	if _, err := slotSpec(spec); err != nil {
		return invalid("spec.mainContainer.resources: %v", err)
	}
	return nil
}

func invalid(format string, args ...any) error {
	return errdefs.New(errdefs.InvalidArgument, format, args...)
}

func checkServed(s *openapi.TemplateSpec) error {
	for name, given := range map[string]bool{
		"mainContainer.imagePullPolicy": s.MainContainer.ImagePullPolicy != nil,
		"mainContainer.securityContext": s.MainContainer.SecurityContext != nil,
		"volumeMounts":                  len(s.VolumeMounts) > 0,
		"pod":                           s.Pod != nil,
		"clusterId":                     s.ClusterID != nil,
		"sidecars":                      len(s.Sidecars) > 0,
	} {
		if given {
			return invalid("spec.%s is not supported by this server", name)
		}
	}
	if s.Network != nil {
		return ErrNoNetworkPolicy
	}
	if c := s.RuntimeClassName; c != nil && sandbox.RuntimeClass(*c) != sandbox.GVisor {
		return invalid("spec.runtimeClassName %q is not available: want gvisor", *c)
	}
	return nil
}

// ErrNoNetworkPolicy answers every request for a network policy while nothing
// enforces one: a policy that is not enforced must never be accepted (R5).
var ErrNoNetworkPolicy = errdefs.New(errdefs.Unavailable, "network policy is unavailable in this deployment")

func checkTexts(s *openapi.TemplateSpec) error {
	texts := append([]string{}, s.Tags...)
	for _, p := range []*string{s.Description, s.DisplayName} {
		if p != nil {
			texts = append(texts, *p)
		}
	}
	if len(s.Tags) > maxTags {
		return invalid("spec.tags: at most %d", maxTags)
	}
	for _, t := range texts {
		if len(t) > maxTextBytes || !printable(t) {
			return invalid("spec: texts must be printable and at most %d bytes", maxTextBytes)
		}
	}
	return nil
}

// printable allows line breaks and tabs, but no other control characters (A18).
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return unicode.IsControl(r) && r != '\n' && r != '\t'
	})
}

func checkContainer(s *openapi.TemplateSpec) error {
	image := s.MainContainer.Image
	if image == "" {
		return invalid("spec.mainContainer.image is required")
	}
	if len(image) > maxImageBytes || !imagePattern.MatchString(image) {
		return invalid("spec.mainContainer.image is not an image reference")
	}
	if e := s.MainContainer.Resources.EphemeralStorage; e != nil {
		if n, err := quantity.Memory(*e); err != nil || n < minDiskBytes || n > maxDiskBytes {
			return invalid("spec.mainContainer.resources.ephemeralStorage: want 64Mi to 1Ti")
		}
	}
	return nil
}

func checkEnvironment(s *openapi.TemplateSpec) error {
	names := map[string]bool{}
	list := map[string]string{}
	for _, e := range s.MainContainer.Env {
		if names[e.Name] {
			return invalid("spec.mainContainer.env: %.100q is there twice", e.Name)
		}
		names[e.Name] = true
		list[e.Name] = e.Value
	}
	if err := CheckEnv(list); err != nil {
		return invalid("spec.mainContainer.env: %v", err)
	}
	if err := CheckEnv(s.EnvVars); err != nil {
		return invalid("spec.envVars: %v", err)
	}
	return nil
}

// CheckEnv checks an environment that a client sent.
func CheckEnv(env map[string]string) error {
	if len(env) > maxEnvVars {
		return fmt.Errorf("at most %d variables", maxEnvVars)
	}
	total := 0
	for name, value := range env {
		total += len(name) + len(value)
		if name == "" || strings.ContainsRune(name, '=') || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return fmt.Errorf("%.100q is not a variable's name", name)
		}
		if strings.ContainsRune(value, 0) {
			return fmt.Errorf("the value of %.100q contains a NUL", name)
		}
	}
	if total > maxEnvBytes {
		return errors.New("more than 256 KiB")
	}
	return nil
}

func checkPool(s *openapi.TemplateSpec) error {
	if p := s.Pool; p != nil && (p.MinIdle < 0 || p.MaxIdle < p.MinIdle || p.MaxIdle > maxPoolIdle) {
		return invalid("spec.pool: want 0 ≤ minIdle ≤ maxIdle ≤ %d", maxPoolIdle)
	}
	return nil
}

func checkWarm(s *openapi.TemplateSpec) error {
	if _, err := warmProcesses(s); err != nil {
		return invalid("%v", err)
	}
	return nil
}

func checkLifecycle(s *openapi.TemplateSpec) error {
	l := s.Lifecycle
	switch {
	case l == nil:
		return nil
	case l.MaxTTL != nil, l.IdleTimeout != nil, l.PreStop != nil:
		return invalid("spec.lifecycle: of its fields, this server supports defaultTTL alone")
	case l.DefaultTTL != nil && *l.DefaultTTL < 0:
		return invalid("spec.lifecycle.defaultTTL must not be negative")
	}
	return nil
}
