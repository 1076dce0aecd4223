package s0test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"s0.run/internal/nodeapi"
	"s0.run/internal/nodeapi/nodeapiconnect"
)

// A Machine is where everything of one instance of s0 is.
type Machine struct {
	Root             string // whatever it starts or mounts has a path below it
	DataDir, RunDir  string // both below Root
	Cluster          string // prefixes every sandbox id of this instance, and of no other
	CgroupParent     string
	NodeSocket       string
	ContainerdSocket string
	Namespace        string // of containerd
	BinDir           string // has ctr
}

// A Trace is one thing that the machine holds of a stack: seen in the kernel, in
// containerd or in the file system, never in a daemon's own words.
type Trace struct {
	Kind string // sentry, gofer, shim, mount, cgroup, link, container, task, snapshot, lease, file
	Name string
	ID   string // the sandbox that the name tells; empty for what belongs to the instance as a whole
}

func (t Trace) String() string { return t.Kind + " " + t.Name }

// pid is the process of a trace that is one: its name begins with it.
func (t Trace) pid() int {
	first, _, _ := strings.Cut(t.Name, " ")
	pid, err := strconv.Atoi(first)
	if err != nil {
		panic("no process: " + t.String())
	}
	return pid
}

// complete is what every live sandbox has; anything less is a broken sandbox
// that somebody still counts.
var complete = []string{"sentry", "gofer", "mount", "cgroup", "link", "container", "task", "snapshot"}

// CheckOwned waits until everything on the machine belongs to a sandbox or slot
// that the node knows, and each of those is whole. This is the oracle that tests
// end with: it finds leaks and losses alike.
func (s *Stack) CheckOwned() {
	s.t.Helper()
	s.Eventually("the machine to hold what the node knows, no more and no less", func() error {
		live, err := s.Live()
		if err != nil {
			return err
		}
		traces, err := s.Traces()
		if err != nil {
			return err
		}
		return compare(live, traces)
	})
}

func compare(live map[string]string, traces []Trace) error {
	var errs []error
	has := map[string]map[string]bool{}
	for _, t := range traces {
		if t.ID == "" {
			continue
		}
		if _, ok := live[t.ID]; !ok {
			errs = append(errs, fmt.Errorf("nobody's: %s", t))
			continue
		}
		if has[t.ID] == nil {
			has[t.ID] = map[string]bool{}
		}
		has[t.ID][t.Kind] = true
	}
	for id, what := range live {
		for _, kind := range complete {
			if !has[id][kind] {
				errs = append(errs, fmt.Errorf("%s %s has no %s", what, id, kind))
			}
		}
	}
	return errors.Join(append(errs, CompareShared(live, traces))...)
}

// Node is a client of the node API, until hangUp.
func (m *Machine) Node() (node nodeapiconnect.NodeClient, hangUp func()) {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", m.NodeSocket)
	}}
	return nodeapiconnect.NewNodeClient(&http.Client{Transport: transport}, "http://noded"), transport.CloseIdleConnections
}

// Live is what the node says it has: ids of free slots and of claimed sandboxes.
func (m *Machine) Live() (map[string]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	node, hangUp := m.Node()
	defer hangUp()
	stream, err := node.Watch(ctx, &nodeapi.WatchRequest{})
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	live := map[string]string{}
	for stream.Receive() {
		switch e := stream.Msg().GetEvent().(type) {
		case *nodeapi.Event_SlotFree:
			live[e.SlotFree.GetId()] = "slot"
		case *nodeapi.Event_Sandbox:
			live[e.Sandbox.GetId()] = "sandbox"
		case *nodeapi.Event_SlotTaken:
			delete(live, e.SlotTaken)
		case *nodeapi.Event_SandboxGone:
			delete(live, e.SandboxGone)
		case *nodeapi.Event_Synced:
			return live, nil
		}
	}
	return nil, fmt.Errorf("the node's stream ended before it was synced: %w", stream.Err())
}

// Traces lists what the machine holds of the stack while it runs.
func (m *Machine) Traces() ([]Trace, error) {
	list := m.kernelTraces()
	files, err := m.files()
	if err != nil {
		return nil, err
	}
	objects, err := m.containerdObjects()
	if err != nil {
		return nil, err
	}
	links, err := m.links()
	if err != nil {
		return nil, err
	}
	return slices.Concat(list, files, objects, links), nil
}

// infrastructure is what a stopped instance may leave: made once for the node,
// however many sandboxes come and go.
var infrastructure = []string{"_dataplane", "null-netns", "bpf", "portals", "base", "jfs"}

// Leftovers lists what a stopped stack has left that it should not have: in the
// kernel, among the files, and in containerd's memory.
func (m *Machine) Leftovers() []string {
	var left []string
	found := m.kernelTraces()
	for _, list := range []func() ([]Trace, error){m.files, m.storedObjects, m.links} {
		traces, err := list()
		if err != nil {
			left = append(left, err.Error())
		}
		found = append(found, traces...)
	}
	for _, t := range found {
		if !slices.Contains(infrastructure, filepath.Base(t.Name)) {
			left = append(left, t.String())
		}
	}
	return left
}

func (m *Machine) trace(kind, name string) Trace {
	return Trace{Kind: kind, Name: name, ID: m.idPattern().FindString(name)}
}

func (m *Machine) idPattern() *regexp.Regexp {
	return regexp.MustCompile(regexp.QuoteMeta(m.Cluster) + "-[a-z2-7]{26}")
}

func (m *Machine) kernelTraces() []Trace {
	return slices.Concat(m.processes(), m.mounts(), m.cgroups())
}

