package snapshots

import (
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/cpu"

	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
)

// Origin is what an image is bound to. Files need the same OCI image below them;
// processes and memory need all of it.
type Origin struct {
	Image   string `json:"image"`   // the OCI image whose root filesystem the files are changes of
	Runtime string `json:"runtime"` // with its version
	CPU     CPU    `json:"cpu"`
	Spec    string `json:"spec"` // digest of what of the OCI spec must not differ
}

// CPU is what a program may have found out about the machine's, and acted on.
type CPU struct {
	Arch     string   `json:"arch"`
	Features []string `json:"features"` // sorted
}

// validate lets no name pass that a message to a tenant could not bear.
func (c CPU) validate() error {
	if len(c.Features) > maxFeatures {
		return fmt.Errorf("more than %d features of a CPU", maxFeatures)
	}
	for _, f := range c.Features {
		if f == "" || len(f) > maxFeature || strings.Trim(f, "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
			return fmt.Errorf("%.32q is no feature of a CPU", f)
		}
	}
	return nil
}

// CheckFiles says why a sandbox of that origin can't start from the image's files, if it
// can't.
func (m Manifest) CheckFiles(on Origin) error {
	if content(m.Image) != content(on.Image) {
		return errdefs.WithCode(errdefs.Conflict, nodeapi.CodeImageDiffers,
			"the sandbox was saved on another container image than its template has now")
	}
	return nil
}

// content is the digest of a reference, which may name it in another registry; without one,
// the reference is all there is to compare.
func content(ref string) string { return ref[strings.LastIndexByte(ref, '@')+1:] }

// Check says why a sandbox of that origin can't start from the image with its memory, if
// it can't. Its code tells whether the image's files can be started from without.
func (m Manifest) Check(on Origin) error {
	if err := m.CheckFiles(on); err != nil {
		return err
	}
	switch {
	case !m.Memory:
		return memoryError("the image has no processes and no memory")
	case m.Runtime != on.Runtime:
		return memoryError("the sandbox was saved by another version of the sandbox runtime than its node has now")
	case m.CPU.Arch != on.CPU.Arch:
		return memoryError("the sandbox was saved on a machine with another kind of CPU")
	case len(missing(m.CPU.Features, on.CPU.Features)) > 0:
		return memoryError("the sandbox was saved on a CPU with features that this one lacks: %s", list(missing(m.CPU.Features, on.CPU.Features)))
	case m.Spec != on.Spec:
		return memoryError("the sandbox was saved with another configuration of its container than it would get now")
	}
	return nil
}

func memoryError(format string, args ...any) error {
	return errdefs.WithCode(errdefs.Conflict, nodeapi.CodeMemoryDiffers, format+"; its files can be resumed without its memory", args...)
}

// missing are the features that a lacks in b.
func missing(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(f string) bool { return slices.Contains(b, f) })
}

// list names a few, for a tenant to see.
func list(names []string) string {
	const few = 4
	if len(names) > few {
		names = append(names[:few:few], "…")
	}
	return strings.Join(names, ", ")
}

// HostCPU is this machine's.
func HostCPU() CPU {
	c := CPU{Arch: runtime.GOARCH}
	switch runtime.GOARCH {
	case "amd64":
		c.Features = features(reflect.ValueOf(cpu.X86))
	case "arm64":
		c.Features = features(reflect.ValueOf(cpu.ARM64))
	}
	return c
}

// features names the ones that are there: the fields Has… of x/sys/cpu.
func features(v reflect.Value) []string {
	var all []string
	for i := range v.NumField() {
		name, ok := strings.CutPrefix(v.Type().Field(i).Name, "Has")
		if ok && v.Field(i).Kind() == reflect.Bool && v.Field(i).Bool() {
			all = append(all, strings.ToLower(name))
		}
	}
	slices.Sort(all)
	return all
}
