// Package noop stands in for everything that package lifecycle drives: a
// runtime, images, networks and control groups that exist in memory alone, with
// a goroutine in each "sandbox" that dials the slot's socket and answers like a
// procd that can do nothing.
//
// It is for tests of the lifecycle and for load tests of what is above noded. It
// isolates nothing and runs nothing.
package noop

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"s0.run/internal/nodeapi"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/cgroup"
	"s0.run/noded/internal/lifecycle"
	"s0.run/noded/internal/netns"
)

// Node is all of it. It outlives the managers that use it, as a machine does.
type Node struct {
	// Fault, if set, is asked before each effect, by its name ("runtime.Start",
	// "network.Remove", …), and may refuse it. It is set before first use.
	Fault func(effect string, id sandbox.ID) error
	// Handler, if set, answers what a sandbox's procd is asked beyond the
	// handshake. It is set before first use.
	Handler http.Handler

	// Unhealthy: warm processes are not ready until SetWarm says so. It is set
	// before first use.
	Unhealthy bool

	exits chan lifecycle.Exit

	version atomic.Pointer[string] // of the runtime; nil: the first

	mu         sync.Mutex
	containers map[sandbox.ID]*process
	remains    map[sandbox.ID]bool // those of which the runtime has files
	networks   map[sandbox.ID]netns.Slot
	groups     map[sandbox.ID]cgroup.Limits
}

// New makes an empty machine.
func New() *Node {
	return &Node{
		exits:      make(chan lifecycle.Exit, 1024),
		containers: map[sandbox.ID]*process{}, remains: map[sandbox.ID]bool{}, networks: map[sandbox.ID]netns.Slot{}, groups: map[sandbox.ID]cgroup.Limits{},
	}
}

// Close ends every sandbox, as a power cut would.
func (n *Node) Close() {
	n.mu.Lock()
	all := n.containers
	n.containers, n.remains = map[sandbox.ID]*process{}, map[sandbox.ID]bool{}
	n.mu.Unlock()
	for _, p := range all {
		p.end()
	}
	for _, p := range all {
		<-p.done
	}
}

func (n *Node) fault(effect string, id sandbox.ID) error {
	if n.Fault == nil {
		return nil
	}
	return n.Fault(effect, id)
}

// Left names everything that exists, for a test to compare with what should.
func (n *Node) Left() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []string
	for id := range n.containers {
		all = append(all, fmt.Sprint("container ", id))
	}
	for id := range n.remains {
		if n.containers[id] == nil { // else they are no leftover
			all = append(all, fmt.Sprint("remains ", id))
		}
	}
	for id, s := range n.networks {
		all = append(all, fmt.Sprint("network ", id, " ", s.Index))
	}
	for id := range n.groups {
		all = append(all, fmt.Sprint("group ", id))
	}
	return all
}

// Runtime is a lifecycle.Runtime.
type Runtime struct{ *Node }

// Start implements lifecycle.Runtime.
func (r Runtime) Start(ctx context.Context, c lifecycle.Container) error {
	if err := errors.Join(ctx.Err(), r.fault("runtime.Start", c.ID)); err != nil {
		return err
	}
	p, err := r.begin(c)
	if err == nil && r.fault("process.Live", c.ID) != nil { // it is taken up, and ends by itself
		p.kill()
		r.exits <- lifecycle.Exit{ID: c.ID, Reason: "killed"}
	}
	return err
}

func (r Runtime) begin(c lifecycle.Container) (*process, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.containers[c.ID] != nil {
		return nil, fmt.Errorf("container %s exists", c.ID)
	}
	if c.Checkpoint != "" {
		if saved, err := r.Saved(c.Checkpoint); !saved {
			return nil, fmt.Errorf("no image in %s: %w", c.Checkpoint, err)
		}
	}
	p := startProcess(c.SlotDir, r.Handler, newWarmth(!r.Unhealthy))
	p.begun = c.Checkpoint
	r.containers[c.ID], r.remains[c.ID] = p, true
	return p, nil
}

// Remove implements lifecycle.Runtime.
func (r Runtime) Remove(_ context.Context, id sandbox.ID) error {
	if err := r.fault("runtime.Remove", id); err != nil {
		return err
	}
	r.mu.Lock()
	p := r.containers[id]
	delete(r.containers, id)
	if p != nil && !p.taskless.Load() { // else the shim that would do that is dead
		delete(r.remains, id)
	}
	r.mu.Unlock()
	if p != nil {
		p.kill()
	}
	return nil
}

