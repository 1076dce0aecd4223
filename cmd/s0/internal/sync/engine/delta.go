package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"s0.run/cmd/s0/internal/sync/state"
	"s0.run/cmd/s0/internal/sync/tree"
)

// attempts is how often something is tried that somebody changes meanwhile.
const attempts = 3

// delta is what is to be done here at once: in memory and in the directory as it goes, in
// the store when all of it is durable.
type delta struct {
	*Engine
	wants   map[string]want
	rows    map[string]*state.Row // of the base; nil is nothing
	settled []string              // no longer contested
	gone    []string              // whose content the server does not have any more
	keep    bool                  // ours is right where the base has nothing
	changed int
	fetched int64 // bytes
}

// apply does what is wanted: what is gone first, the innermost first, then the rest, the
// outermost first. Contents are fetched before anything is changed.
func (d *delta) apply(ctx context.Context) error {
	paths := slices.Sorted(maps.Keys(d.wants))
	if err := d.intend(ctx, paths); err != nil {
		return err
	}
	for _, p := range paths {
		if err := d.fetchEarly(ctx, p); err != nil {
			return err
		}
	}
	for _, p := range slices.Backward(paths) {
		if d.wants[p].Kind == tree.None {
			err := d.often(p, func() error { return d.remove(ctx, p) })
			if why, is := inability(err); is {
				row := d.mem.Base[p]
				d.unable(p, &state.Row{Seen: row.Seen, Held: stays + why})
			} else if err != nil {
				return err
			}
		}
	}
	for _, p := range paths {
		if d.wants[p].Kind != tree.None && !slices.Contains(d.gone, p) {
			err := d.often(p, func() error { return d.put(ctx, p) })
			if why, is := inability(err); is {
				d.unable(p, &state.Row{Seen: tree.Seen{Entry: d.wants[p].Entry}, Held: misses + why})
			} else if err != nil {
				return err
			}
		}
	}
	return d.Tree.Flush()
}

// often tries again what somebody's changes have kept from being done.
func (d *delta) often(p string, do func() error) error {
	var err error
	for range attempts {
		if err = do(); !errors.Is(err, tree.ErrChanged) {
			break
		}
	}
	if errors.Is(err, tree.ErrChanged) {
		return fmt.Errorf("%w (%s)", errAgain, p)
	}
	if err != nil {
		return fmt.Errorf("bringing %s up to date: %w", p, err)
	}
	return nil
}

// Why a path is held that could not be read or changed here, with the system's words.
const (
	misses = "it can't be put here: "
	stays  = "it is deleted there and can't be here: "
)

// inability is why something could not be done in the directory, if that is for what is
// at its path alone: nothing else needs to wait for it.
func inability(err error) (why string, is bool) {
	if errors.Is(err, tree.ErrBlocked) {
		return tree.ErrBlocked.Error(), true
	}
	if at, is := errors.AsType[*fs.PathError](err); is {
		ours := at.Path == tree.Own || strings.HasPrefix(at.Path, tree.Own+"/")
		return at.Err.Error(), !ours && !errors.Is(err, fs.ErrNotExist)
	}
	if at, is := errors.AsType[*os.LinkError](err); is {
		return at.Err.Error(), !errors.Is(err, fs.ErrNotExist)
	}
	return "", false
}

// unable holds a path, to be tried again after a while.
func (d *delta) unable(p string, r *state.Row) {
	d.Log.Warn("going on without a path", "path", p, "cause", r.Held)
	d.set(p, r)
	if now := d.now(); !now.Before(d.retry) {
		d.retry = now.Add(forget)
	}
}

// intend stores what is going to be here.
func (d *delta) intend(ctx context.Context, paths []string) error {
	err := d.Store.Update(ctx, func(tx *state.Tx) {
		for _, p := range paths {
			if w := d.wants[p]; w.Kind != tree.None {
				tx.AddIntent(p, state.Intent{Kind: w.Kind, Sum: w.Sum})
			}
		}
	})
	if err != nil {
		return err
	}
	for _, p := range paths {
		if w := d.wants[p]; w.Kind != tree.None {
			d.mem.Intents[p] = state.Intent{Kind: w.Kind, Sum: w.Sum}
		}
	}
	return d.at("intended")
}