// processes are those of sandboxes; the server's own children are not listed.
func (m *Machine) processes() []Trace {
	var all []Trace
	dirs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range dirs {
		cmdline, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(cmdline, []byte(m.Root+"/")) {
			continue
		}
		args := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
		kind := programKind(args)
		if kind == "" {
			continue
		}
		t := m.trace(kind, strings.Join(args, " "))
		if kind == "shim" {
			t.ID = "" // it serves a group; its id is only that of the group's first
		}
		t.Name = strings.Join([]string{filepath.Base(filepath.Dir(path)), filepath.Base(args[0]), t.ID, args[len(args)-1]}, " ")
		all = append(all, t)
	}
	return all
}

func programKind(args []string) string {
	switch base := filepath.Base(args[0]); {
	case strings.HasPrefix(base, "containerd-shim"):
		return "shim"
	case slices.Contains(args, "boot"):
		return "sentry"
	case slices.Contains(args, "gofer"):
		return "gofer"
	case strings.HasPrefix(base, "runsc"):
		return "runsc"
	}
	return ""
}

func (m *Machine) mounts() []Trace {
	raw, _ := os.ReadFile("/proc/self/mountinfo")
	var all []Trace
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], m.Root+"/") {
			all = append(all, m.trace("mount", f[4]))
		}
	}
	return all
}

func (m *Machine) cgroups() []Trace {
	var all []Trace
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		parents, _ := filepath.Glob(filepath.Join(pattern, m.CgroupParent))
		for _, parent := range parents {
			_ = filepath.WalkDir(parent, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() && path != parent {
					all = append(all, m.trace("cgroup", path))
				}
				return nil // groups come and go while we look
			})
		}
	}
	return all
}

// files are those whose names tell a sandbox.
func (m *Machine) files() ([]Trace, error) {
	var all []Trace
	id := m.idPattern()
	err := filepath.WalkDir(m.Root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // it went while we looked
			return nil
		}
		if err != nil {
			return err
		}
		if id.MatchString(d.Name()) {
			all = append(all, m.trace("file", path))
			if d.IsDir() {
				return fs.SkipDir
			}
		}
		if d.IsDir() && skipped[d.Name()] {
			return fs.SkipDir
		}
		return nil
	})
	return all, err
}

// skipped directories hold root file systems, the database and logs: large, and
// nothing in them is named by us.
var skipped = map[string]bool{"snapshots": true, "cluster": true, "logs": true, "registry": true, "rootfs": true}

// containerdObjects asks containerd, with its own client.
func (m *Machine) containerdObjects() ([]Trace, error) {
	var all []Trace
	for kind, args := range map[string][]string{
		"container": {"containers", "list", "-q"},
		"task":      {"tasks", "list", "-q"},
		"snapshot":  {"snapshots", "list"},
		"lease":     {"leases", "list", "-q"},
	} {
		cmd := exec.Command(filepath.Join(m.BinDir, "ctr"), append([]string{"-a", m.ContainerdSocket, "-n", m.Namespace}, args...)...)
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("ctr %s: %w", strings.Join(args, " "), err)
		}
		for line := range strings.Lines(string(out)) {
			f := strings.Fields(line)
			if len(f) == 0 || (kind == "snapshot" && !slices.Contains(f, "Active")) { // committed ones are the image's
				continue
			}
			all = append(all, m.trace(kind, f[0]))
		}
	}
	return all, nil
}

// links lists the host ends of veths, by the aliases that name their sandboxes,
// in the node's data-plane namespace.
// netdLinks are the data plane's own, not a sandbox's.
var netdLinks = []string{"up0", "hold0", "hold1"}

func (m *Machine) links() ([]Trace, error) {
	namespaces, err := m.dataplanes()
	if err != nil {
		return nil, err
	}
	var all []Trace
	for _, path := range namespaces {
		found, err := linksIn(path)
		if err != nil {
			return nil, fmt.Errorf("links in %s: %w", path, err)
		}
		for _, l := range found {
			if l.Type() == "veth" && !slices.Contains(netdLinks, l.Attrs().Name) {
				all = append(all, Trace{Kind: "link", Name: l.Attrs().Name + " " + l.Attrs().Alias, ID: m.idPattern().FindString(l.Attrs().Alias)})
			}
		}
	}
	return all, nil
}

func (m *Machine) dataplanes() ([]string, error) {
	var found []string
	err := filepath.WalkDir(m.Root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == "_dataplane" {
			found = append(found, path)
		}
		if err == nil && d.IsDir() && skipped[d.Name()] {
			return fs.SkipDir
		}
		return nil
	})
	return found, err
}

// linksIn lists a namespace's links from a thread that ends there.
func linksIn(path string) ([]netlink.Link, error) {
	type answer struct {
		links []netlink.Link
		err   error
	}
	done := make(chan answer)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- answer{err: err}
			return
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- answer{err: err}
			return
		}
		links, err := netlink.LinkList()
		done <- answer{links, err}
	}()
	a := <-done
	return a.links, a.err
}

// Sandboxes are the ids of claimed sandboxes that the node has, sorted.
func (s *Stack) Sandboxes() []string {
	s.t.Helper()
	live, err := s.Live()
	if err != nil {
		s.t.Fatalf("asking the node: %v", err)
	}
	maps.DeleteFunc(live, func(_, what string) bool { return what != "sandbox" })
	return slices.Sorted(maps.Keys(live))
}

// Pids are the processes of one kind of a sandbox, for tests that hurt it.
func (m *Machine) Pids(kind, id string) []int {
	var pids []int
	for _, t := range m.processes() {
		if t.Kind == kind && t.ID == id {
			pids = append(pids, t.pid())
		}
	}
	return pids
}
