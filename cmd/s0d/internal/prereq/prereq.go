// Package prereq checks, before anything is started, that a machine can run s0,
// and says in one line each what is missing and how to get it.
//
// A check only looks: it changes nothing and needs no state.
package prereq

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"s0.run/cmd/s0d/internal/postgres"
	"s0.run/netd"
)

// minFree is what a first start needs: the image packed and unpacked, the
// database, room for the first sandboxes' files.
const minFree = 3 << 30

// Config says what to look for.
type Config struct {
	BinDir       string // of containerd, runsc, the shim and procd
	PostgresBin  string // "" finds it
	PostgresUser string
	ImageDir     string // an OCI layout; "" when images come from elsewhere
	DataDir      string
	Addresses    []string // host:port that must be free; none when s0 runs already
}

// A Result is one check's outcome.
type Result struct {
	Name   string
	Detail string // what was found, or what is wrong
	Fix    string // how to get it; empty when the check passed
}

// OK reports whether the check passed.
func (r Result) OK() bool { return r.Fix == "" }

// A Missing is everything that is missing.
type Missing []Result

func (m Missing) Error() string {
	lines := make([]string, len(m))
	for i, r := range m {
		lines[i] = fmt.Sprintf("%s: %s\n    %s", r.Name, r.Detail, r.Fix)
	}
	return "this machine can't run s0 yet:\n  " + strings.Join(lines, "\n  ")
}

// All runs every check. Checks that only root can do are left out for others.
func All(cfg Config) []Result {
	results := []Result{platform(), root(), memory(), disk(cfg.DataDir), overlay(), cgroups(), namespaces(), network()}
	for _, b := range []struct{ name, how string }{
		{"containerd", "make tools"}, {"runsc", "make tools"},
		{"containerd-shim-s0-v1", "make build"}, {"procd", "make build"},
	} {
		results = append(results, binary(cfg.BinDir, b.name, b.how))
	}
	results = append(results, database(cfg.PostgresBin), databaseUser(cfg.PostgresUser))
	if cfg.ImageDir != "" {
		results = append(results, image(cfg.ImageDir))
	}
	for _, a := range cfg.Addresses {
		results = append(results, address(a))
	}
	return results
}

// Check runs every check; the error, when there is one, is a [Missing].
func Check(cfg Config) error {
	var missing Missing
	for _, r := range All(cfg) {
		if !r.OK() {
			missing = append(missing, r)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return missing
}

func result(name, detail string, err error, fix string) Result {
	if err != nil {
		return Result{Name: name, Detail: err.Error(), Fix: fix}
	}
	return Result{Name: name, Detail: detail}
}

func platform() Result {
	var err error
	if runtime.GOOS != "linux" || (runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64") {
		err = fmt.Errorf("%s/%s is not supported", runtime.GOOS, runtime.GOARCH)
	}
	return result("platform", runtime.GOOS+"/"+runtime.GOARCH, err, "run s0 on Linux, amd64 or arm64")
}

func root() Result {
	var err error
	if os.Geteuid() != 0 {
		err = errors.New("not root")
	}
	return result("user", "root", err, "run it as root: sudo s0d …")
}

func memory() Result {
	const least = 1 << 30
	var info unix.Sysinfo_t
	err := unix.Sysinfo(&info)
	total := uint64(info.Totalram) * uint64(info.Unit)
	if err == nil && total < least {
		err = fmt.Errorf("%d MiB", total>>20)
	}
	return result("memory", fmt.Sprintf("%d MiB", total>>20), err, "give the machine at least 1 GiB")
}

func disk(dir string) Result {
	var st unix.Statfs_t
	at := existing(dir)
	err := unix.Statfs(at, &st)
	free := st.Bavail * uint64(st.Bsize)
	if err == nil && free < minFree {
		err = fmt.Errorf("%d MiB free in %s", free>>20, at)
	}
	return result("disk", fmt.Sprintf("%d GiB free in %s", free>>30, at), err, fmt.Sprintf("free at least %d GiB, or choose another place with --data-dir", minFree>>30))
}

// existing is the nearest parent of dir that exists.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// overlay loads the module where the kernel has it as one: it is listed among the
// filesystems only from then on, and the first mount would do the same.
func overlay() Result {
	err := hasFilesystem("overlay")
	if errors.Is(err, errNoFilesystem) && exec.Command("modprobe", "overlay").Run() == nil {
		err = hasFilesystem("overlay")
	}
	return result("overlayfs", "in the kernel", err, "use a kernel with CONFIG_OVERLAY_FS, and load its module: modprobe overlay")
}

var errNoFilesystem = errors.New("not in the kernel")

func hasFilesystem(name string) error {
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == name {
			return nil
		}
	}
	return errNoFilesystem
}

func cgroups() Result {
	unified := isCgroup2("/sys/fs/cgroup")
	if unified {
		return result("cgroups", "version 2", nil, "")
	}
	for _, controller := range []string{"memory", "cpu", "pids"} {
		if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", controller, "cgroup.procs")); err != nil {
			return result("cgroups", "", fmt.Errorf("neither version 2 nor the %s controller of version 1 is mounted", controller), "mount -t cgroup2 none /sys/fs/cgroup")
		}
	}
	return result("cgroups", "version 1", nil, "")
}

func isCgroup2(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

func namespaces() Result {
	for _, ns := range []string{"net", "mnt", "pid", "user"} {
		if _, err := os.Stat("/proc/self/ns/" + ns); err != nil {
			return result("namespaces", "", fmt.Errorf("the kernel has no %s namespaces", ns), "use a kernel with all namespaces; inside a container, run it privileged")
		}
	}
	return result("namespaces", "all", nil, "")
}

// network is tried by root alone.
func network() Result {
	var err error
	if os.Geteuid() == 0 {
		err = netd.Check()
	}
	return result("network policies", "BPF and nftables", err, "use a kernel from 5.9 on with CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_ACT, CONFIG_NET_CLS_BPF and nf_tables with its reject, ct and masq expressions")
}

func binary(dir, name, how string) Result {
	path := filepath.Join(dir, name)
	_, err := exec.LookPath(path)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("not in %s", dir)
	}
	return result(name, path, err, how+", or name the directory that has it with --bin-dir")
}

func database(dir string) Result {
	found, err := postgres.FindBinaries(dir)
	return result("PostgreSQL", found, err, "apt-get install postgresql, or name a server's directory with --postgres-bin")
}

func databaseUser(name string) Result {
	_, err := postgres.New(postgres.Config{User: name})
	return result("PostgreSQL's user", name, err, fmt.Sprintf("adduser --system --group %s, or name another with --postgres-user", name))
}

func image(dir string) Result {
	_, err := os.Stat(filepath.Join(dir, "index.json"))
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("no OCI layout in %s", dir)
	}
	return result("template image", dir, err, "make images, or name an image of a registry with --default-image")
}

func address(addr string) Result {
	l, err := net.Listen("tcp", addr)
	if err == nil {
		l.Close()
	}
	return result("address "+addr, "free", err, "stop what uses it, or choose another address with --listen or --registry-listen")
}