// set changes the base.
func (d *delta) set(p string, r *state.Row) {
	d.setRow(p, r)
	d.rows[p] = r
}

// drop forgets the contents that were fetched and not placed.
func (d *delta) drop() {
	for _, w := range d.wants {
		if w.staged != nil {
			d.Tree.Drop(*w.staged)
		}
	}
}

// fetchEarly fetches a file's content if it will be needed.
func (d *delta) fetchEarly(ctx context.Context, p string) error {
	w := d.wants[p]
	if w.Kind != tree.File || w.staged != nil || d.hold(p, w.Kind) != "" {
		return nil
	}
	seen, err := d.Tree.Look(ctx, p, d.mem.Base[p].Seen)
	if err != nil || seen.SameContent(w.Entry) {
		return nil // whatever it is, put finds it, too
	}
	return d.fetch(ctx, p)
}

// fetch fetches a file's content.
func (d *delta) fetch(ctx context.Context, p string) error {
	w := d.wants[p]
	r, err := d.content(ctx, w)
	if notFound(err) {
		d.gone = append(d.gone, p)
		return nil
	}
	if err != nil {
		return fmt.Errorf("fetching %s: %w", p, err)
	}
	defer r.Close()
	if d.fetched += w.Size; w.Size < 0 || d.fetched < 0 || d.fetched > maxArchive {
		return fmt.Errorf("fetching %s: more than %d bytes at once", p, int64(maxArchive))
	}
	staged, err := d.Tree.Stage(ctx, r, w.Size)
	if err != nil {
		return fmt.Errorf("fetching %s: %w", p, err)
	}
	if staged.Sum != w.Sum {
		d.Tree.Drop(staged)
		return fmt.Errorf("fetching %s: the content is not what the journal says", p)
	}
	w.staged = &staged
	d.wants[p] = w
	return nil
}

// intended reports whether something here is what we were putting there when we ended.
func (d *delta) intended(p string, e tree.Entry) bool {
	i, is := d.mem.Intents[p]
	return is && i.Kind == e.Kind && i.Sum == e.Sum
}

// remove does here that the volume has nothing at a path.
func (d *delta) remove(ctx context.Context, p string) error {
	row, is := d.mem.Base[p]
	if !is {
		return nil // what may be here is the user's
	}
	if row.Held != "" && !strings.HasPrefix(row.Held, stays) {
		d.set(p, nil)
		return nil
	}
	seen, err := d.Tree.Look(ctx, p, row.Seen)
	switch {
	case errors.Is(err, tree.ErrBlocked), err == nil && seen.Kind != row.Kind:
		d.set(p, nil) // gone, or the user has something else there
		return nil
	case err != nil:
		return err
	case seen.SameContent(row.Entry):
		removed, err := d.Tree.Remove(p, seen)
		if err != nil {
			return err
		}
		if removed {
			d.changed++
		}
	default:
		if err := d.setAside(ctx, p, seen, d.wants[p].seq); err != nil {
			return err
		}
	}
	d.set(p, nil)
	d.settled = append(d.settled, p)
	return d.at("removed")
}

