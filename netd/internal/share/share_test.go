package share

import (
	"math/rand/v2"
	"testing"
)

func TestD08_NobodyTakesWhatIsSureForOthers(t *testing.T) {
	t.Parallel()
	p := New[string](Config{Sure: 2, Most: 6, Spare: 5})
	for _, step := range []struct {
		user string
		n    int
		want bool
	}{
		{"a", 7, false}, {"a", 6, true}, {"a", 1, false}, // 4 of the spare are gone
		{"b", 2, true}, {"b", 2, false}, {"b", 1, true}, // and now all
		{"c", 3, false}, {"c", 2, true}, {"c", 1, false},
	} {
		if got := p.Take(step.user, step.n); got != step.want {
			t.Fatalf("%s takes %d: %v", step.user, step.n, got)
		}
	}
	p.Give("a", 1)
	if !p.Take("c", 1) || p.Take("b", 1) {
		t.Error("what was given back is for one")
	}
}

// Who replaces something needs room for the difference alone.
func TestD08_WhatIsReplacedIsNoMore(t *testing.T) {
	t.Parallel()
	p := New[string](Config{Sure: 2, Most: 10, Spare: 8})
	if !p.Take("a", 10) {
		t.Fatal("there is room")
	}
	for _, step := range []struct {
		n, leaving int
		want       bool
	}{{10, 10, true}, {11, 10, false}, {7, 10, true}, {5, 1, false}, {4, 4, true}} {
		has := p.Used("a")
		got := p.Replace("a", step.n, step.leaving)
		if got {
			p.Give("a", step.leaving)
		}
		if want := has + step.n - step.leaving; got != step.want || got && p.Used("a") != want || !got && p.Used("a") != has {
			t.Errorf("%d in the place of %d: %v, and has %d", step.n, step.leaving, got, p.Used("a"))
		}
	}
	p.Take("b", 2)
	if p.Give("a", 7); p.spare != 0 {
		t.Errorf("%d are missing", p.spare)
	}
}

func TestAllThatIsGivenBackIsThere(t *testing.T) {
	t.Parallel()
	p := New[int](Config{Sure: 3, Most: 20, Spare: 40})
	has := map[int]int{}
	for range 100000 {
		user, n := rand.IntN(10), rand.IntN(9)
		if rand.IntN(2) == 0 {
			if p.Take(user, n) {
				has[user] += n
			}
		} else {
			n = min(n, has[user])
			p.Give(user, n)
			has[user] -= n
		}
		spare := 0
		for _, n := range has {
			spare += max(n-3, 0)
		}
		if p.spare != spare || spare > 40 || p.Used(user) != has[user] || has[user] > 20 {
			t.Fatalf("it counts %d for all, %d for %d of %v", p.spare, p.Used(user), user, has)
		}
	}
	for user, n := range has {
		p.Give(user, n)
	}
	if len(p.used) != 0 || p.spare != 0 {
		t.Errorf("left: %v, %d", p.used, p.spare)
	}
}
