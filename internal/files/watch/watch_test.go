package watch

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/files"
	"s0.run/internal/procapi"
)

const patience = time.Minute

// follower collects what a subscription tells.
type follower struct {
	t    *testing.T
	sub  *Subscription
	dir  string
	stop context.CancelFunc

	mu    sync.Mutex
	lines []string
	more  chan struct{}
	gate  sync.Mutex // held by a test: nothing is taken
	ended chan error
}

func follow(t *testing.T, w *Watcher, dir string, recursive bool) *follower {
	t.Helper()
	sub, err := w.Subscribe(dir, recursive)
	if err != nil {
		t.Fatal(err)
	}
	f := &follower{t: t, sub: sub, dir: dir, more: make(chan struct{}, 1), ended: make(chan error, 1)}
	f.start()
	return f
}

func (f *follower) start() {
	ctx, cancel := context.WithCancel(context.Background())
	f.stop = cancel
	go func() { f.ended <- f.sub.Run(ctx, f.take) }()
	f.t.Cleanup(func() {
		cancel()
		select {
		case <-f.ended:
		case <-time.After(patience):
			f.t.Error("Run does not end")
		}
		f.sub.Close()
	})
}

func (f *follower) take(lines []procapi.WatchLine) error {
	f.gate.Lock()
	defer f.gate.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range lines {
		f.lines = append(f.lines, f.text(l))
	}
	select {
	case f.more <- struct{}{}:
	default:
	}
	return nil
}

func (f *follower) text(l procapi.WatchLine) string {
	rel := func(path string) string {
		if path == f.dir {
			return "."
		}
		return strings.TrimPrefix(path, f.dir+"/")
	}
	s := l.Event + " " + rel(l.Path)
	if l.OldPath != "" {
		s += " from " + rel(l.OldPath)
	}
	if l.Reason != "" {
		s += " (" + l.Reason + ")"
	}
	return s
}

// until waits for a line that is one of last, and returns everything up to it.
func (f *follower) until(last ...string) []string {
	f.t.Helper()
	deadline := time.After(patience)
	for {
		f.mu.Lock()
		for i, l := range f.lines {
			if slices.Contains(last, l) {
				got := f.lines[:i+1]
				f.lines = f.lines[i+1:]
				f.mu.Unlock()
				return got
			}
		}
		f.mu.Unlock()
		select {
		case <-f.more:
		case <-deadline:
			f.t.Fatalf("no %q in %d lines, the last of them %q", last, len(f.lines), f.lines[max(0, len(f.lines)-20):])
		}
	}
}

// mark makes a file that ends what is expected, and returns what was before it.
func (f *follower) mark() []string {
	f.t.Helper()
	name := fmt.Sprintf("mark-%d", time.Now().UnixNano())
	make1(f.t, filepath.Join(f.dir, name))
	got := f.until("create " + name)
	return got[:len(got)-1]
}

func (f *follower) want(want ...string) {
	f.t.Helper()
	if got := f.mark(); strings.Join(got, "; ") != strings.Join(want, "; ") {
		f.t.Errorf("got  %q\nwant %q", got, want)
	}
}

// overflows waits until there is more than the queue holds.
func (f *follower) overflows() {
	f.t.Helper()
	q := &f.sub.queue
	told := func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return len(q.events) > 0 && q.events[0].Reason == procapi.WatchOverflow
	}
	for deadline := time.Now().Add(patience); !told(); {
		if time.Now().After(deadline) {
			f.t.Fatal("the queue takes everything")
		}
		tick := time.NewTimer(time.Millisecond)
		<-tick.C
	}
}

