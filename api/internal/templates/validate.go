package templates

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
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
	maxPathBytes  = 4 << 10
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

// Rules are what a spec's author may ask for, and what this deployment has.
type Rules struct {
	Operator bool // administers the whole system
	Cluster  string
	Offers   func(sandbox.RuntimeClass) bool // whether a node offers a class; gVisor needs no asking
}

// Validate checks a spec that a client sent. What this server does not serve is
// refused by name: a setting that is stored and has no effect would be a lie.
func (r Rules) Validate(spec *openapi.TemplateSpec) error {
	for _, check := range []func(*openapi.TemplateSpec) error{
		r.checkPrivileged, checkServed, checkTexts, checkContainer, checkEnvironment, checkMounts, checkNetwork, checkPool, checkLifecycle, checkWarm,
		r.checkRuntime,
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

// checkPrivileged checks the fields that are the operator's alone. Of them, this
// server serves what it has: other values are refused to everybody.
func (r Rules) checkPrivileged(s *openapi.TemplateSpec) error {
	policy, cluster := value(s.MainContainer.ImagePullPolicy), value(s.ClusterID)
	for _, f := range []struct {
		name          string
		given, served bool
	}{
		{"mainContainer.imagePullPolicy", s.MainContainer.ImagePullPolicy != nil, policy == "" || policy == "IfNotPresent"},
		{"mainContainer.securityContext", s.MainContainer.SecurityContext != nil, false},
		{"pod", s.Pod != nil, false},
		{"clusterId", s.ClusterID != nil, cluster == r.Cluster},
	} {
		switch {
		case f.given && !r.Operator:
			return errdefs.New(errdefs.PermissionDenied, "spec.%s is for system admins alone", f.name)
		case f.given && !f.served:
			return invalid("spec.%s: this server does not support it, or not with this value", f.name)
		}
	}
	return nil
}

// Shown is the spec as those may see it who are no operators.
func Shown(spec openapi.TemplateSpec) openapi.TemplateSpec {
	spec.MainContainer.ImagePullPolicy, spec.MainContainer.SecurityContext = nil, nil
	spec.Pod, spec.ClusterID = nil, nil
	return spec
}

func checkServed(s *openapi.TemplateSpec) error {
	if len(s.Sidecars) > 0 {
		return invalid("spec.sidecars is not supported by this server")
	}
	return nil
}

func (r Rules) checkRuntime(s *openapi.TemplateSpec) error {
	switch class := classOf(s); {
	case class == sandbox.GVisor, r.Offers(class):
		return nil
	case class == sandbox.Runc:
		return invalid("spec.runtimeClassName: runc shares the kernel of its node, and no node's operator allows it")
	case class == sandbox.Kata:
		return invalid("spec.runtimeClassName: no node has Kata Containers")
	default:
		return invalid("spec.runtimeClassName %.40q: want gvisor, kata or runc", class)
	}
}

func classOf(s *openapi.TemplateSpec) sandbox.RuntimeClass {
	if c := value(s.RuntimeClassName); c != "" {
		return sandbox.RuntimeClass(c)
	}
	return sandbox.GVisor
}

// reservedPaths belong to what runs a sandbox.
var reservedPaths = []string{"/var/lib/sandbox0/procd", "/run/s0", "/proc", "/sys", "/dev"}

const maxMounts = 64

// checkMounts checks the places where claims may mount volumes. One that no claim
// has mounted anything at is part of the root filesystem, so they change nothing
// of a slot.
func checkMounts(s *openapi.TemplateSpec) error {
	if len(s.VolumeMounts) > maxMounts {
		return invalid("spec.volumeMounts: at most %d", maxMounts)
	}
	names, paths := map[string]bool{}, map[string]bool{}
	for _, m := range s.VolumeMounts {
		switch {
		case !idPattern.MatchString(m.Name):
			return invalid("spec.volumeMounts: name %.80q is not a DNS label", m.Name)
		case !path.IsAbs(m.MountPath) || path.Clean(m.MountPath) != m.MountPath || m.MountPath == "/" || len(m.MountPath) > maxPathBytes || !printable(m.MountPath):
			return invalid("spec.volumeMounts: %s: mountPath is not a clean absolute path below /", m.Name)
		case reserved(m.MountPath):
			return invalid("spec.volumeMounts: %s: mountPath %s is reserved", m.Name, m.MountPath)
		case names[m.Name] || paths[m.MountPath]:
			return invalid("spec.volumeMounts: %s or its mountPath is there twice", m.Name)
		}
		names[m.Name], paths[m.MountPath] = true, true
	}
	return nil
}

func reserved(p string) bool {
	return slices.ContainsFunc(reservedPaths, func(r string) bool { return p == r || strings.HasPrefix(p, r+"/") || strings.HasPrefix(r, p+"/") })
}

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
	case l.IdleTimeout != nil:
		return invalid("spec.lifecycle.idleTimeout is not supported by this server")
	case l.PreStop != nil:
		return invalid("spec.lifecycle.preStop is not supported by this server")
	case value(l.DefaultTTL) < 0 || value(l.MaxTTL) < 0:
		return invalid("spec.lifecycle: defaultTTL and maxTTL must not be negative")
	case value(l.MaxTTL) > 0 && value(l.DefaultTTL) > value(l.MaxTTL):
		return invalid("spec.lifecycle.defaultTTL must not be greater than maxTTL")
	}
	return nil
}
