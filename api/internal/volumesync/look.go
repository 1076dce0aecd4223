package volumesync

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"s0.run/api/internal/audit"
	"s0.run/api/internal/store"
	"s0.run/internal/procapi"
)

// found is what a look has seen.
type found struct {
	entries map[string]procapi.TreeEntry
	stamps  map[string]string // of files, as they were when they were read
	writing map[string]bool   // files that were written to while they were read
	settled bool              // another change of any file makes another tree
}

// other reports whether something is at a path that is not kept alike.
func (f *found) other(name string) bool { return f.entries[name].Type == procapi.TreeOther }

// pending is what the journal does not have yet.
type pending struct {
	entries []store.SyncEntry
	paths   map[string]*store.SyncPath
}

// look finds what the journal does not know yet of the tree, and stores it. A file is read
// where its stamp is not the one that it was read at. Unless rows are needed, a tree that
// is what it was is not compared.
func (s *session) look(ctx context.Context, rows bool) error {
	entries, sum, err := s.tree.walk(ctx)
	if err != nil {
		return err
	}
	if !rows && s.sync.Looked != nil && bytes.Equal(sum, s.sync.Looked) {
		return s.flush(ctx, store.SyncWrite{Looked: sum, Done: true})
	}
	if err := s.load(ctx); err != nil {
		return err
	}
	s.found = &found{
		entries: make(map[string]procapi.TreeEntry, len(entries)), stamps: map[string]string{}, writing: map[string]bool{}, settled: true,
	}
	for _, e := range entries {
		s.found.entries[e.Path] = e
	}
	s.forgetGone()
	if err := s.read(ctx, s.compare(entries)); err != nil {
		return errors.Join(err, s.save(ctx, store.SyncWrite{}))
	}
	if !s.found.settled {
		sum = nil
	}
	return s.flush(ctx, store.SyncWrite{Looked: sum, Done: true})
}

// load reads what the journal says.
func (s *session) load(ctx context.Context) error {
	if s.rows != nil {
		return nil
	}
	list, err := s.k.cfg.Store.SyncPaths(ctx, s.of.Volume)
	if err != nil {
		return err
	}
	s.rows = make(map[string]*store.SyncPath, len(list))
	for i := range list {
		s.rows[list[i].Path] = &list[i]
	}
	return nil
}

// live is what the journal has at a path; nil: nothing.
func (s *session) live(name string) *store.SyncPath {
	if row := s.rows[name]; row != nil && !row.Gone {
		return row
	}
	return nil
}

// below are the live paths in a directory, the deepest last.
func (s *session) below(dir string) (all []*store.SyncPath) {
	for name, row := range s.rows {
		if !row.Gone && strings.HasPrefix(name, dir+"/") {
			all = append(all, row)
		}
	}
	slices.SortFunc(all, func(a, b *store.SyncPath) int { return strings.Compare(a.Path, b.Path) })
	return all
}

// kindOf is what the journal calls a type of the tree's; empty: nothing that it keeps.
func kindOf(e procapi.TreeEntry) string {
	return map[string]string{procapi.TreeFile: store.SyncFile, procapi.TreeDir: store.SyncDirectory}[e.Type]
}

// forgetGone records what is not there any more, what is in a directory before it.
func (s *session) forgetGone() {
	names := slices.Sorted(maps.Keys(s.rows))
	slices.Reverse(names)
	for _, name := range names {
		if row := s.rows[name]; !row.Gone && row.Kind != kindOf(s.found.entries[name]) {
			s.record(removed(*row, store.SyncBySandbox, ""))
		}
	}
}

// compare records what can be told of directories, and answers the files to be read.
func (s *session) compare(entries []procapi.TreeEntry) (toRead []procapi.TreeEntry) {
	for _, e := range entries {
		row := s.live(e.Path)
		switch {
		case e.Type == procapi.TreeFile && (row == nil || row.Stamp != e.Stamp):
			toRead = append(toRead, e)
		case e.Type == procapi.TreeFile:
			s.found.stamps[e.Path] = e.Stamp
		case e.Type == procapi.TreeDir && row == nil:
			s.record(bySandbox("create", e))
		case e.Type == procapi.TreeDir && row.Mode != int32(e.Mode):
			s.record(bySandbox("chmod", e))
		}
	}
	return toRead
}

// parts are calls' worth of files: of so many, and so large ones, that each call ends soon.
func parts(files []procapi.TreeEntry) (all [][]string) {
	var size int64
	for i, f := range files {
		if i == 0 || len(all[len(all)-1]) == procapi.MaxDigests || size+f.Size > partBytes {
			all, size = append(all, nil), 0
		}
		size += f.Size
		all[len(all)-1] = append(all[len(all)-1], f.Path)
	}
	return all
}