// List implements lifecycle.Runtime.
func (r Runtime) List(context.Context) ([]lifecycle.Status, error) {
	if err := r.fault("runtime.List", ""); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []lifecycle.Status
	for id, p := range r.containers {
		all = append(all, lifecycle.Status{ID: id, Ended: !p.alive() && !p.taskless.Load(), Taskless: p.taskless.Load()})
	}
	return all, nil
}

// Remains implements lifecycle.Runtime.
func (r Runtime) Remains() ([]sandbox.ID, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.remains)), r.fault("runtime.Remains", "")
}

// RemoveRemains implements lifecycle.Runtime.
func (r Runtime) RemoveRemains(id sandbox.ID) error {
	if err := r.fault("runtime.RemoveRemains", id); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.containers[id] != nil {
		return fmt.Errorf("container %s exists", id)
	}
	delete(r.remains, id)
	return nil
}

// Leave has the runtime keep files of a sandbox, as one whose shim died does.
func (r Runtime) Leave(id sandbox.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.remains[id] = true
}

// Exits implements lifecycle.Runtime.
func (r Runtime) Exits() <-chan lifecycle.Exit { return r.exits }

// Kill ends a sandbox's process as a crash would. tell says whether anybody
// gets to know of it, other than through the broken connection.
func (r Runtime) Kill(id sandbox.ID, tell bool) {
	r.mu.Lock()
	p := r.containers[id]
	r.mu.Unlock()
	if p == nil {
		return
	}
	p.kill()
	if tell {
		r.exits <- lifecycle.Exit{ID: id, Reason: "killed"}
	}
}

// LoseTask ends a sandbox's process as the death of its shim does: nobody says so.
func (r Runtime) LoseTask(id sandbox.ID) {
	if p := r.process(id); p != nil {
		p.taskless.Store(true)
		p.kill()
	}
}

// Report delivers an exit, true or not.
func (r Runtime) Report(e lifecycle.Exit) { r.exits <- e }

// Env is the environment that the sandbox's procd has.
func (r Runtime) Env(id sandbox.ID) map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.containers[id]; p != nil && p.env.Load() != nil {
		return *p.env.Load()
	}
	return nil
}

// Keeps is what the sandbox's procd was told to keep of events; nil: nothing.
func (r Runtime) Keeps(id sandbox.ID) *procapi.EventsConfig {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.containers[id]; p != nil {
		return p.keeps.Load()
	}
	return nil
}

// StopKeeping makes the sandbox's procd keep no events, as one that was restored does.
func (r Runtime) StopKeeping(id sandbox.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.containers[id].keeps.Store(nil)
}

// Identity is what the sandbox's procd was told to be.
func (r Runtime) Identity(id sandbox.ID) procapi.Init {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.containers[id]; p != nil && p.init.Load() != nil {
		return *p.init.Load()
	}
	return procapi.Init{}
}

// Forget has the sandbox's procd know nothing, as one that was just started.
func (r Runtime) Forget(id sandbox.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.containers[id].init.Store(nil)
	r.containers[id].env.Store(nil)
}

// SetEnv changes it behind noded's back.
func (r Runtime) SetEnv(id sandbox.ID, env map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.containers[id].env.Store(&env)
}

// Deafen has the sandbox's procd do nothing that it is told any more.
func (r Runtime) Deafen(id sandbox.ID) { r.process(id).deaf.Store(true) }

// SetWarm has a sandbox's warm processes be healthy, or not, or fail.
func (r Runtime) SetWarm(id sandbox.ID, status procapi.WarmStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.containers[id].warm.set(status)
}

// Mounts are those that the sandbox's procd was last told of.
func (r Runtime) Mounts(id sandbox.ID) []procapi.Mount {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.containers[id]; p != nil && p.mounts.Load() != nil {
		return *p.mounts.Load()
	}
	return nil
}

// SetBusy has a sandbox's procd refuse to mount and unmount, or not.
func (r Runtime) SetBusy(id sandbox.ID, busy bool) { r.process(id).busy.Store(busy) }

// WarmRestarts counts how often the sandbox's procd was told to restart what a claim
// makes stale.
func (r Runtime) WarmRestarts(id sandbox.ID) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.containers[id].warm.restarts.Load()
}

// Images is a lifecycle.Images that has every image.
type Images struct{ *Node }

// Ensure implements lifecycle.Images.
func (i Images) Ensure(_ context.Context, ref string) (string, error) {
	return ref, i.fault("images.Ensure", "")
}

// Has implements slots.Images.
func (i Images) Has(context.Context, string) bool { return true }

