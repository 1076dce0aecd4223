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
	return errors.Join(append(errs, compareShared(live, traces))...)
}

// Live is what the node says it has: ids of free slots and of claimed sandboxes.
func (s *Stack) Live() (map[string]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(s.RunDir, "noded.sock"))
	}}
	defer transport.CloseIdleConnections()
	node := nodeapiconnect.NewNodeClient(&http.Client{Transport: transport}, "http://noded")
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
func (s *Stack) Traces() ([]Trace, error) {
	list := s.kernelTraces()
	files, err := s.files()
	if err != nil {
		return nil, err
	}
	objects, err := s.containerdObjects()
	if err != nil {
		return nil, err
	}
	links, err := s.links()
	if err != nil {
		return nil, err
	}
	return slices.Concat(list, files, objects, links), nil
}

// infrastructure is what a stopped instance may leave: made once for the node,
// however many sandboxes come and go.
var infrastructure = []string{"_dataplane", "null-netns"}

// Leftovers lists what a stopped stack has left that it should not have: in the
// kernel, among the files, and in containerd's memory.
func (s *Stack) Leftovers() []string {
	var left []string
	found := s.kernelTraces()
	for _, list := range []func() ([]Trace, error){s.files, s.storedObjects, s.links} {
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

func (s *Stack) trace(kind, name string) Trace {
	return Trace{Kind: kind, Name: name, ID: s.idPattern().FindString(name)}
}

func (s *Stack) idPattern() *regexp.Regexp {
	return regexp.MustCompile(regexp.QuoteMeta(s.Cluster) + "-[a-z2-7]{26}")
}

func (s *Stack) kernelTraces() []Trace {
	return slices.Concat(s.processes(), s.mounts(), s.cgroups())
}

// processes are those of sandboxes; the server's own children are not listed.
func (s *Stack) processes() []Trace {
	var all []Trace
	dirs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range dirs {
		cmdline, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(cmdline, []byte(filepath.Dir(s.RunDir)+"/")) {
			continue
		}
		args := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
		kind := programKind(args)
		if kind == "" {
			continue
		}
		t := s.trace(kind, strings.Join(args, " "))
		if kind == "shim" {
			t.ID = "" // it serves a group; its id is only that of the group's first
		}
		t.Name = filepath.Base(filepath.Dir(path)) + " " + filepath.Base(args[0]) + " " + t.ID
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

func (s *Stack) mounts() []Trace {
	raw, _ := os.ReadFile("/proc/self/mountinfo")
	var all []Trace
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], filepath.Dir(s.RunDir)+"/") {
			all = append(all, s.trace("mount", f[4]))
		}
	}
	return all
}

func (s *Stack) cgroups() []Trace {
	var all []Trace
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		parents, _ := filepath.Glob(filepath.Join(pattern, s.CgroupParent))
		for _, parent := range parents {
			_ = filepath.WalkDir(parent, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() && path != parent {
					all = append(all, s.trace("cgroup", path))
				}
				return nil // groups come and go while we look
			})
		}
	}
	return all
}

// files are those whose names tell a sandbox, below both of the stack's roots.
func (s *Stack) files() ([]Trace, error) {
	var all []Trace
	id := s.idPattern()
	for _, root := range []string{s.RunDir, s.DataDir} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) { // it went while we looked
				return nil
			}
			if err != nil {
				return err
			}
			if id.MatchString(d.Name()) {
				all = append(all, s.trace("file", path))
				if d.IsDir() {
					return fs.SkipDir
				}
			}
			if d.IsDir() && skipped[d.Name()] {
				return fs.SkipDir
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// skipped directories hold root file systems, the database and logs: large, and
// nothing in them is named by us.
var skipped = map[string]bool{"snapshots": true, "cluster": true, "logs": true, "registry": true, "rootfs": true}

// containerdObjects asks containerd, with its own client.
func (s *Stack) containerdObjects() ([]Trace, error) {
	var all []Trace
	for kind, args := range map[string][]string{
		"container": {"containers", "list", "-q"},
		"task":      {"tasks", "list", "-q"},
		"snapshot":  {"snapshots", "list"},
		"lease":     {"leases", "list", "-q"},
	} {
		cmd := exec.Command(filepath.Join(s.bin, "ctr"), append([]string{"-a", filepath.Join(s.RunDir, "containerd", "containerd.sock"), "-n", "s0"}, args...)...)
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("ctr %s: %w", strings.Join(args, " "), err)
		}
		for line := range strings.Lines(string(out)) {
			f := strings.Fields(line)
			if len(f) == 0 || (kind == "snapshot" && !slices.Contains(f, "Active")) { // committed ones are the image's
				continue
			}
			all = append(all, s.trace(kind, f[0]))
		}
	}
	return all, nil
}

// links lists the host ends of veths, by the aliases that name their sandboxes,
// in the node's data-plane namespace.
func (s *Stack) links() ([]Trace, error) {
	namespaces, err := s.dataplanes()
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
			if l.Type() == "veth" {
				all = append(all, Trace{Kind: "link", Name: l.Attrs().Name + " " + l.Attrs().Alias, ID: s.idPattern().FindString(l.Attrs().Alias)})
			}
		}
	}
	return all, nil
}

func (s *Stack) dataplanes() ([]string, error) {
	var found []string
	err := filepath.WalkDir(s.RunDir, func(path string, d fs.DirEntry, err error) error {
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
func (s *Stack) Pids(kind, id string) []int {
	var pids []int
	for _, t := range s.processes() {
		if t.Kind == kind && t.ID == id {
			pids = append(pids, t.pid())
		}
	}
	return pids
}