// put does here what the volume has at a path.
func (d *delta) put(ctx context.Context, p string) error {
	w, row := d.wants[p], d.mem.Base[p]
	why := d.hold(p, w.Kind)
	var seen tree.Seen
	if why == "" {
		var err error
		seen, err = d.Tree.Look(ctx, p, row.Seen)
		switch {
		case errors.Is(err, tree.ErrBlocked):
			why = err.Error()
		case err != nil:
			return err
		case seen.Kind == tree.Other:
			why = "something that is not synced is there"
		}
	}
	if why != "" {
		d.set(p, &state.Row{Seen: tree.Seen{Entry: w.Entry}, Held: why})
		return nil
	}
	isKnown := d.isKnown(p)
	switch {
	case seen.Same(w.Entry):
		d.agree(p, seen)
		return nil
	case isKnown && w.Same(row.Entry):
		return nil // only ours has changed
	case seen.SameContent(w.Entry):
		if err := d.Tree.Chmod(p, w.Kind, w.Mode); err != nil {
			return err
		}
		d.changed++
		seen.Mode = w.Mode
		d.agree(p, seen)
		return nil
	case d.keep && !isKnown && seen.Kind != tree.None:
		d.set(p, &state.Row{Seen: tree.Seen{Entry: w.Entry}})
		return nil
	}
	return d.replace(ctx, p, seen)
}

// agree says that both sides have what was seen.
func (d *delta) agree(p string, seen tree.Seen) {
	d.set(p, &state.Row{Seen: seen})
	d.settled = append(d.settled, p)
}

// replace puts what the volume has in the place of what is here.
func (d *delta) replace(ctx context.Context, p string, seen tree.Seen) error {
	w, row := d.wants[p], d.mem.Base[p]
	if w.Kind == tree.File && w.staged == nil {
		if err := d.fetch(ctx, p); err != nil {
			return err
		}
		if w = d.wants[p]; w.staged == nil {
			return nil // it is gone
		}
	}
	ours := seen.Kind != tree.None && !d.intended(p, seen.Entry) && !(d.isKnown(p) && seen.SameContent(row.Entry))
	if !ours && seen.Kind != tree.None && (seen.Kind == tree.Dir || w.Kind == tree.Dir) {
		removed, err := d.Tree.Remove(p, seen)
		if err != nil {
			return err
		}
		if ours = !removed; removed {
			seen = tree.Seen{}
		}
	}
	if ours {
		if err := d.setAside(ctx, p, seen, w.seq); err != nil {
			return err
		}
		seen = tree.Seen{}
	}
	if err := d.parents(ctx, p); err != nil {
		return err
	}
	if err := d.at("placing"); err != nil {
		return err
	}
	placed, err := d.place(ctx, p, w, seen)
	if err != nil {
		return err
	}
	d.changed++
	d.agree(p, placed)
	return d.at("placed")
}

// parents makes the directories above a path.
func (d *delta) parents(ctx context.Context, p string) error {
	dir := path.Dir(p)
	if dir == "." {
		return nil
	}
	made, err := d.Tree.Make(dir, 0)
	for _, m := range made {
		if seen, err := d.Tree.Look(ctx, m, tree.Seen{}); err == nil {
			d.set(m, &state.Row{Seen: seen})
		}
	}
	return err
}

func (d *delta) place(ctx context.Context, p string, w want, seen tree.Seen) (tree.Seen, error) {
	if w.Kind == tree.Dir {
		if _, err := d.Tree.Make(p, w.Mode); err != nil {
			return tree.Seen{}, err
		}
		return d.Tree.Look(ctx, p, tree.Seen{})
	}
	placed, err := d.Tree.Place(*w.staged, p, w.Mode, seen)
	if err != nil {
		return placed, err
	}
	w.staged = nil
	d.wants[p] = w
	return placed, nil
}

// commit stores what was done, with the cursor.
func (d *delta) commit(ctx context.Context) error {
	if err := d.at("applied"); err != nil {
		return err
	}
	err := d.Store.Update(ctx, func(tx *state.Tx) {
		for p, r := range d.rows {
			tx.SetRow(p, r)
		}
		for _, p := range d.settled {
			tx.Settle(p)
		}
		tx.SetProgress(d.mem.Progress)
		tx.ForgetSent(d.mem.Progress.Cursor)
		tx.ClearIntents()
	})
	if err != nil {
		return err
	}
	for _, p := range d.settled {
		delete(d.mem.Contested, p)
	}
	maps.DeleteFunc(d.mem.Sent, func(_ string, seq int64) bool { return seq <= d.mem.Progress.Cursor })
	clear(d.mem.Intents)
	return nil
}
