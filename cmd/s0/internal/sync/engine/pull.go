package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"s0.run/cmd/s0/internal/sync/state"
	"s0.run/cmd/s0/internal/sync/tree"
)

// want is what the volume has at a path. The zero value is nothing.
type want struct {
	tree.Entry
	ref    string       // of a file's content
	staged *tree.Staged // the content, if it is here already
	seq    int64
}

// pull does here what changed in the volume since.
func (e *Engine) pull(ctx context.Context) error {
	for range maxPages {
		if e.mem.Progress.Reseed {
			return nil
		}
		page, err := e.Server.Changes(ctx, e.mem.Progress.Cursor, pageSize)
		if no := refusal(err); no != nil && reason(no) == reseedRequired {
			return e.wantReseed(ctx, "the journal no longer has what changed since")
		}
		if err != nil {
			return fmt.Errorf("asking for changes: %w", err)
		}
		e.status.Head = page.Head
		if len(page.Changes) == 0 {
			if page.Head < e.mem.Progress.Cursor {
				return e.wantReseed(ctx, "the volume's journal has begun anew")
			}
			return e.clearIntents(ctx)
		}
		whole, err := e.pullPage(ctx, page.Changes)
		if err != nil || !whole {
			return err
		}
	}
	return nil
}

func (e *Engine) wantReseed(ctx context.Context, why string) error {
	e.Log.Info("fetching the whole volume", "cause", why)
	e.mem.Progress.Reseed = true
	return e.Store.Update(ctx, func(tx *state.Tx) { tx.SetProgress(e.mem.Progress) })
}

func (e *Engine) clearIntents(ctx context.Context) error {
	if len(e.mem.Intents) == 0 {
		return nil
	}
	clear(e.mem.Intents)
	return e.Store.Update(ctx, func(tx *state.Tx) { tx.ClearIntents() })
}

// pullPage does a part of the journal. It is not whole when the journal is behind the
// volume: then it goes on from there the next time.
func (e *Engine) pullPage(ctx context.Context, entries []JournalEntry) (whole bool, err error) {
	wants, ok := e.plan(ctx, entries)
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if !ok {
		return false, e.wantReseed(ctx, "the journal lacks something")
	}
	last := entries[len(entries)-1].Seq
	if last <= e.mem.Progress.Cursor {
		return false, fmt.Errorf("the server's journal goes back from %d to %d", e.mem.Progress.Cursor, last)
	}
	d := &delta{Engine: e, wants: wants, rows: map[string]*state.Row{}}
	defer d.drop()
	if err := d.apply(ctx); err != nil {
		return false, err
	}
	cursor := last
	for _, p := range d.gone {
		cursor = min(cursor, wants[p].seq-1)
		if e.gone[p] == wants[p].Sum {
			return false, e.wantReseed(ctx, "the content of "+p+" is not to be had")
		}
	}
	clear(e.gone)
	for _, p := range d.gone {
		e.gone[p] = wants[p].Sum
	}
	e.mem.Progress.Cursor = max(cursor, e.mem.Progress.Cursor)
	if err := d.commit(ctx); err != nil {
		return false, err
	}
	if err := e.at("committed"); err != nil {
		return false, err
	}
	if d.changed > 0 {
		e.Log.Info("received", "changes", d.changed, "cursor", e.mem.Progress.Cursor)
	}
	return len(d.gone) == 0, e.setCursor(ctx)
}

func (e *Engine) setCursor(ctx context.Context) error {
	err := e.Server.SetCursor(ctx, e.mem.Progress.Cursor)
	if refusal(err) != nil {
		e.Log.Warn("the server did not take the cursor", "cause", err.Error())
		return nil // it learns of it with the next one
	}
	if err != nil {
		return fmt.Errorf("telling the cursor: %w", err)
	}
	return nil
}