// Progress implements slots.Images.
func (i Images) Progress(string) string { return "" }

// Resolve implements server.Images: every reference has a digest, always the same.
func (i Images) Resolve(_ context.Context, ref string) (string, error) {
	return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(ref))), i.fault("images.Resolve", "")
}

// Usage implements server.Images.
func (i Images) Usage(context.Context) (*nodeapi.ImageUsage, error) { return nil, nil }

// Run removes nothing.
func (i Images) Run(ctx context.Context, _ func() (refs []string, ok bool)) error {
	<-ctx.Done()
	return nil
}

// Disk is a lifecycle.Disk that has room.
type Disk struct{ *Node }

// Room implements lifecycle.Disk.
func (d Disk) Room() error { return d.fault("disk.Room", "") }

// RoomFor says the same.
func (d Disk) RoomFor(int64) error { return d.Room() }

// Crowded reports whether a test has said so.
func (d Disk) Crowded() bool { return d.fault("disk.Crowded", "") != nil }

// Network is a lifecycle.Network.
type Network struct{ *Node }

// Slot implements lifecycle.Network.
func (n Network) Slot(id sandbox.ID, index uint32) netns.Slot {
	return netns.Slot{ID: id, Index: index, IP: netip.AddrFrom4([4]byte{10, 77, byte(index >> 8), byte(index)})}
}

// MaxIndex implements lifecycle.Network.
func (n Network) MaxIndex() uint32 { return 1 << 15 }

// Path implements lifecycle.Network.
func (n Network) Path(id sandbox.ID) string { return "/noop/" + string(id) }

// Add implements lifecycle.Network.
func (n Network) Add(s netns.Slot) error {
	if err := n.fault("network.Add", s.ID); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, other := range n.networks {
		if other.Index == s.Index {
			return fmt.Errorf("index %d is %s's", s.Index, other.ID)
		}
	}
	n.networks[s.ID] = s
	return nil
}

// Remove implements lifecycle.Network.
func (n Network) Remove(s netns.Slot) error {
	if err := n.fault("network.Remove", s.ID); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.networks, s.ID)
	return nil
}

// List implements lifecycle.Network.
func (n Network) List() ([]netns.Slot, error) {
	if err := n.fault("network.List", ""); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []netns.Slot
	for _, s := range n.networks {
		all = append(all, s)
	}
	return all, nil
}

// Traffic implements stats.Traffic.
func (n Network) Traffic() (map[sandbox.ID]netns.Traffic, error) { return nil, nil }

// TrafficOf implements stats.Traffic.
func (n Network) TrafficOf(netns.Slot) (netns.Traffic, error) { return netns.Traffic{}, nil }

// Groups is a lifecycle.Groups.
type Groups struct{ *Node }

// Path implements lifecycle.Groups.
func (g Groups) Path(id sandbox.ID) string { return "/noop/" + string(id) }

// Create implements lifecycle.Groups.
func (g Groups) Create(id sandbox.ID, want cgroup.Limits) error {
	if err := g.fault("groups.Create", id); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.groups[id] = want
	return nil
}

// Set implements lifecycle.Groups.
func (g Groups) Set(id sandbox.ID, _, to cgroup.Limits) error {
	if err := g.fault("groups.Set", id); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, ok := g.groups[id]; !ok {
		return fmt.Errorf("no group %s", id)
	}
	g.groups[id] = to
	return nil
}

// Hurry implements lifecycle.Groups.
func (g Groups) Hurry(id sandbox.ID) error { return g.fault("groups.Hurry", id) }

// Calm implements lifecycle.Groups.
func (g Groups) Calm(id sandbox.ID) error { return g.fault("groups.Calm", id) }

// Limits is what a sandbox may use now.
func (g Groups) Limits(id sandbox.ID) cgroup.Limits {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.groups[id]
}

// Stats implements lifecycle.Groups.
func (g Groups) Stats(sandbox.ID) (cgroup.Stats, error) { return cgroup.Stats{}, nil }

// Processes implements stats.Groups.
func (g Groups) Processes(sandbox.ID) ([]int, error) { return nil, nil }

// Remove implements lifecycle.Groups.
func (g Groups) Remove(_ context.Context, id sandbox.ID) error {
	if err := g.fault("groups.Remove", id); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.groups, id)
	return nil
}

// List implements lifecycle.Groups.
func (g Groups) List() ([]sandbox.ID, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var all []sandbox.ID
	for id := range g.groups {
		all = append(all, id)
	}
	return all, nil
}