func make1(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func do(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestEvents(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	make1(t, filepath.Join(dir, "old"))
	do(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	f := follow(t, new(Watcher), dir, false)

	do(t, os.WriteFile(filepath.Join(dir, "a"), []byte("x"), 0o644))
	f.want("create a", "write a")
	do(t, os.Chmod(filepath.Join(dir, "a"), 0o600))
	f.want("chmod a")
	do(t, os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "b")))
	f.want("rename b from a")
	do(t, os.Rename(filepath.Join(dir, "b"), filepath.Join(dir, "old")))
	f.want("rename old from b")
	do(t, os.Remove(filepath.Join(dir, "old")))
	f.want("remove old")

	make1(t, filepath.Join(dir, "sub", "unseen")) // not a direct child
	do(t, os.Rename(filepath.Join(dir, "sub", "unseen"), filepath.Join(dir, "in")))
	f.want("create in")
	do(t, os.Rename(filepath.Join(dir, "in"), filepath.Join(dir, "sub", "out")))
	f.want("remove in")
	do(t, os.Symlink("nowhere", filepath.Join(dir, "link")), os.Mkdir(filepath.Join(dir, "d"), 0o755))
	f.want("create link", "create d")
	make1(t, filepath.Join(dir, "d", "unseen"))
	f.want()
}

func TestRecursive(t *testing.T) {
	t.Parallel()
	dir, outside := t.TempDir(), t.TempDir()
	do(t, os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755))
	f := follow(t, new(Watcher), dir, true)

	make1(t, filepath.Join(dir, "a", "b", "f"))
	f.want("create a/b/f")
	do(t, os.Rename(filepath.Join(dir, "a", "b"), filepath.Join(dir, "c")))
	f.want("rename c from a/b")
	make1(t, filepath.Join(dir, "c", "g")) // under its new name
	f.want("create c/g")
	do(t, os.Rename(filepath.Join(dir, "c"), filepath.Join(outside, "c")))
	f.want("remove c")
	make1(t, filepath.Join(outside, "c", "unseen"))
	f.want()
	do(t, os.Rename(filepath.Join(outside, "c"), filepath.Join(dir, "back")))
	f.want("create back", "create back/f", "create back/g", "create back/unseen")
	do(t, os.RemoveAll(filepath.Join(dir, "back")))
	if got := f.mark(); len(got) != 4 || got[3] != "remove back" {
		t.Errorf("removing a directory: %q", got)
	}
	do(t, os.Symlink(outside, filepath.Join(dir, "link")))
	make1(t, filepath.Join(outside, "unseen"))
	f.want("create link")
}

// Nothing that is made in a new directory is missed, however soon it comes, and
// nothing is told twice.
func TestFilesInNewDirectories(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := follow(t, new(Watcher), dir, true)
	const rounds = 300
	want := map[string]int{}
	for i := range rounds {
		sub := fmt.Sprintf("d%d/x/y", i)
		do(t, os.MkdirAll(filepath.Join(dir, sub), 0o755))
		make1(t, filepath.Join(dir, sub, "f"))
		want[fmt.Sprintf("create d%d", i)], want[fmt.Sprintf("create d%d/x", i)] = 1, 1
		want["create "+sub], want["create "+sub+"/f"] = 1, 1
	}
	for _, line := range f.mark() {
		want[line]--
	}
	for line, n := range want {
		if n != 0 {
			t.Errorf("%q was told %d times", line, 1-n)
		}
	}
}

func TestMissingDirectoryIsMade(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "not", "yet")
	f := follow(t, new(Watcher), dir, true)
	make1(t, filepath.Join(dir, "f"))
	f.want("create f")
}

func TestNoDirectory(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "f")
	make1(t, file)
	for _, path := range []string{file, filepath.Join(file, "below")} {
		if _, err := new(Watcher).Subscribe(path, false); errdefs.From(err).Code != "path_not_directory" {
			t.Errorf("watching %s: %v", path, err)
		}
	}
}

func TestEndsWithItsDirectory(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(dir string) error{
		"removed": os.RemoveAll, "moved": func(dir string) error { return os.Rename(dir, dir+"-moved") },
	} {
		dir := filepath.Join(t.TempDir(), "d")
		f := follow(t, new(Watcher), dir, true)
		do(t, end(dir))
		f.until("remove .")
		select {
		case err := <-f.ended:
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			f.ended <- nil
		case <-time.After(patience):
			t.Fatalf("%s: the watch goes on", name)
		}
	}
}

func TestSubscriptionsAreTheirOwn(t *testing.T) {
	t.Parallel()
	dir, w := t.TempDir(), new(Watcher)
	a, b := follow(t, w, dir, false), follow(t, w, dir, true)
	a.stop()
	a.ended <- <-a.ended
	a.sub.Close()
	make1(t, filepath.Join(dir, "f"))
	b.want("create f")
	if n := w.subscriptions.Load(); n != 1 {
		t.Errorf("%d subscriptions are counted, want 1", n)
	}
}

// What the file API stages is shown as what becomes of it.
func TestStagedContent(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := follow(t, new(Watcher), dir, true)
	do(t, files.Tree{}.Write(filepath.Join(dir, "f"), strings.NewReader("one"), 10))
	f.want("create f", "write f")
	do(t, files.Tree{}.Write(filepath.Join(dir, "f"), strings.NewReader("two"), 10))
	f.want("write f")
	if err := (files.Tree{}).Write(filepath.Join(dir, "f"), strings.NewReader("far too long"), 10); err == nil {
		t.Fatal("a file above the limit was written")
	}
	f.want()
}

// A18: a name is a name, whatever is in it.
func TestA18_NamesAreData(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := follow(t, new(Watcher), dir, true)
	for _, name := range []string{"a\nb", "a\r\n{\"event\":\"x\"}", "größe\u202e", "\x1b[31m", strings.Repeat("x", 255)} {
		make1(t, filepath.Join(dir, name))
		f.want("create " + name)
	}
}