// plan is what a part of the journal comes to, by path. It is not ok when the journal says
// that it does not tell all.
func (e *Engine) plan(ctx context.Context, entries []JournalEntry) (wants map[string]want, ok bool) {
	p := &planning{Engine: e, wants: map[string]want{}}
	for i := range entries {
		j := &entries[i]
		j.Path, j.OldPath = tree.Relative(j.Path), tree.Relative(j.OldPath)
		if j.ReplicaID == e.ID && j.Seq < e.mem.Sent[j.Path] {
			continue // ours, and we have sent something newer
		}
		if ctx.Err() != nil || !p.add(j) {
			return nil, false
		}
	}
	return p.wants, true
}

type planning struct {
	*Engine
	wants map[string]want
}

// now is what the volume has at a path after what was planned so far.
func (p *planning) now(name string) want {
	if w, is := p.wants[name]; is {
		return w
	}
	if row, is := p.mem.Base[name]; is {
		return want{Entry: row.Entry, ref: refOf(row.Entry)}
	}
	return want{}
}

func refOf(e tree.Entry) string {
	if e.Kind != tree.File {
		return ""
	}
	return "sha256:" + e.Sum
}

func (p *planning) add(j *JournalEntry) (ok bool) {
	w := want{Entry: tree.Entry{Kind: j.Kind, Mode: tree.Permissions(j.Kind, j.Mode), Size: j.Size, Sum: sum(j.Sum)}, ref: j.Ref, seq: j.Seq}
	switch event := j.Event; {
	case event == eventInvalidate:
		return false
	case event == eventRename:
		return p.rename(j, w)
	case event == eventRemove || j.Tombstone:
		p.remove(j.Path, j.Seq)
	case event == eventChmod && (w.Kind != tree.File || w.Sum == ""):
		w = p.now(j.Path)
		w.Mode, w.seq = tree.Permissions(w.Kind, j.Mode), j.Seq
		p.wants[j.Path] = w
		return w.Kind != tree.None
	case event == eventCreate || event == eventWrite || event == eventChmod:
		return p.put(j.Path, w)
	default:
		return false
	}
	return true
}

// put plans something at a path; a file has nothing below.
func (p *planning) put(name string, w want) (ok bool) {
	if w.Kind == tree.File {
		for _, q := range p.under(name) {
			p.wants[q] = want{seq: w.seq}
		}
		if w.Sum == "" {
			return false
		}
		if w.ref == "" {
			w.ref = refOf(w.Entry)
		}
	} else if w.Kind != tree.Dir {
		return false
	}
	p.wants[name] = w
	return true
}

func (p *planning) remove(name string, seq int64) {
	for _, q := range p.under(name) {
		p.wants[q] = want{seq: seq}
	}
	p.wants[name] = want{seq: seq}
}

// rename plans that what is at one path, with all below it, is at another.
func (p *planning) rename(j *JournalEntry, w want) (ok bool) {
	old := p.now(j.OldPath)
	if w.Kind == tree.None || w.Kind == tree.File && w.Sum == "" {
		w = old
	}
	moved := map[string]want{}
	for _, q := range p.under(j.OldPath) {
		moved[j.Path+strings.TrimPrefix(q, j.OldPath)] = p.now(q)
	}
	p.remove(j.OldPath, j.Seq)
	w.seq = j.Seq
	if !p.put(j.Path, w) {
		return false
	}
	for _, q := range slices.Sorted(maps.Keys(moved)) {
		w := moved[q]
		if w.seq = j.Seq; w.Kind != tree.None && !p.put(q, w) {
			return false
		}
	}
	return true
}

// under are the paths below a directory that the volume has, or was to have.
func (p *planning) under(name string) (paths []string) {
	if p.now(name).Kind != tree.Dir {
		return nil
	}
	for q := range p.wants {
		if strings.HasPrefix(q, name+"/") {
			paths = append(paths, q)
		}
	}
	for _, q := range p.below(name) {
		if _, is := p.wants[q]; !is {
			paths = append(paths, q)
		}
	}
	return paths
}

// content opens what a want refers to.
func (e *Engine) content(ctx context.Context, w want) (io.ReadCloser, error) {
	if w.Size == 0 && w.Sum == emptySum {
		return io.NopCloser(strings.NewReader("")), nil
	}
	return e.Server.Payload(ctx, w.ref)
}

