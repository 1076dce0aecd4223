package volumesync

import (
	"context"
	"path"
	"slices"
	"strings"

	"s0.run/api/internal/store"
	"s0.run/internal/procapi"
)

// Reasons of conflicts, beside those of names.
const (
	reasonConcurrent  = "concurrent_update"         // somebody else changed the path since the base
	reasonCaseRename  = "case_only_rename_conflict" // of two that some replica can't tell apart
	reasonKind        = "path_type_conflict"        // a file is where a directory is wanted, or the other way round
	reasonUnsupported = "unsupported_entry"         // something is there that is not kept alike
)

// change makes one change of the replica, or a conflict of it. It fails with errMoved,
// with nothing of it recorded that was not made, where the tree is not what was seen.
func (p *push) change(ctx context.Context, c Change) error {
	switch {
	case c.Event == "remove":
		return p.remove(ctx, c)
	case c.Event == "chmod":
		return p.chmod(ctx, c)
	case c.Event == "rename":
		return p.rename(ctx, c)
	case c.Kind == store.SyncDirectory:
		return p.mkdir(ctx, c)
	}
	return p.put(ctx, c)
}

// unseen reports whether somebody else's entry of a path is later than what the replica
// had, or a sandbox is writing to it now.
func (p *push) unseen(row *store.SyncPath) bool {
	if row == nil {
		return false
	}
	own := row.Source == store.SyncByReplica && row.Replica == p.Replica
	return row.Seq > p.Base && !own || p.found.writing[row.Path]
}

// expects is what must be at a path for the tree to be what was seen.
func (p *push) expects(name string) string {
	switch row := p.live(name); {
	case row == nil:
		return procapi.ExpectAbsent
	case row.Kind == store.SyncDirectory:
		return procapi.ExpectDir
	}
	return p.found.stamps[name]
}

// put makes a content the file's.
func (p *push) put(ctx context.Context, c Change) error {
	row := p.rows[c.Path]
	live := row != nil && !row.Gone
	switch {
	case live && row.Kind == store.SyncDirectory:
		return p.refuse(ctx, c, reasonKind, row)
	case live && row.SHA256 == c.SHA256 && (c.Mode == nil || *c.Mode == row.Mode) && !p.found.writing[c.Path]:
		return p.acceptAs(row)
	case p.unseen(row) && (live || c.Event == "write"):
		return p.refuse(ctx, c, reasonConcurrent, row)
	}
	if !live {
		if reason, by, err := p.makeWay(ctx, c.Path, ""); reason != "" || err != nil {
			return p.refuseUnless(ctx, err, c, reason, by)
		}
	}
	mode, event := modeOf(c, newFile), "create"
	if live {
		mode, event = modeOf(c, row.Mode), "write"
	}
	made, err := p.tree.put(ctx, c.Path, mode, p.expects(c.Path), c.Content)
	if err != nil {
		return err
	}
	return p.accept(p.replicaRecords(event, made, c))
}

// refuseUnless makes a conflict, unless there was an error.
func (p *push) refuseUnless(ctx context.Context, err error, c Change, reason string, by *store.SyncPath) error {
	if err != nil {
		return err
	}
	return p.refuse(ctx, c, reason, by)
}

// replicaRecords records what a change has made.
func (p *push) replicaRecords(event string, made procapi.TreeEntry, c Change) store.SyncEntry {
	entry, row := p.byReplica(event, made, c.SHA256)
	entry.Metadata = c.Metadata
	p.appear(made.Path)
	return p.record(entry, row)
}

// makeWay makes the directories above a path, at which nothing is, and reports why a change
// can't make something there; from is where that comes from.
func (p *push) makeWay(ctx context.Context, name, from string) (reason string, by *store.SyncPath, err error) {
	if p.found.other(name) {
		return reasonUnsupported, nil, nil
	}
	if code, _ := p.names.refused(name); code != "" {
		return code, nil, nil
	}
	var missing []procapi.Alteration
	for _, dir := range above(name) {
		row := p.live(dir)
		switch {
		case p.found.other(dir):
			return reasonUnsupported, nil, nil
		case row != nil && row.Kind != store.SyncDirectory:
			return reasonKind, row, nil
		case row == nil:
			missing = append(missing, procapi.Alteration{Op: procapi.AlterMkdir, Path: dir, Mode: newDirectory})
		}
		if by := p.collides(dir, from); by != nil {
			return codeCasefold, by, nil
		}
	}
	if by := p.collides(name, from); by != nil {
		return codeCasefold, by, nil
	}
	return "", nil, p.mkdirs(ctx, missing)
}

// above are the directories that a path is in, the outermost first.
func above(name string) (dirs []string) {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		dirs = append(dirs, dir)
	}
	slices.Reverse(dirs)
	return dirs
}

