// Package observe answers what a sandbox printed and what it uses.
//
// Lines come from procd's journal, figures from the node that measures; nothing
// is stored here. What procd says is a stranger's word: it is bounded and checked,
// and whose it is, where from and in which team, is written onto it here. Figures
// are the host's. The package keeps no state.
package observe

import (
	"time"

	"s0.run/api/internal/dataplane"
	"s0.run/internal/errdefs"
)

// Page bounds of lists.
const (
	DefaultPage = 100
	MaxPage     = 1000
)

// Config names where to ask. Every field is required.
type Config struct {
	Plane    *dataplane.Plane
	RegionID string
}

// Observer is safe for concurrent use.
type Observer struct {
	cfg Config
	now func() time.Time
}

// New makes an Observer.
func New(cfg Config) *Observer { return &Observer{cfg: cfg, now: time.Now} }

// Range is a range of time, open where an end is zero.
type Range struct {
	Start, End time.Time
}

// earliest and latest bound what a caller may mean by a time.
var (
	earliest = time.Unix(0, 0)
	latest   = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)
)

// NewRange makes a range of what a caller said; nil is an open end.
func NewRange(start, end *time.Time) (r Range) {
	if start != nil && start.After(earliest) {
		r.Start = *start
	}
	if r.Start.After(latest) {
		r.Start = latest
	}
	if end != nil && end.Before(latest) {
		r.End = *end
	}
	if end != nil && r.End.Before(earliest) && end.Before(latest) {
		r.End = earliest
	}
	return r
}

func (r Range) check() error {
	if !r.Start.IsZero() && !r.End.IsZero() && !r.Start.Before(r.End) {
		return errdefs.New(errdefs.InvalidArgument, "start_time must be before end_time")
	}
	return nil
}

// holds tells whether a time is in the range.
func (r Range) holds(t time.Time) bool {
	return !t.Before(r.Start) && (r.End.IsZero() || t.Before(r.End))
}

func checkLimit(limit int) error {
	if limit < 1 || limit > MaxPage {
		return errdefs.New(errdefs.InvalidArgument, "limit must be 1 to %d", MaxPage)
	}
	return nil
}

var errCursor = errdefs.New(errdefs.InvalidArgument, "cursor is invalid")

// identity is what is written onto everything about a sandbox.
type identity struct{ team, sandbox, region, cluster string }

func (o *Observer) identity(to dataplane.Target) identity {
	return identity{team: to.Team.String(), sandbox: string(to.ID), region: o.cfg.RegionID, cluster: to.ID.Cluster()}
}