// emptySum is the checksum of nothing.
const emptySum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// aside is a name beside a path that nothing has: the server's, if it has kept our content
// under one, else one like it.
func (e *Engine) aside(p string, seq int64) (string, error) {
	if artifact := e.mem.Contested[p]; artifact != "" && tree.CheckPath(artifact) == nil && path.Dir(artifact) == path.Dir(p) && !e.Tree.Has(artifact) {
		return artifact, nil
	}
	dir, file := path.Split(p)
	ext := path.Ext(file)
	base := strings.TrimSuffix(file, ext)
	if base == "" {
		base, ext = ext, ""
	}
	tag := ".sandbox0-conflict-" + actor(e.ID) + "-seq-" + strconv.FormatInt(seq, 10)
	for n := range 1000 {
		more := ""
		if n > 0 {
			more = "-" + strconv.Itoa(n)
		}
		rest := tag + more + ext
		name := dir + base[:min(len(base), max(0, 255-len(rest)))] + rest
		if tree.CheckPath(name) != nil {
			name = dir + "conflict" + tag + more
		}
		if _, is := e.mem.Base[name]; !is && !e.Tree.Has(name) {
			return name, nil
		}
	}
	return "", fmt.Errorf("there are too many conflicts of %s", p)
}

// actor is a replica's name as conflicts' names have it.
func actor(id string) string {
	plain := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(id))
	return strings.Trim(plain, "-")
}

// contested keeps what was sent in vain beside what the volume has: what the journal said
// of it has been done by now, and where it said nothing the volume is fetched whole.
func (e *Engine) contested(ctx context.Context) error {
	if e.mem.Progress.Reseed || len(e.mem.Contested) == 0 {
		return nil
	}
	rows := map[string]*state.Row{}
	paths := make([]string, 0, len(e.mem.Contested))
	for p := range e.mem.Contested {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	for _, p := range paths {
		if err := e.yield(ctx, p); err != nil {
			return err
		}
		if _, is := e.mem.Base[p]; is {
			rows[p] = nil
			e.mem.Progress.Reseed = true
		}
	}
	if err := e.Tree.Flush(); err != nil {
		return err
	}
	for p := range rows {
		e.setRow(p, nil)
	}
	clear(e.mem.Contested)
	return e.Store.Update(ctx, func(tx *state.Tx) {
		tx.SetProgress(e.mem.Progress)
		for _, p := range paths {
			tx.Settle(p)
		}
		for p := range rows {
			tx.SetRow(p, nil)
		}
	})
}

// yield sets aside what is here at a path.
func (e *Engine) yield(ctx context.Context, p string) error {
	if tree.CheckPath(p) != nil {
		return nil
	}
	seen, err := e.Tree.Look(ctx, p, e.mem.Base[p].Seen)
	if errors.Is(err, tree.ErrBlocked) || err == nil && seen.Kind == tree.Other {
		return nil
	}
	if err != nil {
		return err
	}
	return e.setAside(ctx, p, seen, e.mem.Progress.Cursor)
}

// setAside gives what was seen here at a path, if anything was, a conflict's name. What
// the volume has kept already under such a name, and so do we, is just removed.
func (e *Engine) setAside(ctx context.Context, p string, seen tree.Seen, seq int64) error {
	if seen.Kind == tree.None {
		return nil
	}
	artifact := e.mem.Contested[p]
	if kept, is := e.mem.Base[artifact]; is && kept.Held == "" && seen.Kind == tree.File && kept.SameContent(seen.Entry) {
		if here, err := e.Tree.Look(ctx, artifact, kept.Seen); err == nil && here.SameContent(seen.Entry) {
			_, err := e.Tree.Remove(p, seen)
			return err
		}
	}
	name, err := e.aside(p, seq)
	if err != nil {
		return err
	}
	if err := e.Tree.Move(p, name); err != nil {
		return fmt.Errorf("keeping your %s: %w", p, err)
	}
	e.Log.Warn("kept what was changed here beside what the volume has", "path", p, "kept", name)
	return e.at("aside")
}

// errAgain says that somebody changes files under our hands.
var errAgain = errors.New("files are being changed: trying again")
