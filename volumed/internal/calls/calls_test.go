package calls

import (
	"fmt"
	"testing"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/volumeapi"
	"s0.run/volumed/internal/jail"
)

// placed is sessions of a team, the earlier the older.
func placed(t *testing.T, c *Calls, team string, n int) (all []*session) {
	t.Helper()
	for i := range n {
		if err := c.reserve(team, false); err != nil {
			t.Fatalf("place %d of %s: %v", i+1, team, err)
		}
		id := fmt.Sprintf("%s-%d", team, c.of[team])
		s := &session{process: new(jail.Process), spec: volumeapi.Volume{ID: id, Team: team}, since: time.Unix(int64(c.count), 0)}
		c.sessions[id] = s
		all = append(all, s)
	}
	return all
}

// Teams that have taken what they may leave room for others.
func TestTeamsLeaveRoomForOthers(t *testing.T) {
	t.Parallel()
	c := New(Config{})
	for _, team := range []string{"a", "b", "c"} {
		placed(t, c, team, maxOfTeam)
		if err := c.reserve(team, false); !errdefs.Is(err, errdefs.Unavailable) {
			t.Errorf("%s has one too many: %v", team, err)
		}
	}
	for team, n := 0, maxProcesses-3*maxOfTeam; n > 0; team++ {
		name := fmt.Sprint("late", team)
		for c.reserve(name, false) == nil {
			n--
		}
		if c.of[name] == 0 || c.of[name] > max(1, (n+c.of[name]+1)/2) {
			t.Errorf("the late team %d has %d places, %d are left", team, c.of[name], n)
		}
	}
}

// A process that is only watched gives its place up for calls: the team's own, or any for a
// team that has none; and no more than one at a time.
func TestWatchesYieldToCalls(t *testing.T) {
	t.Parallel()
	c := New(Config{})
	sessions := placed(t, c, "team", maxOfTeam)
	other := placed(t, c, "other", 1)
	sessions[0].running, sessions[0].watching = 1, 1
	sessions[2].watching, sessions[3].watching, other[0].watching = 1, 1, 1
	if err := c.reserve("team", true); err == nil || sessions[2].yields {
		t.Errorf("to a watch: %v", err)
	}
	for range 2 {
		if err := c.reserve("team", false); !errdefs.Is(err, errdefs.Unavailable) || errdefs.From(err).RetryAfter == 0 {
			t.Errorf("one too many: %v", err)
		}
	}
	for i, s := range append(sessions, other...) {
		if s.yields != (i == 2) {
			t.Errorf("session %d yields: %v", i, s.yields)
		}
	}
	if ids := c.idle(time.Unix(0, 0)); len(ids) != 1 || ids[0] != sessions[2].spec.ID {
		t.Errorf("swept are %q", ids)
	}
	sessions[2].sweeping = false
	if _, err := c.join(sessions[2].spec, false); err != nil || sessions[2].yields {
		t.Errorf("called again, it yields: %v", err)
	}
}

// Watches are few: of a team, and of all.
func TestB07_WatchesOfVolumesAreBounded(t *testing.T) {
	t.Parallel()
	c := New(Config{})
	const teams = maxWatches / maxWatchesOfTeam
	for n := range teams {
		s := placed(t, c, fmt.Sprint("team", n), 2)
		for i := range maxWatchesOfTeam {
			if _, err := c.join(s[i%2].spec, true); err != nil {
				t.Errorf("watch %d of team %d: %v", i+1, n, err)
			}
		}
		for _, spec := range []volumeapi.Volume{s[0].spec, {ID: "new", Team: s[0].spec.Team}} {
			if _, err := c.join(spec, true); !errdefs.Is(err, errdefs.Exhausted) || errdefs.From(err).Code != codeWatches {
				t.Errorf("one too many of team %d: %v", n, err)
			}
		}
		if _, err := c.join(s[0].spec, false); err != nil {
			t.Error(err)
		}
	}
	s := placed(t, c, "late", 1)[0]
	if _, err := c.join(s.spec, true); !errdefs.Is(err, errdefs.Exhausted) {
		t.Errorf("one too many of all: %v", err)
	}
	for _, s := range c.sessions {
		if s.watching > 0 {
			c.leave(s, true)
			break
		}
	}
	if _, err := c.join(s.spec, true); err != nil {
		t.Error(err)
	}
}
