package runtime

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
	"s0.run/internal/shimapi"
	"s0.run/noded/internal/images"
)

// What every sandbox gets, whoever's it is.
const (
	openFiles   = 65536 // RLIMIT_NOFILE
	defaultPids = 4096  // tasks on the host, where the spec names no limit
	cpuPeriod   = 100_000
	// oomScore has the kernel kill a sandbox before any daemon of ours. Raising
	// one's score needs no privilege.
	oomScore = 500
	// keptTmp makes /tmp part of the root filesystem: see mounts.
	keptTmp     = "/tmp/.s0"
	defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// capabilities are those of a container by everybody's defaults. In a gVisor
// sandbox they are capabilities of its own kernel, and mean nothing to the host's.
var capabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// spec describes the container to its runtime. Nothing in it is taken from an
// image but environment variables, and nothing from a tenant but limits.
func (r *Runtime) spec(c Container, img images.Image) *specs.Spec {
	s := &specs.Spec{
		Version:  specs.Version,
		Root:     &specs.Root{Path: "rootfs"},
		Hostname: c.Hostname,
		Process: &specs.Process{
			Args:        []string{procapi.Binary},
			Cwd:         "/",
			Env:         environment(img.Env, c.Spec.Env),
			Rlimits:     []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}}, // no core dumps (C05)
			OOMScoreAdj: new(oomScore),
		},
		Mounts: mounts(c),
		Linux: &specs.Linux{
			CgroupsPath: c.CgroupPath,
			Resources:   resources(c.Spec),
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.NetworkNamespace, Path: c.NetNS},
			},
			MaskedPaths: []string{
				"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
				"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi",
				"/sys/firmware", "/sys/devices/virtual/powercap",
			},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
	if c.PortalDir != "" {
		s.Linux.RootfsPropagation = "rslave"
	}
	r.specialize(s, c)
	return s
}

// specialize sets what differs between the runtime classes.
func (r *Runtime) specialize(s *specs.Spec, c Container) {
	caps := capabilities
	switch c.Spec.RuntimeClass {
	case sandbox.GVisor:
		// PID 1 bind-mounts volumes inside the sandbox.
		caps = append(slices.Clone(caps), "CAP_SYS_ADMIN")
		s.Annotations = r.annotations(c)
		// The sandbox's kernel keeps it; raising the host's may need a privilege.
		s.Process.Rlimits = append(s.Process.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_NOFILE", Soft: openFiles, Hard: openFiles})
	case sandbox.Runc:
		// The host's kernel is right below.
		s.Process.NoNewPrivileges = true
		s.Process.Capabilities = capabilitySets(caps) // the profile depends on them
		s.Linux.Seccomp = seccomp.DefaultProfile(s)
	case sandbox.Kata:
		// No socket of the host's leads into a virtual machine.
		s.Process.Args = append(s.Process.Args, procapi.GuestFlag)
	}
	s.Process.Capabilities = capabilitySets(caps)
}

func capabilitySets(caps []string) *specs.LinuxCapabilities {
	return &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
}

// annotations are the words of our shim.
func (r *Runtime) annotations(c Container) map[string]string {
	a := map[string]string{
		shimapi.RunscAnnotation: r.cfg.Runsc,
		shimapi.RootAnnotation:  r.cfg.RunscRoot,
	}
	if c.Group != "" {
		a[shimapi.GroupAnnotation] = c.Group
	}
	if overlaid(c) {
		a[shimapi.OverlayDirAnnotation] = c.OverlayDir
		if c.Spec.DiskBytes > 0 {
			a[shimapi.OverlaySizeAnnotation] = strconv.FormatInt(c.Spec.DiskBytes, 10)
		}
	}
	return a
}

// mounts are the container's filesystems beside its root.
func mounts(c Container) []specs.Mount {
	all := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", fmt.Sprintf("size=%d", c.Spec.MemoryBytes/2)}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: procapi.Dir, Type: "bind", Source: c.SlotDir, Options: []string{"bind", "ro", "nosuid", "nodev", "noexec"}},
		{Destination: procapi.Dir + "/bin", Type: "bind", Source: c.BinDir, Options: []string{"bind", "ro", "nosuid", "nodev"}},
	}
	if c.PortalDir != "" {
		// What noded mounts below it on the host shows inside at once.
		all = append(all, specs.Mount{Destination: procapi.Portal, Type: "bind", Source: c.PortalDir, Options: []string{"rbind", "rslave", "nosuid", "nodev"}})
	}
	if c.Spec.RuntimeClass == sandbox.GVisor {
		// gVisor puts a tmpfs of its own over an empty /tmp, whose files no
		// filesystem snapshot keeps. A mount point inside makes /tmp not empty.
		all = append(all, specs.Mount{Destination: keptTmp, Type: "tmpfs", Source: "tmpfs", Options: []string{"ro", "size=4k", "mode=000"}})
	}
	return all
}

// resources are the limits. noded's own cgroup has them from the start; here they
// size what the runtime shows inside, and hold where the group is not there yet.
func resources(s sandbox.Spec) *specs.LinuxResources {
	pids := s.PidsLimit
	if pids == 0 {
		pids = defaultPids
	}
	period := uint64(cpuPeriod)
	return &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}}, // none but the runtime's own list
		Memory:  &specs.LinuxMemory{Limit: &s.MemoryBytes},
		CPU: &specs.LinuxCPU{
			Period: &period,
			Quota:  new(max(s.CPUMillis*cpuPeriod/1000, 1000)),
			Shares: new(uint64(max(s.CPUMillis*1024/1000, 2))),
		},
		Pids: &specs.LinuxPids{Limit: &pids},
	}
}

// environment is the image's, with the template's over it.
func environment(image []string, template map[string]string) []string {
	env := append([]string{defaultPath}, image...)
	for _, name := range slices.Sorted(maps.Keys(template)) {
		env = append(env, name+"="+template[name])
	}
	return lastOfEach(env)
}

// lastOfEach keeps the last value of each name, in the order of first mention.
func lastOfEach(env []string) []string {
	at := map[string]int{}
	var kept []string
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		if i, ok := at[name]; ok {
			kept[i] = e
			continue
		}
		at[name] = len(kept)
		kept = append(kept, e)
	}
	return kept
}
