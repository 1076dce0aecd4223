// Package templates checks template specs, works out what their slots are made
// from, and keeps every template in memory for claims.
//
// The catalogue is a view of the store's templates: reloaded whenever one
// changed anywhere, and asked twice before a template is called unknown. The
// package stores nothing itself and starts nothing; its owner calls
// [Catalog.Load] when the store says that templates changed.
package templates

import (
	"fmt"
	"maps"

	"github.com/google/uuid"

	"s0.run/api/internal/openapi"
	"s0.run/api/internal/quantity"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/imageref"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
)

// Template is a stored template and what its slots are made from.
type Template struct {
	Row     store.Template
	Spec    openapi.TemplateSpec
	Slot    sandbox.Spec
	PoolKey string
	MinIdle int32
	MaxIdle int32 // 0: no slots are kept

	// Unavailable says why nothing can be made from the template now; nil: it can.
	Unavailable *errdefs.Error
}

// Public reports whether every team sees the template.
func (t *Template) Public() bool { return t.Row.TeamID == nil }

// PinnedImage is the image that slots are made from, by digest; nil while only a
// tag is known.
func (t *Template) PinnedImage() *string {
	ref, err := imageref.Parse(t.Spec.MainContainer.Image)
	if err != nil {
		return nil
	}
	if t.Row.Digest != "" && ref.Digest == "" {
		ref = ref.Pinned(t.Row.Digest)
	}
	if ref.Digest == "" {
		return nil
	}
	return new(ref.String())
}

// OfPool reports whether a pool's key belongs to the template, in whatever
// version of its spec.
func (t *Template) OfPool(key string) bool { return nodeapi.PoolFamily(key) == t.Row.ID.String() }

// TTL is the ttl of a claim that asks for one, or for none with nil; 0 is no end.
func (t *Template) TTL(asked *int32) (int32, error) {
	if asked != nil {
		return *asked, t.CheckTTL(*asked)
	}
	l := t.Spec.Lifecycle
	if l == nil {
		return 0, nil
	}
	if ttl := value(l.DefaultTTL); ttl > 0 {
		return ttl, nil
	}
	return value(l.MaxTTL), nil
}

// CheckTTL holds a ttl, of a claim or of a change, against the template's greatest.
func (t *Template) CheckTTL(ttl int32) error {
	l := t.Spec.Lifecycle
	if l == nil || value(l.MaxTTL) == 0 || ttl > 0 && ttl <= *l.MaxTTL {
		return nil
	}
	return errdefs.New(errdefs.InvalidArgument, "ttl: template %s allows 1 to %d seconds", t.Row.TemplateID, *l.MaxTTL)
}

// poolKey is the key of the pool of one version of a template; see
// [nodeapi.PoolFamily].
func poolKey(id uuid.UUID, slot sandbox.Spec) string { return id.String() + ":" + slot.Hash() }

// bytesPerCPU is the contract's ratio of memory to CPU.
const bytesPerCPU = 4 << 30

// CPUFor is the CPU that goes with an amount of memory, in thousandths of a core.
func CPUFor(memoryBytes int64) int64 { return max(1, memoryBytes*1000/bytesPerCPU) }

const defaultDisk = "8Gi"

// slotSpec works out what a slot of a template is made from.
func slotSpec(spec *openapi.TemplateSpec) (sandbox.Spec, error) {
	memory, cpu, err := resources(spec.MainContainer.Resources)
	if err != nil {
		return sandbox.Spec{}, err
	}
	disk := defaultDisk
	if s := spec.MainContainer.Resources.EphemeralStorage; s != nil {
		disk = *s
	}
	diskBytes, err := quantity.Memory(disk)
	if err != nil {
		return sandbox.Spec{}, fmt.Errorf("ephemeralStorage: %w", err)
	}
	env := map[string]string{}
	for _, e := range spec.MainContainer.Env {
		env[e.Name] = e.Value
	}
	maps.Copy(env, spec.EnvVars)
	processes, err := warmProcesses(spec)
	if err != nil {
		return sandbox.Spec{}, err
	}
	slot := sandbox.Spec{
		Image: spec.MainContainer.Image, Env: env, MemoryBytes: memory, CPUMillis: cpu, DiskBytes: diskBytes, RuntimeClass: classOf(spec),
		Warm: processes,
	}
	return slot, slot.Validate()
}

// resources reads memory and CPU; either follows from the other.
func resources(r openapi.ResourceSpec) (memory, cpu int64, err error) {
	if r.Memory != nil {
		if memory, err = quantity.Memory(*r.Memory); err != nil {
			return 0, 0, fmt.Errorf("memory: %w", err)
		}
	}
	if r.CPU != nil {
		if cpu, err = quantity.CPU(*r.CPU); err != nil {
			return 0, 0, fmt.Errorf("cpu: %w", err)
		}
	}
	switch {
	case r.Memory == nil && r.CPU == nil:
		return 0, 0, fmt.Errorf("memory is required")
	case memory > sandbox.MaxMemoryBytes || cpu > CPUFor(sandbox.MaxMemoryBytes): // before anything is multiplied
		return 0, 0, fmt.Errorf("want at most %s of memory and %s of cpu", quantity.FormatMemory(sandbox.MaxMemoryBytes), quantity.FormatCPU(CPUFor(sandbox.MaxMemoryBytes)))
	case r.Memory == nil:
		memory = cpu * bytesPerCPU / 1000
	case r.CPU == nil:
		cpu = CPUFor(memory)
	}
	if memory <= 0 || cpu <= 0 {
		return 0, 0, fmt.Errorf("memory and cpu must be greater than 0")
	}
	if apart := memory - cpu*bytesPerCPU/1000; apart >= bytesPerCPU/1000 || apart <= -bytesPerCPU/1000 {
		return 0, 0, fmt.Errorf("memory must be cpu × 4Gi: %s of cpu go with %s", quantity.FormatCPU(cpu), quantity.FormatMemory(cpu*bytesPerCPU/1000))
	}
	return memory, cpu, nil
}
