package templates

import (
	"context"
	"encoding/json"
	"fmt"

	"s0.run/api/internal/openapi"
	"s0.run/api/internal/store"
)

// Builtins are the templates that every team has from the start.
type Builtins struct {
	Images           map[string]string // references by template; of one without, nothing can be made
	PoolMin, PoolMax int               // of the template default
}

// Put stores the builtin templates as they are now. Without an image for the
// default template there are none.
func (b Builtins) Put(ctx context.Context, s *store.Store) error {
	if b.Images[defaultTemplate] == "" {
		return nil
	}
	for _, builtin := range builtins {
		image, unavailable := b.Images[builtin.id], ""
		if image == "" {
			// A name that no registry has, should anybody ever ask one.
			image = "localhost/s0/" + builtin.id + ":not-built"
			unavailable = fmt.Sprintf("the image of template %s was not built on this server: its operator can run `make images-all` and start it again", builtin.id)
		}
		spec := builtin.spec()
		spec.MainContainer.Image = image
		if builtin.id == defaultTemplate {
			spec.Pool = &openapi.PoolSpec{MinIdle: int32(b.PoolMin), MaxIdle: int32(b.PoolMax)}
		}
		if err := (Rules{}).Validate(&spec); err != nil {
			return fmt.Errorf("the builtin template %s: %w", builtin.id, err)
		}
		raw, err := json.Marshal(spec)
		if err != nil {
			return err
		}
		if err := s.PutPublicTemplate(ctx, builtin.id, raw, unavailable); err != nil {
			return err
		}
	}
	return nil
}

const defaultTemplate = "default"

var builtins = []struct {
	id   string
	spec func() openapi.TemplateSpec
}{{defaultTemplate, defaultSpec}, {"browser", browserSpec}, {"code-interpreter", interpreterSpec}}

func defaultSpec() openapi.TemplateSpec {
	return builtinSpec("A Linux environment for agents", "500m", "2Gi")
}

// browserSpec runs a headless Chromium with its DevTools port at localhost:9222.
// It reads no variables, so that no claim waits for another start of it.
func browserSpec() openapi.TemplateSpec {
	spec := builtinSpec("A headless Chromium, to be driven over DevTools at localhost:9222", "1", "4Gi")
	spec.Pool = &openapi.PoolSpec{MinIdle: 0, MaxIdle: 2}
	spec.WarmProcesses = []openapi.WarmProcess{{
		Name: new("browser"), Type: "cmd", Command: []string{"/usr/local/bin/s0-browser"}, RestartOnClaim: new(false),
		Probes: serving("/json/version", 9222),
	}}
	return spec
}

// interpreterSpec runs Jupyter kernels behind HTTP at localhost:49999.
func interpreterSpec() openapi.TemplateSpec {
	spec := builtinSpec("Jupyter kernels behind HTTP at localhost:49999, with numpy, pandas and matplotlib", "500m", "2Gi")
	spec.Pool = &openapi.PoolSpec{MinIdle: 0, MaxIdle: 2}
	spec.WarmProcesses = []openapi.WarmProcess{{
		Name: new("code-interpreter"), Type: "cmd", Command: []string{"/usr/local/bin/s0-code-interpreter"}, Cwd: new("/workspace"),
		Probes: serving("/health", 49999),
	}}
	return spec
}

func builtinSpec(description, cpu, memory string) openapi.TemplateSpec {
	return openapi.TemplateSpec{
		Description:   &description,
		MainContainer: openapi.ContainerSpec{Resources: openapi.ResourceSpec{CPU: &cpu, Memory: &memory}},
	}
}

// serving probes a server that may take a minute to begin.
func serving(path string, port openapi.Port) *openapi.WarmProcessProbes {
	return &openapi.WarmProcessProbes{
		Startup:   &openapi.Probe{HTTPGet: &openapi.HTTPProbe{Path: &path, Port: port}, PeriodSeconds: new(int32(2)), FailureThreshold: new(int32(45))},
		Readiness: &openapi.Probe{HTTPGet: &openapi.HTTPProbe{Path: &path, Port: port}, PeriodSeconds: new(int32(30))},
	}
}
