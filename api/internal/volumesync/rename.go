package volumesync

import (
	"context"
	"slices"
	"strings"

	"s0.run/api/internal/store"
	"s0.run/internal/procapi"
)

// rename moves a path, with what is in it. A file may replace one that the replica knew.
func (p *push) rename(ctx context.Context, c Change) error {
	from, to := p.live(c.OldPath), p.live(c.Path)
	if from == nil {
		return p.renameOfNothing(ctx, c, to)
	}
	below := p.below(c.OldPath)
	if by := p.firstUnseen(append(below, from)); by != nil {
		return p.refuse(ctx, c, reasonConcurrent, by)
	}
	switch {
	case to != nil && (to.Kind != store.SyncFile || from.Kind != store.SyncFile):
		return p.refuse(ctx, c, reasonKind, to)
	case c.SHA256 != "" && from.Kind == store.SyncFile && c.SHA256 != from.SHA256: // another is there now
		if to != nil && to.SHA256 == c.SHA256 {
			return p.acceptAs(to)
		}
		return p.refuse(ctx, c, reasonConcurrent, from)
	case p.unseen(to) || p.earlier(to):
		return p.refuse(ctx, c, reasonConcurrent, to)
	case to == nil:
		reason, by, err := p.makeWay(ctx, c.Path, c.OldPath)
		if reason == codeCasefold && p.names.key(c.Path) == p.names.key(c.OldPath) {
			reason = reasonCaseRename
		}
		if reason != "" || err != nil {
			return p.refuseUnless(ctx, err, c, reason, by)
		}
	}
	made, err := p.tree.alter(ctx, []procapi.Alteration{{
		Op: procapi.AlterRename, Path: c.OldPath, To: c.Path, Expect: p.expects(c.OldPath), ExpectTo: p.expects(c.Path),
	}})
	if err != nil {
		return err
	}
	if made[0] == nil {
		return errNoSense
	}
	return p.accept(p.renamed(*made[0], c, *from, below))
}

// earlier reports whether a path became what it is behind the base and before this push. It
// may be this very rename that made it, in a push whose answer was lost: what is at the old
// path then is another file.
func (p *push) earlier(row *store.SyncPath) bool {
	return row != nil && row.Seq > p.Base && row.Seq <= p.begun
}

// renameOfNothing is a rename of what is not there: it may have been carried out before,
// or the file, if the change has it, is made anew.
func (p *push) renameOfNothing(ctx context.Context, c Change, to *store.SyncPath) error {
	switch {
	case to != nil && to.SHA256 == c.SHA256 && c.SHA256 != "":
		return p.acceptAs(to)
	case to != nil && to.Source == store.SyncByReplica && to.Replica == p.Replica && p.rows[c.OldPath] != nil && !p.unseen(p.rows[c.OldPath]):
		return p.acceptAs(to)
	}
	return p.refuse(ctx, c, reasonConcurrent, p.rows[c.OldPath])
}

// renamed records a rename: what is gone, the deepest first, and then what is there. So
// each entry is about one path, and who replays them needs no look at what he has at
// another.
func (p *push) renamed(made procapi.TreeEntry, c Change, from store.SyncPath, below []*store.SyncPath) (last store.SyncEntry) {
	for _, old := range slices.Backward(append([]*store.SyncPath{&from}, below...)) {
		p.record(removed(*old, store.SyncByReplica, p.Replica))
	}
	c.SHA256 = from.SHA256
	last = p.replicaRecords("create", made, c)
	c.Metadata = nil // what is accepted has it
	for _, old := range below {
		now := p.found.entries[old.Path]
		now.Path = c.Path + strings.TrimPrefix(old.Path, c.OldPath)
		c.SHA256 = old.SHA256
		p.replicaRecords("create", now, c)
		p.forget(old.Path)
	}
	p.forget(from.Path)
	return last
}
