// Package share divides what there is a bounded amount of among its users, so that
// none of them can take what the others need.
//
// Each user always gets a sure part; beyond that, up to a most, he competes for what
// is spare. A [Pool] only counts: what is counted is its caller's, and so is what
// becomes of one who gets nothing.
package share

import "sync"

// Config says how much there is, in units of the caller's.
type Config struct {
	Sure  int // what each user always gets
	Most  int // what one may have
	Spare int // what all may have together beyond their sure parts
}

// Pool is safe for concurrent use.
type Pool[K comparable] struct {
	config Config

	mu    sync.Mutex
	used  map[K]int
	spare int // taken
}

// New makes a pool of which nothing is taken.
func New[K comparable](config Config) *Pool[K] {
	return &Pool[K]{config: config, used: map[K]int{}}
}

// Take takes n for a user, or nothing.
func (p *Pool[K]) Take(user K, n int) bool { return p.Replace(user, n, 0) }

// Replace takes n for a user who is about to give back what it is for the place of: only
// the difference has to be there, and until he has given that back he has both. Who
// replaces one thing at a time has no more than that too much.
func (p *Pool[K]) Replace(user K, n, leaving int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	has := p.used[user]
	after := has + n - leaving
	more := p.beyond(after) - p.beyond(has)
	if n > leaving && after > p.config.Most || more > 0 && p.spare+more > p.config.Spare {
		return false
	}
	p.set(user, has+n)
	return true
}

// Give gives back n of what a user has.
func (p *Pool[K]) Give(user K, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.set(user, max(p.used[user]-n, 0))
}

// set is called with mu held.
func (p *Pool[K]) set(user K, n int) {
	p.spare += p.beyond(n) - p.beyond(p.used[user])
	if n == 0 {
		delete(p.used, user)
		return
	}
	p.used[user] = n
}

func (p *Pool[K]) beyond(n int) int { return max(n-p.config.Sure, 0) }

// Used is what a user has.
func (p *Pool[K]) Used(user K) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.used[user]
}
