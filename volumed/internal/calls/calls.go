// Package calls answers the file calls of volumes.
//
// A volume of which files are asked for is shared (work.Manager.Share) and has a process
// that serves them (package jail), for as long as calls come and a little longer: the next
// one of a series finds it. The package owns these processes. Whoever takes a share back
// ends the process, behind what runs, if that takes no long time. Who may call, and at
// which epoch, is decided before.
package calls

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/volumeapi"
	"s0.run/volumed/internal/jail"
	"s0.run/volumed/internal/store"
)

const (
	// idleTime is how long a process stays that nobody calls: under pressure, hurried.
	idleTime, hurriedTime = 30 * time.Second, time.Second
	// sweepInterval is how often there is a look for those, sweepTimeout how long a volume
	// that is at work, such as at a commit, is waited for until the next look.
	sweepInterval, sweepTimeout = time.Second, 10 * time.Second
	// endGrace is what running calls get when a share is taken back. Somebody waits.
	endGrace = 5 * time.Second
	// A process holds some 10 MiB; a team has a part of them.
	maxProcesses, maxOfTeam = 64, 16
	// Every watch is an inotify instance, of which the host's users have a few dozen each.
	maxWatches, maxWatchesOfTeam = 32, 8
	// maxCalls of one volume run at once, watches aside.
	maxCalls = 64
	// tries is how often a call looks for a process that was ended just then.
	tries = 3
	// again is when one that finds no room is to come back.
	again = time.Second
)

// Manager has the volumes.
type Manager interface {
	Share(ctx context.Context, spec volumeapi.Volume, open func(at string) (takeBack func(), err error)) error
	Unshare(ctx context.Context, id string) error
}

// Config wires Calls. All fields are required.
type Config struct {
	Manager Manager
	Command []string // that runs jail.Main
	Log     *slog.Logger
}

// Calls is safe for concurrent use.
type Calls struct {
	cfg Config

	mu       sync.Mutex
	sessions map[string]*session // by volume; those that have not ended
	count    int                 // of processes, those that are started or ended included
	of       map[string]int      // of them, by team
}

// session is one volume's process. Calls.mu guards what is below process.
type session struct {
	at      string
	process *jail.Process

	spec     volumeapi.Volume
	running  int // calls
	watching int
	since    time.Time     // of the last call's end
	sweeping bool          // it is being taken back for idleness
	yields   bool          // somebody wants its place, if it has only watches
	ending   bool          // it takes no more calls
	quiet    chan struct{} // closed when it ends and no call runs
	gone     chan struct{} // closed when it has ended
}

// New makes Calls; Run looks after them.
func New(cfg Config) *Calls {
	return &Calls{cfg: cfg, sessions: map[string]*session{}, of: map[string]int{}}
}

