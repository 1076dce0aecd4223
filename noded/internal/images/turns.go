package images

import (
	"context"
	"sync"
)

// maxTeamPulls is how many of a node's pulls are one team's: others' go on beside
// the many, or the slow, of one.
const maxTeamPulls = 2

type teamKey struct{}

// ForTeam names the team for whom images are got with the context.
func ForTeam(ctx context.Context, team string) context.Context {
	return context.WithValue(ctx, teamKey{}, team)
}

// turns are the places of pulls: so many on the node, and so many of each team.
type turns struct {
	node chan struct{} // holds a value per pull under way

	mu    *sync.Mutex
	teams map[string]*turn
}

type turn struct {
	places chan struct{}
	users  int // who have a place or wait for one
}

func newTurns() turns {
	return turns{node: make(chan struct{}, maxPulls), mu: new(sync.Mutex), teams: map[string]*turn{}}
}

// take waits for a place of the context's team, and then for one of the node's.
// What is nobody's, a public template's, waits for the node's alone.
func (t turns) take(ctx context.Context) (leave func(), err error) {
	leaveTeams := func() {}
	if team, _ := ctx.Value(teamKey{}).(string); team != "" {
		if leaveTeams, err = t.takeTeams(ctx, team); err != nil {
			return nil, err
		}
	}
	select {
	case t.node <- struct{}{}:
		return func() { <-t.node; leaveTeams() }, nil
	case <-ctx.Done():
		leaveTeams()
		return nil, ctx.Err()
	}
}

func (t turns) takeTeams(ctx context.Context, team string) (leave func(), err error) {
	t.mu.Lock()
	own := t.teams[team]
	if own == nil {
		own = &turn{places: make(chan struct{}, maxTeamPulls)}
		t.teams[team] = own
	}
	own.users++
	t.mu.Unlock()
	forget := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if own.users--; own.users == 0 {
			delete(t.teams, team)
		}
	}
	select {
	case own.places <- struct{}{}:
		return func() { <-own.places; forget() }, nil
	case <-ctx.Done():
		forget()
		return nil, ctx.Err()
	}
}
