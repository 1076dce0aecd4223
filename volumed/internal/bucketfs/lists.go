package bucketfs

import (
	"slices"
	"sync"
	"time"
)

// maxLists are kept: who lists a directory looks at what is in it next.
const maxLists = 8

// lists are the pages that were listed last, the oldest first.
type lists struct {
	mu  sync.Mutex
	all []listing
}

// listing is a page of a directory's list.
type listing struct {
	prefix  string
	entries map[string]entry
	whole   bool      // that was all there is
	until   time.Time // when it is not to be believed any more
}

// put keeps a page, in the place of an earlier one of its directory.
func (l *lists) put(one listing) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = slices.DeleteFunc(l.all, func(o listing) bool { return o.prefix == one.prefix })
	if len(l.all) == maxLists {
		l.all = slices.Delete(l.all, 0, 1)
	}
	l.all = append(l.all, one)
}

// find says what a name was in a list just now.
func (l *lists) find(prefix, name string) (e entry, known, there bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = slices.DeleteFunc(l.all, func(o listing) bool { return time.Now().After(o.until) })
	for _, one := range l.all {
		if one.prefix == prefix {
			e, there = one.entries[name]
			return e, there || one.whole, there
		}
	}
	return e, false, false
}