// B07: what repeats the latest about its file is told once, until it is taken.
func TestB07_CoalescesRepetition(t *testing.T) {
	t.Parallel()
	q := queue{ready: make(chan struct{}, 1), max: 4}
	put := func(event, path string) { q.put("/", procapi.WatchLine{Event: event, Path: path}) }
	put(procapi.WatchCreate, "/a")
	put(procapi.WatchCreate, "/b")
	for range 10_000 {
		put(procapi.WatchWrite, "/a")
		put(procapi.WatchWrite, "/b")
	}
	for _, want := range []int{4, 1} {
		<-q.ready
		if got := q.take(); len(got) != want || got[len(got)-1].Event != procapi.WatchWrite {
			t.Errorf("%v, want %d events", got, want)
		}
		put(procapi.WatchWrite, "/a")
	}
}

// B07: a subscriber that takes nothing costs a bounded queue, and is told.
func TestB07_SlowSubscriberIsTold(t *testing.T) {
	t.Parallel()
	dir, w := t.TempDir(), &Watcher{limits: limits{queue: 50}}
	f := follow(t, w, dir, true)
	f.gate.Lock()
	for i := range 1000 {
		make1(t, filepath.Join(dir, fmt.Sprint(i)))
	}
	f.overflows()
	f.gate.Unlock()
	f.until("invalidate . (overflow)")
	f.mark() // and it goes on
}

// B07: what the kernel lost is told, and what it concealed is watched all the same.
func TestB07_KernelOverflow(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	sub, err := new(Watcher).Subscribe(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	f := &follower{t: t, sub: sub, dir: dir, more: make(chan struct{}, 1), ended: make(chan error, 1)}
	for i := range 9000 { // nobody reads yet; the kernel keeps 16384 by default
		path := filepath.Join(dir, fmt.Sprint(i))
		make1(t, path)
		do(t, os.Chmod(path, 0o600))
	}
	do(t, os.MkdirAll(filepath.Join(dir, "late", "later"), 0o755))
	f.start()
	// Our own queue may overflow before the kernel's: what is lost before the last of
	// them is told of by it.
	const overflow = "invalidate . (overflow)"
	for got, i := f.until(overflow), 0; got[len(got)-1] == overflow; i++ {
		name := fmt.Sprint("late/later/", i)
		make1(t, filepath.Join(dir, name))
		got = f.until("create "+name, overflow)
	}
}

func TestB07_ManyDirectories(t *testing.T) {
	t.Parallel()
	dir, w := t.TempDir(), &Watcher{limits: limits{dirsEach: 10}}
	for i := range 10 {
		do(t, os.Mkdir(filepath.Join(dir, fmt.Sprint(i)), 0o755))
	}
	if _, err := w.Subscribe(dir, true); errdefs.From(err).Code != "too_many_watches" {
		t.Fatalf("a tree above the limit: %v", err)
	}
	if n, m := w.dirs.Load(), w.subscriptions.Load(); n != 0 || m != 0 {
		t.Fatalf("%d directories of %d subscriptions are still counted", n, m)
	}
	do(t, os.Remove(filepath.Join(dir, "9")))
	f := follow(t, w, dir, true)
	do(t, os.Mkdir(filepath.Join(dir, "more"), 0o755))
	f.want("create more", "invalidate more (limit)")
	do(t, os.Remove(filepath.Join(dir, "3")))
	f.want("remove 3")
	do(t, os.Mkdir(filepath.Join(dir, "again"), 0o755)) // there is room again
	make1(t, filepath.Join(dir, "again", "f"))
	f.want("create again", "create again/f")
}

func TestB07_ManySubscriptions(t *testing.T) {
	t.Parallel()
	var w Watcher
	w.subscriptions.Store(maxSubscriptions)
	if _, err := w.Subscribe(t.TempDir(), false); errdefs.From(err).Code != "too_many_watches" {
		t.Errorf("one more: %v", err)
	}
}

// B02: however a directory turns into a symlink and back, nothing of where it leads
// is told.
func TestB02_SymlinksAreNotFollowed(t *testing.T) {
	t.Parallel()
	dir, outside := t.TempDir(), t.TempDir()
	f := follow(t, new(Watcher), dir, true)
	for range 300 {
		do(t, os.Mkdir(filepath.Join(dir, "d"), 0o755), os.Remove(filepath.Join(dir, "d")))
		do(t, os.Symlink(outside, filepath.Join(dir, "d")))
		make1(t, filepath.Join(outside, "secret"))
		do(t, os.Remove(filepath.Join(outside, "secret")), os.Remove(filepath.Join(dir, "d")))
	}
	for _, line := range f.mark() {
		if strings.Contains(line, "secret") {
			t.Fatalf("told: %s", line)
		}
	}
}
