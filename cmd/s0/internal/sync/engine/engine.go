// Package engine keeps a directory and a volume alike: it sends what changed in the one
// and does here what changed in the other.
//
// It compares three things at each path: what is here, what the volume has, and the base,
// what both had when they last agreed. A side that differs from the base has changed; if
// both have, differently, the volume's stays under the name and ours is kept beside it
// under a conflict's. Nothing of ours is overwritten or deleted that the volume does not
// have, or had.
//
// It may end at any point. A request is stored before it is sent, so that it is sent again
// the same; what is about to be put into the directory is stored before, so that it is not
// taken for the user's work afterwards; the cursor moves when all before it is durable.
// Where the journal does not lead on, the volume is fetched whole and compared in the same
// way (a reseed).
//
// The server is not trusted: see package tree for what of its paths is taken. State lives
// in package state; the engine starts no goroutine and is not safe for concurrent use.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path"
	"strings"
	"time"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/sync/state"
	"s0.run/cmd/s0/internal/sync/tree"
)

const (
	// pageSize is how much of the journal is done at once.
	pageSize = 2048
	// leaseEvery is how often the server is told that the replica is there, which it
	// believes for five minutes.
	leaseEvery = time.Minute
	// maxPages bounds how long a cycle follows a journal that grows all the time.
	maxPages = 64
	// confirmAfter is how long nothing more must be missing here until what is was deleted:
	// who deletes the whole directory deletes its mark, too, in the end.
	confirmAfter = 2 * time.Second
	// confirmAnyway is when that has been put off long enough.
	confirmAnyway = 10 * time.Minute
	// forget is when what could not be done here, or was refused there, is tried again.
	forget = time.Hour
)

// The states of a replica.
const (
	StateStarting = "starting"
	StateSynced   = "synced"
	StatePending  = "pending"   // local changes wait
	StateConflict = "conflicts" // and uploads with them
	StateFailing  = "failing"   // the last cycle did; it is tried again
	StateStopped  = "stopped"
)

// Config says what is kept alike with what.
type Config struct {
	Store   *state.Store
	Tree    *tree.Tree
	Server  Server
	ID      string // of the replica
	From    string // what is right when both have something at the beginning: auto, volume or local
	Replica Replica
	Log     *slog.Logger

	MaxFile int64 // larger files are not sent; defaults to 32 MiB, which the server takes

	now func() time.Time // for tests; defaults to time.Now

	// failAt, if not nil, may end the work at a point, for tests of crashes.
	failAt func(point string) error
}

// Engine syncs one replica.
type Engine struct {
	Config
	mem    *state.Memory
	fold   map[string]string // by folded path: how it is written here; nil where case matters
	gone   map[string]string // contents that the server did not have, by path: their sums
	leased time.Time
	absent map[string]time.Time // since when something of the base is missing here
	retry  time.Time            // when what can't be done here is tried again
	no     map[string]refused   // changes that the server did not take, by path

	// Of a request that what is in the volume speaks against (a 409):
	stopped bool  // nothing more is sent in this cycle
	clash   error // that this one ends with, for it does not pass by itself
	clashes int   // how many in a row

	batch  int // how many changes go into a request
	status state.Status
}

// New makes an engine; nothing is sent yet.
func New(cfg Config) *Engine {
	if cfg.MaxFile == 0 {
		cfg.MaxFile = 32 << 20
	}
	if cfg.now == nil {
		cfg.now = time.Now
	}
	return &Engine{Config: cfg, batch: maxChanges, gone: map[string]string{}, no: map[string]refused{}}
}

// Status is how the replica fares after the last cycle.
func (e *Engine) Status() state.Status { return e.status }

// Cycle makes both sides alike, as far as they hold still.
func (e *Engine) Cycle(ctx context.Context) error {
	err := e.cycle(ctx)
	if err != nil {
		e.mem = nil // what is in memory may be ahead of what is stored
	}
	return errors.Join(err, e.report(ctx, err))
}

func (e *Engine) cycle(ctx context.Context) error {
	e.stopped, e.clash = false, nil
	if err := e.load(); err != nil {
		return err
	}
	if err := e.Tree.Check(e.ID); err != nil {
		return err
	}
	if err := e.lease(ctx); err != nil {
		return err
	}
	steps := []func(context.Context) error{e.resend, e.seed, e.finish, e.push, e.pull, e.contested, e.seed}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return e.clash
}

