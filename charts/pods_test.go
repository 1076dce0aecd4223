package charts

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"s0.run/internal/s0test/podtest"
)

// contain starts a container of its image, with the mounts, user and rights of its
// specification.
func (h *host) contain(spec, c map[string]any, volumes map[string]string) *program {
	h.t.Helper()
	name, user := fmt.Sprint(c["name"]), userOf(spec, c)
	ref := fmt.Sprint(c["image"])
	image, _, _ := strings.Cut(ref[strings.LastIndexByte(ref, '/')+1:], ":")
	var env []string
	for key, value := range h.env {
		env = append(env, key+"="+value)
	}
	return h.runs(name, podtest.Container{
		Image: podtest.Open(h.t, h.images, image), Command: h.expanded(c["command"]), Args: append(h.expanded(c["args"]), h.more[name]...),
		Env: env, User: user, Mounts: append(mountsOf(c, volumes), h.filesOf(name, user)...),
		Privileged: at(c, "securityContext", "privileged") == true, HostPID: spec["hostPID"] == true,
	})
}

func (h *host) runs(name string, c podtest.Container) *program {
	h.t.Helper()
	h.started++
	dir := filepath.Join(h.dir, "pods", fmt.Sprintf("%s-%d", name, h.started))
	h.must(os.MkdirAll(dir, 0o700))
	return h.follow(name, &program{dir: dir, cmd: c.Cmd(h.t, dir), again: func() *program { return h.runs(name, c) }})
}

// expanded are arguments in a container, where volumes are at their own paths.
func (h *host) expanded(args any) (all []string) {
	for _, a := range list(args) {
		all = append(all, h.argument(fmt.Sprint(a), nil))
	}
	return all
}

// userOf is a container's own, or its pod's; "" is its image's. Who names no group has
// that of root, as the image says of root.
func userOf(spec, c map[string]any) string {
	for _, from := range []any{c, spec} {
		if uid := at(from, "securityContext", "runAsUser"); uid != nil {
			gid, _ := at(from, "securityContext", "runAsGroup").(float64)
			return fmt.Sprintf("%v:%v", uid, gid)
		}
	}
	return ""
}

func mountsOf(c map[string]any, volumes map[string]string) (all []specs.Mount) {
	for _, m := range list(c["volumeMounts"]) {
		how := []string{"rbind", "rprivate"}
		if at(m, "mountPropagation") == "Bidirectional" {
			how[1] = "rshared"
		}
		if at(m, "readOnly") == true {
			how = append(how, "ro")
		}
		all = append(all, specs.Mount{Type: "bind", Source: volumes[fmt.Sprint(at(m, "name"))], Destination: fmt.Sprint(at(m, "mountPath")), Options: how})
	}
	return all
}

// filesOf are mounts of the host's files that a container is given, whose user may read them.
func (h *host) filesOf(container, user string) (all []specs.Mount) {
	h.t.Helper()
	for _, path := range h.files[container] {
		var uid, gid int
		if n, _ := fmt.Sscanf(user, "%d:%d", &uid, &gid); n == 2 && uid != 0 {
			h.must(os.Chown(path, uid, gid))
		}
		all = append(all, specs.Mount{Type: "bind", Source: path, Destination: path, Options: []string{"rbind", "rprivate"}})
	}
	return all
}

// socketOf is the one that a database's address names the directory of.
func socketOf(database string) string {
	for field := range strings.FieldsSeq(database) {
		if dir, ok := strings.CutPrefix(field, "host="); ok {
			return filepath.Join(dir, ".s.PGSQL.5432")
		}
	}
	return ""
}

// killed are the node's programs that are killed under a sandbox. With containerd's
// container its runtime kills what is in its control group, and where that is one of
// cgroup v1, shims are: they have a group of their own in cgroup v2 alone.
func (h *host) killed() []string {
	all := []string{"containerd", "noded", "netd", "vk"}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil && h.images != "" {
		return all[1:]
	}
	return all
}

// probe runs what tells a kubelet that a pod's containers are alive and ready.
func (h *host) probe(spec map[string]any, programs map[string]*program) error {
	for _, c := range list(spec["containers"]) {
		for _, kind := range []string{"startupProbe", "livenessProbe", "readinessProbe"} {
			var args []string
			for _, a := range list(at(c, kind, "exec", "command")) {
				args = append(args, fmt.Sprint(a))
			}
			if dir := programs[fmt.Sprint(at(c, "name"))].dir; len(args) > 0 && dir != "" {
				if err := podtest.Exec(dir, args...); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
