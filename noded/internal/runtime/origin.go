package runtime

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs/pkg/errgrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"s0.run/internal/sandbox"
	"s0.run/noded/internal/snapshots"
)

const (
	// versionLabel is the runtime that a container was started with, which may be
	// another than is installed by now.
	versionLabel = "run.s0.noded/runtime"
	// versionTimeout bounds the question which version a runsc is.
	versionTimeout = 10 * time.Second
	// maxVersion bounds the answer.
	maxVersion = 256
)

// hostCPU is read once: it does not change under a running process.
var hostCPU = sync.OnceValue(snapshots.HostCPU)

// Origin is what an image of a running sandbox is bound to.
func (r *Runtime) Origin(ctx context.Context, id sandbox.ID) (snapshots.Origin, error) {
	c, err := r.client.ContainerService().Get(ctx, string(id))
	if err != nil {
		return snapshots.Origin{}, fmt.Errorf("container %s: %w", id, errgrpc.ToNative(err))
	}
	spec, err := specOf(c)
	if err != nil {
		return snapshots.Origin{}, fmt.Errorf("container %s: %w", id, err)
	}
	version := c.Labels[versionLabel]
	if version == "" { // started before there was the label
		if version, err = r.version.of(ctx, r.cfg.Runsc); err != nil {
			return snapshots.Origin{}, err
		}
	}
	return snapshots.Origin{Image: c.Image, Runtime: version, CPU: hostCPU(), Spec: digest(spec)}, nil
}

// Target is what an image must be bound to for c to start from it.
func (r *Runtime) Target(ctx context.Context, c Container) (snapshots.Origin, error) {
	img, err := r.image(ctx, c.Image)
	if err != nil {
		return snapshots.Origin{}, err
	}
	version, err := r.version.of(ctx, r.cfg.Runsc)
	if err != nil {
		return snapshots.Origin{}, err
	}
	return snapshots.Origin{Image: c.Image, Runtime: version, CPU: hostCPU(), Spec: digest(r.spec(c, img))}, nil
}

// labels are c's, and what it is started with. If that can't be found out now it is
// when it is asked for.
func (r *Runtime) labels(ctx context.Context, c Container) map[string]string {
	if c.Spec.RuntimeClass != sandbox.GVisor {
		return c.Labels
	}
	labels := maps.Clone(c.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	if version, err := r.version.of(ctx, r.cfg.Runsc); err == nil {
		labels[versionLabel] = version
	}
	return labels
}

func specOf(c containers.Container) (*specs.Spec, error) {
	if c.Spec == nil {
		return nil, fmt.Errorf("it has no spec")
	}
	var s specs.Spec
	return &s, json.Unmarshal(c.Spec.GetValue(), &s)
}

// digest is of what gVisor does not let differ between a save and a restore. What it
// does let differ, it must: an instance has paths, a name and limits of its own.
func digest(s *specs.Spec) string {
	fixed := specs.Spec{Version: s.Version, Mounts: slices.Clone(s.Mounts)}
	for i := range fixed.Mounts {
		fixed.Mounts[i].Source = ""
	}
	slices.SortFunc(fixed.Mounts, func(a, b specs.Mount) int { return cmp.Compare(a.Destination, b.Destination) })
	if p := s.Process; p != nil {
		process := *p
		process.Env = nil
		fixed.Process = &process
	}
	if l := s.Linux; l != nil {
		fixed.Linux = &specs.Linux{Seccomp: l.Seccomp, MaskedPaths: l.MaskedPaths, ReadonlyPaths: l.ReadonlyPaths}
		for _, n := range l.Namespaces {
			fixed.Linux.Namespaces = append(fixed.Linux.Namespaces, specs.LinuxNamespace{Type: n.Type})
		}
	}
	b, err := json.Marshal(fixed)
	if err != nil {
		panic("an OCI spec must marshal: " + err.Error())
	}
	return fmt.Sprintf("sha256:%x", sha256.Sum256(b))
}

// version remembers which version a runsc is, for as long as it is the same file.
type version struct {
	mu   sync.Mutex
	file os.FileInfo
	text string
}

func (v *version) of(ctx context.Context, path string) (string, error) {
	file, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if text := v.known(file); text != "" {
		return text, nil
	}
	text, err := askVersion(ctx, path)
	if err != nil {
		return "", fmt.Errorf("asking %s for its version: %w", path, err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.file, v.text = file, text
	return text, nil
}

func (v *version) known(file os.FileInfo) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.file == nil || !os.SameFile(v.file, file) || !v.file.ModTime().Equal(file.ModTime()) || v.file.Size() != file.Size() {
		return ""
	}
	return v.text
}

// askVersion reads the first line of the answer, "runsc version …".
func askVersion(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "", err
	}
	first, _, _ := bytes.Cut(out, []byte("\n"))
	if len(first) > maxVersion || !strings.HasPrefix(string(first), "runsc version ") {
		return "", fmt.Errorf("it says %.80q", first)
	}
	return strings.Replace(string(first), " version", "", 1), nil
}
