package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"unicode/utf8"

	"s0.run/cmd/s0/internal/sync/ignore"
)

const ignoreFile = ".gitignore"

// MaxEntries bounds what a replica holds, and with it the memory that syncing takes.
const MaxEntries = 500_000

// maxSkips bounds how much of what is not synced is named.
const maxSkips = 1000

// Skip is something that is not synced, and why.
type Skip struct{ Path, Reason string }

// Snapshot is what was found in the directory.
type Snapshot struct {
	Entries map[string]Seen // also those of kind Other
	Skipped []Skip
}

// skip notes what is not synced.
func (s *Snapshot) skip(name, reason string) {
	if len(s.Skipped) < maxSkips {
		s.Skipped = append(s.Skipped, Skip{name, reason})
	}
}

// Scan tells what is in the directory. Files whose stamp in known has not changed are not
// read; those that are not known may be ignored.
func (t *Tree) Scan(ctx context.Context, known map[string]Seen) (*Snapshot, error) {
	t.Forget()
	s := &scan{Tree: t, known: known, found: &Snapshot{Entries: make(map[string]Seen, len(known))}}
	if _, err := s.walk(ctx, "", false); err != nil {
		return nil, fmt.Errorf("looking through %s: %w", t.dir, err)
	}
	return s.found, nil
}

type scan struct {
	*Tree
	known map[string]Seen
	found *Snapshot
}

// walk looks through a directory. bare reports whether all that it holds is ignored.
func (s *scan) walk(ctx context.Context, dir string, ignored bool) (bare bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	entries, err := fs.ReadDir(s.root.FS(), or(dir, "."))
	if err != nil {
		if dir == "" {
			return false, err
		}
		s.found.skip(dir, "can't be read")
		s.found.Entries[dir] = Seen{Entry: Entry{Kind: Other}}
		return false, nil
	}
	rules := s.rules(dir)
	kept, left := 0, 0
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		name := path.Join(dir, e.Name())
		if dir == "" && e.Name() == Own || Private(e.Name()) {
			continue
		}
		_, isKnown := s.known[name]
		out := ignored || rules.Match(name, e.IsDir())
		if out && !isKnown {
			left++
			continue
		}
		if !utf8.ValidString(e.Name()) {
			s.found.skip(fmt.Sprintf("%q", name), "its name is not UTF-8")
			continue
		}
		if err := s.visit(ctx, name, e, out); err != nil {
			return false, err
		}
		if _, is := s.found.Entries[name]; is {
			kept++
		}
	}
	return kept == 0 && left > 0, nil
}

// visit looks at one entry of a directory.
func (s *scan) visit(ctx context.Context, name string, e fs.DirEntry, ignored bool) error {
	info, err := e.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	seen, err := s.see(ctx, name, info, s.known[name])
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		s.found.skip(name, "can't be read")
		seen = Seen{Entry: Entry{Kind: Other}}
	case seen.Kind == Other:
		s.found.skip(name, whatIs(info))
	}
	if len(s.found.Entries) >= MaxEntries {
		return fmt.Errorf("more than %d files: ignore some in %s", MaxEntries, ignoreFile)
	}
	s.found.Entries[name] = seen
	if seen.Kind != Dir {
		return nil
	}
	bare, err := s.walk(ctx, name, ignored)
	if _, isKnown := s.known[name]; bare && !isKnown {
		delete(s.found.Entries, name) // what is ignored needs no directory there
	}
	return err
}

func whatIs(info fs.FileInfo) string {
	switch mode := info.Mode(); {
	case mode&fs.ModeSymlink != 0:
		return "a symlink"
	case mode&fs.ModeNamedPipe != 0:
		return "a pipe"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	case mode.IsRegular():
		return "a hard link"
	}
	return "neither file nor directory"
}

// Ignored reports whether a path, that is not known, is ignored here.
func (t *Tree) Ignored(name string, kind Kind, known func(string) bool) bool {
	for dir := range above(name) {
		if !known(dir) && t.rules(parent(dir)).Match(dir, true) {
			return true
		}
	}
	return t.rules(parent(name)).Match(name, kind == Dir)
}

// parent is the directory of a path; "" is the root.
func parent(name string) string {
	if dir := path.Dir(name); dir != "." {
		return dir
	}
	return ""
}

// Forget has .gitignore files read again.
func (t *Tree) Forget() { clear(t.ignores) }

// rules are those that hold for what is in a directory.
func (t *Tree) rules(dir string) ignore.Matcher {
	if m, is := t.ignores[dir]; is {
		return m
	}
	var m ignore.Matcher
	if dir != "" {
		m = t.rules(parent(dir))
	}
	if text := t.ignoreText(path.Join(dir, ignoreFile)); text != "" {
		m = m.With(dir, text)
	}
	t.ignores[dir] = m
	return m
}

// ignoreText is a .gitignore's content; one that can't be read has no rules, as for git.
func (t *Tree) ignoreText(name string) string {
	info, err := t.root.Lstat(name)
	if err != nil || !info.Mode().IsRegular() {
		return ""
	}
	f, err := t.open(name, info)
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, ignore.MaxFile))
	if err != nil {
		return ""
	}
	if len(b) == ignore.MaxFile { // half a line may say something else
		b = b[:bytes.LastIndexByte(b, '\n')+1]
	}
	return string(b)
}

// or is a, or b when a is empty.
func or(a, b string) string {
	if a == "" {
		return b
	}
	return a
}