func (p *push) mkdirs(ctx context.Context, all []procapi.Alteration) error {
	if len(all) == 0 {
		return nil
	}
	made, err := p.tree.alter(ctx, all)
	if err != nil {
		return err
	}
	for _, e := range made {
		if e == nil {
			return errNoSense
		}
		p.replicaRecords("create", *e, Change{})
	}
	return nil
}

// collides is what has, with another spelling, the name of a path, where some replica
// can't have both; from, and what is in it, does not count.
func (p *push) collides(name, from string) *store.SyncPath {
	if p.names.CaseSensitive && !p.names.UnicodeInsensitive {
		return nil
	}
	if p.keys == nil {
		p.keys = make(map[string][]string, len(p.rows))
		for other := range p.rows {
			if p.live(other) != nil {
				p.appear(other)
			}
		}
	}
	for _, other := range p.keys[p.names.key(name)] {
		if other != name && other != from && (from == "" || !strings.HasPrefix(other, from+"/")) {
			return p.live(other)
		}
	}
	return nil
}

// appear notes that there is a path now.
func (p *push) appear(name string) {
	if key := p.names.key(name); p.keys != nil && !slices.Contains(p.keys[key], name) {
		p.keys[key] = append(p.keys[key], name)
	}
}

// mkdir makes a directory.
func (p *push) mkdir(ctx context.Context, c Change) error {
	row := p.live(c.Path)
	switch {
	case row != nil && row.Kind == store.SyncDirectory:
		return p.acceptAs(row)
	case row != nil:
		return p.refuse(ctx, c, reasonKind, row)
	}
	if reason, by, err := p.makeWay(ctx, c.Path, ""); reason != "" || err != nil {
		return p.refuseUnless(ctx, err, c, reason, by)
	}
	made, err := p.tree.alter(ctx, []procapi.Alteration{{Op: procapi.AlterMkdir, Path: c.Path, Mode: uint32(modeOf(c, newDirectory))}})
	if err != nil {
		return err
	}
	if made[0] == nil {
		return errNoSense
	}
	return p.accept(p.replicaRecords("create", *made[0], c))
}

// chmod changes a path's permissions.
func (p *push) chmod(ctx context.Context, c Change) error {
	row := p.live(c.Path)
	switch {
	case row != nil && row.Mode == *c.Mode:
		return p.acceptAs(row)
	case row == nil || p.unseen(row):
		return p.refuse(ctx, c, reasonConcurrent, p.rows[c.Path])
	}
	made, err := p.tree.alter(ctx, []procapi.Alteration{{Op: procapi.AlterChmod, Path: c.Path, Mode: uint32(*c.Mode), Expect: p.expects(c.Path)}})
	if err != nil {
		return err
	}
	if made[0] == nil {
		return errNoSense
	}
	c.SHA256 = row.SHA256
	return p.accept(p.replicaRecords("chmod", *made[0], c))
}

// remove deletes a path, with what is in it.
func (p *push) remove(ctx context.Context, c Change) error {
	row := p.live(c.Path)
	if row == nil {
		if p.found.other(c.Path) {
			return p.refuse(ctx, c, reasonUnsupported, nil)
		}
		if was := p.rows[c.Path]; was != nil {
			return p.acceptAs(was)
		}
		return nil // it never was
	}
	all := append([]*store.SyncPath{row}, p.below(c.Path)...)
	if by := p.firstUnseen(all); by != nil {
		return p.refuse(ctx, c, reasonConcurrent, by)
	}
	for other := range p.found.entries {
		if strings.HasPrefix(other, c.Path+"/") && p.found.other(other) {
			return p.refuse(ctx, c, reasonUnsupported, nil)
		}
	}
	slices.Reverse(all)
	var steps []procapi.Alteration
	for _, r := range all {
		steps = append(steps, procapi.Alteration{Op: procapi.AlterRemove, Path: r.Path, Expect: p.expects(r.Path)})
	}
	if _, err := p.tree.alter(ctx, steps); err != nil {
		return err
	}
	var last store.SyncEntry
	for _, r := range all {
		entry, gone := removed(*r, store.SyncByReplica, p.Replica)
		if r == row { // what is accepted has it
			entry.Metadata = c.Metadata
		}
		last = p.record(entry, gone)
		p.forget(r.Path)
	}
	return p.accept(last)
}

// firstUnseen is one of paths that the replica has not seen as it is.
func (p *push) firstUnseen(all []*store.SyncPath) *store.SyncPath {
	if i := slices.IndexFunc(all, p.unseen); i >= 0 {
		return all[i]
	}
	return nil
}

// forget notes that there is no such path any more.
func (p *push) forget(name string) {
	delete(p.found.entries, name)
	delete(p.found.stamps, name)
	if key := p.names.key(name); p.keys != nil {
		p.keys[key] = slices.DeleteFunc(p.keys[key], func(other string) bool { return other == name })
	}
}