// Run ends processes that nobody calls until ctx ends, and then all.
func (c *Calls) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	var running sync.WaitGroup
	for ctx.Err() == nil {
		for _, id := range c.idle(time.Now()) {
			running.Go(func() { c.sweep(ctx, id) })
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	for _, s := range c.all() {
		running.Go(func() { c.end(s) })
	}
	running.Wait()
	return nil
}

// idle are the volumes whose process has served long enough, or yields, which are swept once.
func (c *Calls) idle(now time.Time) (ids []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, s := range c.sessions {
		most := idleTime
		if c.count > maxProcesses/2 || c.of[s.spec.Team] > maxOfTeam/2 {
			most = hurriedTime
		}
		unused := s.yields || s.watching == 0 && now.Sub(s.since) > most
		if unused && !s.sweeping && s.running == 0 {
			s.sweeping = true
			ids = append(ids, id)
		}
	}
	return ids
}

func (c *Calls) sweep(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	err := c.cfg.Manager.Unshare(ctx, id)
	if err == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.sessions[id]; s != nil {
		s.sweeping = false
	}
}

func (c *Calls) all() (all []*session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.sessions {
		all = append(all, s)
	}
	return all
}

// enter finds the process of a volume, or has it started, for one call that leave ends.
func (c *Calls) enter(ctx context.Context, spec volumeapi.Volume, watch bool) (*session, error) {
	for range tries {
		s, err := c.join(spec, watch)
		if s != nil || err != nil {
			return s, err
		}
		err = c.cfg.Manager.Share(ctx, spec, func(at string) (func(), error) { return c.open(spec, at, watch) })
		if err != nil {
			return nil, err
		}
	}
	return nil, errdefs.New(errdefs.Unavailable, "volume %s is moving", spec.ID).WithRetryAfter(again)
}

// join is enter where the process is there; nil: it is not, or the volume has a new owner
// since.
func (c *Calls) join(spec volumeapi.Volume, watch bool) (*session, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if watch {
		if err := c.roomToWatch(spec.Team); err != nil {
			return nil, err
		}
	}
	s := c.sessions[spec.ID]
	if s == nil {
		return nil, nil
	}
	select {
	case <-s.process.Ended():
		return nil, nil
	default:
	}
	switch {
	case s.spec.Team != spec.Team:
		return nil, errdefs.New(errdefs.NotFound, "volume %s not found", spec.ID)
	case spec.Epoch < s.spec.Epoch:
		return nil, errdefs.WithCode(errdefs.Conflict, store.CodeFenced, "volume %s is at epoch %d, not %d", spec.ID, s.spec.Epoch, spec.Epoch)
	case spec.Epoch > s.spec.Epoch:
		return nil, nil
	case watch:
		s.watching++
	case s.running == maxCalls:
		return nil, errdefs.New(errdefs.Unavailable, "volume %s has %d calls at once already", spec.ID, maxCalls).WithRetryAfter(again)
	default:
		s.running++
		s.yields = false
	}
	return s, nil
}

// roomToWatch is asked under mu.
func (c *Calls) roomToWatch(team string) error {
	all, teams := 0, 0
	for _, s := range c.sessions {
		all += s.watching
		if s.spec.Team == team {
			teams += s.watching
		}
	}
	switch {
	case teams >= maxWatchesOfTeam:
		return errdefs.WithCode(errdefs.Exhausted, codeWatches, "there are %d watches of volumes already", teams).WithRetryAfter(again)
	case all >= maxWatches:
		return errdefs.WithCode(errdefs.Exhausted, codeWatches, "too many volumes are watched").WithRetryAfter(again)
	}
	return nil
}

// codeWatches is the code that a process has for too many watches of its own.
const codeWatches = "too_many_watches"

// leave ends a call.
func (c *Calls) leave(s *session, watch bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.since = time.Now()
	if watch {
		s.watching--
		return
	}
	s.running--
	if s.ending && s.running == 0 {
		close(s.quiet)
	}
}

// open is called by who has the volume's turn: there is one at a time for each volume.
func (c *Calls) open(spec volumeapi.Volume, at string, watch bool) (takeBack func(), err error) {
	c.mu.Lock()
	s := c.sessions[spec.ID]
	c.mu.Unlock()
	if s != nil && c.goesOn(s, spec, at) {
		return func() { c.end(s) }, nil
	}
	if s != nil {
		c.end(s)
	}
	if err := c.reserve(spec.Team, watch); err != nil {
		return nil, err
	}
	cfg := jail.Config{Command: c.cfg.Command, Dir: at, UID: spec.UID, GID: spec.GID}
	if spec.Limit > 0 {
		cfg.Full = volumeapi.CodeFull
	}
	s = &session{at: at, spec: spec, since: time.Now(), quiet: make(chan struct{}), gone: make(chan struct{})}
	if s.process, err = jail.Start(cfg); err != nil {
		c.free(spec.Team)
		return nil, err
	}
	c.mu.Lock()
	c.sessions[spec.ID] = s
	c.mu.Unlock()
	return func() { c.end(s) }, nil
}

// goesOn tells whether a process serves for a new owner as it is.
func (c *Calls) goesOn(s *session, spec volumeapi.Volume, at string) bool {
	select {
	case <-s.process.Ended():
		return false
	default:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.ending || s.at != at || s.spec.UID != spec.UID || s.spec.GID != spec.GID {
		return false
	}
	s.spec = spec
	return true
}

// reserve takes a place, of which a team gets another only while more are free than it has:
// those who come later find some. Where there is none for a call, one with watches alone
// yields soon: its watchers come again.
func (c *Calls) reserve(team string, watch bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if has := c.of[team]; has == maxOfTeam || maxProcesses-c.count <= has {
		if !watch {
			c.yield(team)
		}
		return errdefs.New(errdefs.Unavailable, "files of too many volumes are in use").WithRetryAfter(again)
	}
	c.count++
	c.of[team]++
	return nil
}

// yield has the longest uncalled one with watches alone give up its place: of the team, or
// of any where the team has none. One at a time does.
func (c *Calls) yield(team string) {
	var oldest *session
	for _, s := range c.sessions {
		if s.running > 0 || s.watching == 0 || c.of[team] > 0 && s.spec.Team != team {
			continue
		}
		if s.yields {
			return
		}
		if oldest == nil || s.since.Before(oldest.since) {
			oldest = s
		}
	}
	if oldest != nil {
		oldest.yields = true
	}
}

func (c *Calls) free(team string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count--
	if c.of[team]--; c.of[team] == 0 {
		delete(c.of, team)
	}
}

// end ends a process, once. Calls that run have endGrace, watches none.
func (c *Calls) end(s *session) {
	c.mu.Lock()
	if s.ending {
		c.mu.Unlock()
		<-s.gone
		return
	}
	s.ending = true
	if c.sessions[s.spec.ID] == s {
		delete(c.sessions, s.spec.ID)
	}
	if s.running == 0 {
		close(s.quiet)
	}
	c.mu.Unlock()
	late := time.NewTimer(endGrace)
	defer late.Stop()
	select {
	case <-s.quiet:
	case <-s.process.Ended():
	case <-late.C:
		c.cfg.Log.Warn("file calls are cut: their volume goes elsewhere", "volume", s.spec.ID, "epoch", s.spec.Epoch)
	}
	s.process.Close()
	c.free(s.spec.Team)
	close(s.gone)
}
