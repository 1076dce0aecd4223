package auth

import (
	"sync"
	"time"
)

const (
	// freshLife is how long what was read is taken for true without another look:
	// the longest that a revoked right goes on when nobody tells this replica (A06).
	freshLife = 5 * time.Second
	// heldLife bounds for how long what was read last holds on while nobody can be
	// asked: the database is away, and running sandboxes shall stay usable (X34).
	heldLife = 60 * time.Second
	// maxEntries bounds each memory.
	maxEntries = 10_000
)

// memory remembers what was read about credentials, for seconds.
type memory[K comparable, V any] struct {
	mu      sync.RWMutex
	entries map[K]entry[V]
	epoch   uint64 // counts forget: what was read before is not remembered after
}

type entry[V any] struct {
	value V
	fresh time.Time // until then it is true
	held  time.Time // until then it may be held on to
}

func newMemory[K comparable, V any]() *memory[K, V] {
	return &memory[K, V]{entries: map[K]entry[V]{}}
}

// get answers what is known, if it is fresh.
func (m *memory[K, V]) get(key K) (value V, fresh bool) {
	m.mu.RLock()
	e, ok := m.entries[key]
	m.mu.RUnlock()
	if !ok || time.Now().After(e.fresh) {
		return value, false
	}
	return e.value, true
}

// has reports whether there is something to hold on to.
func (m *memory[K, V]) has(key K) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	e, ok := m.entries[key]
	return ok && !time.Now().After(e.held)
}

// now is the epoch, to be taken before what put is given is read.
func (m *memory[K, V]) now() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.epoch
}

// put remembers a value until `until` at most, which is never when zero.
func (m *memory[K, V]) put(key K, value V, until time.Time, epoch uint64) {
	now := time.Now()
	e := entry[V]{value: value, fresh: earlier(now.Add(freshLife), until), held: earlier(now.Add(heldLife), until)}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.epoch != epoch {
		return // something changed while this was read: it may be stale
	}
	if len(m.entries) >= maxEntries {
		clear(m.entries) // rare, and each entry is one read away
	}
	m.entries[key] = e
}

// hold takes what is known for true a little longer, for nobody can be asked. It
// reports false when there is nothing to hold on to.
func (m *memory[K, V]) hold(key K) (value V, held bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.entries[key]
	now := time.Now()
	if !ok || now.After(e.held) {
		return value, false
	}
	e.fresh = earlier(now.Add(freshLife), e.held)
	m.entries[key] = e
	return e.value, true
}

// drop forgets one key: what was known of it is no longer so.
func (m *memory[K, V]) drop(key K) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.entries, key)
}

// forget drops everything, and what is being read too.
func (m *memory[K, V]) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.epoch++
	clear(m.entries)
}

func earlier(a, b time.Time) time.Time {
	if b.IsZero() || a.Before(b) {
		return a
	}
	return b
}