// load reads the state if it is not in memory.
func (e *Engine) load() error {
	if e.mem != nil {
		return nil
	}
	mem, err := e.Store.Load()
	if err != nil {
		return err
	}
	if e.status.State == "" {
		if e.status, err = e.Store.Status(); err != nil {
			return err
		}
	}
	if err := e.Tree.Sweep(); err != nil {
		return err
	}
	if !e.Replica.Capabilities.CaseSensitive {
		e.fold = map[string]string{}
		for p, r := range mem.Base {
			if r.Held == "" {
				e.fold[tree.Fold(p)] = p
			}
		}
	}
	e.mem = mem
	return nil
}

// lease says that we are there, if that was a while ago.
func (e *Engine) lease(ctx context.Context) error {
	if time.Since(e.leased) < leaseEvery {
		return nil
	}
	head, err := e.Server.Register(ctx, e.Replica)
	if err != nil {
		return fmt.Errorf("registering with the volume: %w", err)
	}
	e.leased, e.status.Head = time.Now(), head
	return nil
}

// finish goes on with what an end has interrupted: as long as things are half done here,
// what is here is not all the user's.
func (e *Engine) finish(ctx context.Context) error {
	if len(e.mem.Intents) == 0 {
		return nil
	}
	return e.pull(ctx)
}

// report stores how the cycle went.
func (e *Engine) report(ctx context.Context, err error) error {
	s := &e.status
	switch {
	case ctx.Err() != nil:
		return nil // that is no failure
	case err != nil:
		s.State, s.Error, s.ErrorAt = StateFailing, err.Error(), time.Now()
	case s.Conflicts > 0:
		s.State = StateConflict
	case s.Pending > 0:
		s.State = StatePending
	default:
		s.State, s.Error, s.ErrorAt, s.SyncedAt = StateSynced, "", time.Time{}, time.Now()
	}
	return e.Store.Update(context.WithoutCancel(ctx), func(tx *state.Tx) { tx.SetStatus(*s) })
}

// at is where a test may end the work.
func (e *Engine) at(point string) error {
	if e.failAt == nil {
		return nil
	}
	return e.failAt(point)
}

// known is the base of what is here.
func (e *Engine) known() map[string]tree.Seen {
	known := make(map[string]tree.Seen, len(e.mem.Base))
	for p, r := range e.mem.Base {
		if r.Held == "" {
			known[p] = r.Seen
		}
	}
	return known
}

func (e *Engine) isKnown(p string) bool {
	r, is := e.mem.Base[p]
	return is && r.Held == ""
}

// setRow changes the base in memory; the caller stores it.
func (e *Engine) setRow(p string, r *state.Row) {
	if old, is := e.mem.Base[p]; is && old.Held == "" && e.fold != nil {
		if key := tree.Fold(p); e.fold[key] == p {
			delete(e.fold, key)
		}
	}
	if r == nil {
		delete(e.mem.Base, p)
		return
	}
	e.mem.Base[p] = *r
	if e.fold != nil && r.Held == "" {
		e.fold[tree.Fold(p)] = p
	}
}

// hold says why a path of the volume can't be here; "" if it can.
func (e *Engine) hold(p string, kind tree.Kind) string {
	if err := tree.CheckPath(p); err != nil {
		return err.Error()
	}
	if e.fold != nil {
		for dir := p; dir != "."; dir = path.Dir(dir) {
			if other, is := e.fold[tree.Fold(dir)]; is && other != dir {
				return fmt.Sprintf("%s is here, and case does not tell them apart", other)
			}
		}
	}
	if !e.isKnown(p) && e.Tree.Ignored(p, kind, e.isKnown) {
		return ignoredHere
	}
	return ""
}

// ignoredHere is why a path is held that a .gitignore names: nobody needs to hear of it.
const ignoredHere = "ignored"

// below yields the paths under a directory that the base has.
func (e *Engine) below(dir string) (paths []string) {
	for p := range e.mem.Base {
		if strings.HasPrefix(p, dir+"/") {
			paths = append(paths, p)
		}
	}
	return paths
}

// refusal is a server's no that trying again does not change.
func refusal(err error) *client.APIError {
	var no *client.APIError
	if !errors.As(err, &no) || no.StatusCode/100 != 4 {
		return nil
	}
	switch no.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusRequestTimeout, http.StatusTooManyRequests:
		return nil
	}
	return no
}

// reason is what a 409 says of itself.
func reason(no *client.APIError) string {
	text, _ := no.Details["reason"].(string)
	return text
}

func notFound(err error) bool {
	no := refusal(err)
	return no != nil && (no.StatusCode == http.StatusNotFound || no.StatusCode == http.StatusGone)
}
