package bpf

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// A grace is how the package waits until no program uses any more what the tables
// no longer lead to. A program looks up one thing after the other: between two of
// its lookups a policy may have taken another one's place, and were the old one's
// entries gone by then, or worse, some of them, the packet would be judged by neither.
//
// A write to a map of maps returns after every program has ended that was running at
// the time (maybe_wait_bpf_programs in the kernel's kernel/bpf/syscall.c, since 4.20).
type grace struct{ outer, inner *ebpf.Map }

func newGrace() (*grace, error) {
	spec := &ebpf.MapSpec{Name: "s0_grace_of", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	inner, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, fmt.Errorf("grace periods: %w", err)
	}
	outer, err := ebpf.NewMap(&ebpf.MapSpec{Name: "s0_grace", Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: spec})
	if err != nil {
		inner.Close()
		return nil, fmt.Errorf("grace periods: %w", err)
	}
	return &grace{outer: outer, inner: inner}, nil
}

// wait takes some 20 ms.
func (g *grace) wait() error { return g.outer.Put(uint32(0), g.inner) }

func (g *grace) close() {
	g.outer.Close()
	g.inner.Close()
}

// leave has a generation's entries removed once no program uses them. What can't be
// removed stays for the next process to find. It is called with mu held.
func (k *Kernel) leave(e *entries) {
	k.leaving = append(k.leaving, e)
	k.leavingSize += e.size()
	select {
	case k.left <- struct{}{}:
	default:
	}
}

// removeLeaving removes what leaves until the Kernel is closed.
func (k *Kernel) removeLeaving(left <-chan struct{}) {
	defer close(k.removed)
	for range left {
		k.mu.Lock()
		all := k.leaving
		k.leaving = nil
		k.mu.Unlock()
		size := k.removeAll(all)
		k.mu.Lock()
		k.leavingSize -= size
		k.fewer.Broadcast()
		k.mu.Unlock()
	}
}

// removeAll says how many entries it was given.
func (k *Kernel) removeAll(all []*entries) (size int) {
	err := k.grace.wait()
	for _, e := range all {
		size += e.size()
		if err != nil {
			continue
		}
		forgetAll(k.obj.Rules4, e.four)
		forgetAll(k.obj.Rules6, e.six)
	}
	return size
}

// awaitRoom waits until what leaves takes no more than half of what is kept for it: the
// other half is for what comes in its place. It is called with mu held, which it lets go.
func (k *Kernel) awaitRoom() {
	for k.leavingSize > replacedRoom/2 && k.left != nil {
		k.fewer.Wait()
	}
}