// read records what files have become. Each part is stored at once: a look that ends before
// all is read leaves less to the next one.
func (s *session) read(ctx context.Context, files []procapi.TreeEntry) error {
	for _, part := range parts(files) {
		read, err := s.tree.digests(ctx, part)
		if err != nil {
			return err
		}
		for _, name := range part {
			e, is := read[name]
			s.compareFile(name, e, is)
		}
		if err := s.flush(ctx, store.SyncWrite{}); err != nil {
			return err
		}
	}
	return nil
}

// compareFile records what a file has become that was read; or is not one any more.
func (s *session) compareFile(name string, e procapi.TreeEntry, is bool) {
	row := s.live(name)
	if !is {
		delete(s.found.entries, name)
		s.found.settled = false // something may be there
		if row != nil {
			s.record(removed(*row, store.SyncBySandbox, ""))
		}
		return
	}
	s.found.settled = s.found.settled && e.Settled
	s.found.entries[name], s.found.stamps[name] = e, e.Stamp
	if e.SHA256 == "" {
		s.found.writing[name], s.found.settled = true, false
		return
	}
	stamp := ""
	if e.Settled {
		stamp = e.Stamp
	}
	switch {
	case row == nil:
		s.recordFile("create", e, stamp)
	case row.SHA256 != e.SHA256:
		s.recordFile("write", e, stamp)
	case row.Mode != int32(e.Mode):
		s.recordFile("chmod", e, stamp)
	case row.Stamp != stamp:
		row.Stamp = stamp
		s.touch(row)
	}
}

func (s *session) recordFile(event string, e procapi.TreeEntry, stamp string) {
	entry, row := bySandbox(event, e)
	row.Stamp = stamp
	s.record(entry, row)
}

// bySandbox is an entry of what nobody sent, and what it makes of its path.
func bySandbox(event string, e procapi.TreeEntry) (store.SyncEntry, store.SyncPath) {
	row := store.SyncPath{Path: e.Path, Source: store.SyncBySandbox, Kind: kindOf(e), Mode: int32(e.Mode), SHA256: e.SHA256, Size: e.Size}
	return entryOf(event, row), row
}

// removed is the entry of a path that is gone.
func removed(row store.SyncPath, source, replica string) (store.SyncEntry, store.SyncPath) {
	row.Gone, row.Stamp, row.Source, row.Replica = true, "", source, replica
	entry := entryOf("remove", row)
	entry.SHA256, entry.Size = "", 0
	return entry, row
}

// entryOf is an entry that says of a path what its row does.
func entryOf(event string, row store.SyncPath) store.SyncEntry {
	return store.SyncEntry{
		Source: row.Source, Replica: row.Replica, Event: event, Path: row.Path, Kind: row.Kind, Mode: row.Mode, SHA256: row.SHA256, Size: row.Size,
	}
}

// record adds an entry to the journal, with what it makes of its path.
func (s *session) record(e store.SyncEntry, row store.SyncPath) store.SyncEntry {
	e.Seq = s.head() + 1
	row.Seq = e.Seq
	s.next.entries = append(s.next.entries, e)
	s.touch(&row)
	return e
}

// touch has what is known of a path stored.
func (s *session) touch(row *store.SyncPath) {
	s.rows[row.Path] = row
	if s.next.paths == nil {
		s.next.paths = map[string]*store.SyncPath{}
	}
	s.next.paths[row.Path] = row
}

// head is the number of the latest entry, stored or not.
func (s *session) head() int64 { return s.sync.Head + int64(len(s.next.entries)) }

// save is flush behind an error, which may be the end of ctx.
func (s *session) save(ctx context.Context, w store.SyncWrite) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), saveTime)
	defer cancel()
	return s.flush(ctx, w)
}

// flush stores what is pending, with what more w has.
func (s *session) flush(ctx context.Context, w store.SyncWrite) error {
	w.Volume, w.Token, w.Head, w.Keep, w.Lease = s.of.Volume, s.token, s.sync.Head, kept, lockLease
	w.Entries = s.next.entries
	for _, row := range s.next.paths {
		w.Paths = append(w.Paths, *row)
	}
	if w.Request == nil { // what a look finds is not its caller's change
		ctx = audit.Without(ctx)
	}
	if err := s.k.cfg.Store.WriteSync(ctx, w); err != nil {
		return err
	}
	s.sync.Head, s.sync.Looked, s.next = s.head(), w.Looked, pending{}
	s.sync.Floor = max(s.sync.Floor, s.sync.Head-kept)
	return nil
}
