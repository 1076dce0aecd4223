package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// peers measures what our figures stand beside: the same image under the plain
// tools, in the same run.
type peers struct {
	binDir string // runsc, ctr, containerd-shim-runc-v2
	socket string // containerd's
	dir    string // scratch
}

// namespace is where noded keeps the image in containerd.
const namespace = "s0"

// timed runs a command n times and returns what each took.
func timed(ctx context.Context, n int, command func(i int) *exec.Cmd) ([]time.Duration, error) {
	var took []time.Duration
	for i := range n {
		cmd := command(i)
		begin := time.Now()
		if err := cmd.Run(); err != nil {
			return nil, fmt.Errorf("%v: %w", cmd.Args, err)
		}
		took = append(took, time.Since(begin))
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return took, nil
}

func (p peers) ctr(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(p.binDir, "ctr"), append([]string{"-a", p.socket, "-n", namespace}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+p.binDir+":"+os.Getenv("PATH"))
	return cmd
}

func (p peers) runsc(ctx context.Context, args ...string) *exec.Cmd {
	global := []string{"--root", filepath.Join(p.dir, "runsc"), "--network=none", "--platform=systrap", "--ignore-cgroups", "--overlay2=root:dir=" + p.dir}
	cmd := exec.CommandContext(ctx, filepath.Join(p.binDir, "runsc"), append(global, args...)...)
	cmd.Dir = p.dir
	return cmd // no stdio: a detached sandbox keeps what it is given
}

// measure runs all of them n times over the image's own root.
func (p peers) measure(ctx context.Context, n int) (rows []row, err error) {
	image, err := p.image(ctx)
	if err != nil {
		return nil, err
	}
	rootfs := filepath.Join(p.dir, "rootfs")
	if err := os.MkdirAll(rootfs, 0o755); err != nil {
		return nil, err
	}
	if err := p.mount(ctx, rootfs); err != nil {
		return nil, err
	}
	defer func() {
		if e := p.unmount(context.WithoutCancel(ctx), rootfs); e != nil && err == nil {
			err = e
		}
	}()
	ctrRun := func(ctx context.Context, n int) (row, error) { return p.ctrRun(ctx, image, n) }
	for _, measure := range []func(context.Context, int) (row, error){p.runscRun, p.runscExec, ctrRun} {
		r, err := measure(ctx, n)
		if err != nil {
			return nil, err
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// rootKey names our snapshot over the image's.
const rootKey = "bench-rootfs"

// mount mounts a snapshot of the image. Not with `ctr images mount`, which
// leaves a mount of containerd's own behind.
func (p peers) mount(ctx context.Context, target string) error {
	list, err := p.ctr(ctx, "snapshots", "list").Output()
	if err != nil {
		return fmt.Errorf("listing snapshots: %w", err)
	}
	for line := range strings.Lines(string(list)) {
		f := strings.Fields(line)
		if len(f) == 0 || f[len(f)-1] != "Committed" {
			continue
		}
		command, err := p.ctr(ctx, "snapshots", "prepare", "--target", target, rootKey, f[0]).Output()
		if err != nil {
			return fmt.Errorf("preparing a snapshot of %s: %w", f[0], err)
		}
		if out, err := exec.CommandContext(ctx, "sh", "-c", string(command)).CombinedOutput(); err != nil {
			return fmt.Errorf("mounting %s: %w: %s", f[0], err, out)
		}
		return nil
	}
	return fmt.Errorf("containerd holds no committed snapshot")
}

func (p peers) unmount(ctx context.Context, target string) error {
	if out, err := exec.CommandContext(ctx, "umount", target).CombinedOutput(); err != nil {
		return fmt.Errorf("unmounting %s: %w: %s", target, err, out)
	}
	if err := p.ctr(ctx, "snapshots", "delete", rootKey).Run(); err != nil {
		return fmt.Errorf("deleting the snapshot: %w", err)
	}
	return nil
}

// image is the one image that containerd holds, the default template's.
func (p peers) image(ctx context.Context) (string, error) {
	out, err := p.ctr(ctx, "images", "list", "-q").Output()
	if err != nil {
		return "", fmt.Errorf("listing images: %w", err)
	}
	for ref := range strings.Lines(string(out)) {
		return strings.TrimSpace(ref), nil
	}
	return "", fmt.Errorf("containerd holds no image")
}

func (p peers) bundle(args ...string) error {
	spec := map[string]any{
		"ociVersion": "1.0.2",
		"root":       map[string]any{"path": "rootfs", "readonly": true},
		"process": map[string]any{"args": args, "cwd": "/", "user": map[string]int{"uid": 0, "gid": 0},
			"env": []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}},
		"mounts": []map[string]any{{"destination": "/proc", "type": "proc", "source": "proc"}},
		"linux":  map[string]any{"namespaces": []map[string]string{{"type": "pid"}, {"type": "mount"}, {"type": "network"}}},
	}
	b, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(p.dir, "config.json"), b, 0o600)
}

func (p peers) runscRun(ctx context.Context, n int) (row, error) {
	if err := p.bundle("true"); err != nil {
		return row{}, err
	}
	took, err := timed(ctx, n, func(i int) *exec.Cmd { return p.runsc(ctx, "run", "bench-run-"+strconv.Itoa(i)) })
	return row{name: "beside: `runsc run` of true, to its end", load: "1 client", unit: "ms", samples: milliseconds(took)}, err
}

func (p peers) runscExec(ctx context.Context, n int) (_ row, err error) {
	if err := p.bundle("sleep", "3600"); err != nil {
		return row{}, err
	}
	const id = "bench-exec"
	if err := p.runsc(ctx, "run", "-detach", id).Run(); err != nil {
		return row{}, fmt.Errorf("runsc run -detach: %w", err)
	}
	defer func() {
		if e := p.runsc(context.WithoutCancel(ctx), "delete", "-force", id).Run(); e != nil && err == nil {
			err = fmt.Errorf("runsc delete: %w", e)
		}
	}()
	took, err := timed(ctx, n, func(int) *exec.Cmd { return p.runsc(ctx, "exec", id, "true") })
	return row{name: "beside: `runsc exec` of true", load: "1 client", unit: "ms", samples: milliseconds(took)}, err
}

func (p peers) ctrRun(ctx context.Context, image string, n int) (row, error) {
	took, err := timed(ctx, n, func(i int) *exec.Cmd {
		return p.ctr(ctx, "run", "--rm", "--runtime", "io.containerd.runc.v2", image, "bench-runc-"+strconv.Itoa(i), "true")
	})
	return row{name: "beside: `ctr run` with runc of true", load: "1 client", unit: "ms", samples: milliseconds(took)}, err
}
