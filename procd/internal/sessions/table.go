package sessions

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
)

const (
	// killTime is how long a deletion waits for processes to be gone. They are
	// killed in any case.
	killTime = 2 * time.Second

	// keepOutput is what a process's own log keeps: it is copied into the session's
	// log at once.
	keepOutput = 1 << 20
)

// Process is a process that was started, as [proc.Process] is one.
type Process interface {
	PID() int
	Log() *proc.Log
	Done() <-chan struct{}
	Exit() procapi.Exit // valid after Done
	State() string

	Write([]byte) error
	CloseInput() error
	Resize(procapi.PTYSize) error
	Signal(syscall.Signal) error

	Kill() error // with all that it started; doesn't wait
	Close()      // kills what is left and waits for it
}

// Config of a table. All fields but Follow are required.
type Config struct {
	// Start starts a command in the sandbox's environment. Its log keeps so many
	// bytes. An error says to the client what is wrong.
	Start func(req procapi.CreateContext, keep int) (Process, error)

	// Follow, if it is set, is told of every process. run is called on a goroutine of
	// the table's; it returns after the log's end.
	Follow func(sessionID string, pid int, log *proc.Log) (run func())
}

// Table holds the sessions. Its methods are safe for concurrent use.
type Table struct {
	cfg        Config
	generation atomic.Uint64

	work sync.WaitGroup // the sessions' goroutines

	creating sync.Mutex // held over a whole creation: a repeated key finds the first
	closed   bool       // guarded by creating

	mu       sync.Mutex
	sessions map[string]*session
	made     uint64
}

// New returns an empty table.
func New(cfg Config) *Table {
	return &Table{cfg: cfg, sessions: map[string]*session{}}
}

// SetGeneration says which generation of the sandbox events and attempts are of
// from now on.
func (t *Table) SetGeneration(gen uint64) { t.generation.Store(gen) }

// Run waits until ctx ends, and ends all sessions.
func (t *Table) Run(ctx context.Context) {
	<-ctx.Done()
	t.creating.Lock()
	t.closed = true
	t.creating.Unlock()
	for _, s := range t.list() {
		_ = t.Delete(s.id)
	}
	t.work.Wait()
}

// list returns the sessions, oldest first.
func (t *Table) list() []*session {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.SortedFunc(maps.Values(t.sessions), func(a, b *session) int { return cmp.Compare(a.number, b.number) })
}

func (t *Table) get(id string) (*session, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.sessions[id]; s != nil {
		return s, nil
	}
	return nil, notFound(id)
}

// Create makes a session, and its first attempt if it shall run: then it is there
// only if that could be started. A key that a session was made with answers that
// session.
func (t *Table) Create(key string, spec procapi.SessionSpec) (procapi.Session, error) {
	spec, err := normalize(spec)
	if err != nil {
		return procapi.Session{}, err
	}
	if len(key) > procapi.MaxSessionKey {
		return procapi.Session{}, invalid("%s: more than %d bytes", procapi.IdempotencyHeader, procapi.MaxSessionKey)
	}
	t.creating.Lock()
	defer t.creating.Unlock()
	if s := t.byKey(key); s != nil {
		if s.origin != digest(spec) {
			return procapi.Session{}, keyReused()
		}
		return s.describe()
	}
	s, err := t.create(key, spec)
	if err != nil {
		return procapi.Session{}, err
	}
	return s.describe()
}

// byKey is the session that was made with a key, nil if none was.
func (t *Table) byKey(key string) *session {
	if key == "" {
		return nil
	}
	all := t.list()
	if i := slices.IndexFunc(all, func(s *session) bool { return s.key == key }); i >= 0 {
		return all[i]
	}
	return nil
}

func digest(spec procapi.SessionSpec) [sha256.Size]byte {
	b, err := json.Marshal(spec)
	if err != nil { // a type of ours that JSON can't have
		panic(err)
	}
	return sha256.Sum256(b)
}

// create is called with creating held.
func (t *Table) create(key string, spec procapi.SessionSpec) (*session, error) {
	if t.closed {
		return nil, closing()
	}
	id, number, err := t.reserve()
	if err != nil {
		return nil, err
	}
	s := newSession(t, id, spec)
	s.key, s.number, s.origin = key, number, digest(spec)
	if err := s.begin(); err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.sessions[id] = s
	t.mu.Unlock()
	t.work.Go(s.run)
	return s, nil
}

// reserve finds an id for one more session; with creating held nobody else adds one.
func (t *Table) reserve() (id string, number uint64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.sessions) >= procapi.MaxSessions {
		return "", 0, tooMany()
	}
	for id == "" || t.sessions[id] != nil {
		id = newID("sess-")
	}
	t.made++
	return id, t.made, nil
}

func newID(prefix string) string {
	var b [6]byte
	rand.Read(b[:]) // never fails
	return prefix + hex.EncodeToString(b[:])
}

// List describes all sessions, oldest first.
func (t *Table) List() procapi.SessionList {
	list := procapi.SessionList{Sessions: []procapi.Session{}}
	for _, s := range t.list() {
		if d, err := s.describe(); err == nil { // else it was deleted
			list.Sessions = append(list.Sessions, d)
		}
	}
	return list
}

// Get describes a session.
func (t *Table) Get(id string) (procapi.Session, error) {
	s, err := t.get(id)
	if err != nil {
		return procapi.Session{}, err
	}
	return s.describe()
}

// Delete ends a session. Readers of its events get the rest and then an end.
func (t *Table) Delete(id string) error {
	s, err := t.get(id)
	if err != nil {
		return err
	}
	t.mu.Lock()
	delete(t.sessions, id)
	t.mu.Unlock()
	if err := s.do(s.remove); err != nil {
		return err
	}
	timer := time.NewTimer(killTime)
	defer timer.Stop()
	select {
	case <-s.gone:
	case <-timer.C:
	}
	return nil
}
