package volumesync

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/audit"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

// Change is what a replica did to a path.
type Change struct {
	Event, Path, OldPath string
	Kind                 string // file, directory; empty: a file, or what is there
	Content              []byte
	HasContent           bool
	Mode                 *int32
	SHA256               string // of the content; empty: not said
	Size                 *int64
	Metadata             json.RawMessage
}

// Push is a replica's request.
type Push struct {
	Replica, Request string
	Base             int64 // what the replica had when it made the changes
	Changes          []Change
}

// Pushed is what became of it: of each change, the entry that carries it out, or a
// conflict.
type Pushed struct {
	Head      int64                `json:"head"`
	Accepted  []store.SyncEntry    `json:"accepted"`
	Conflicts []store.SyncConflict `json:"conflicts"`
}

// tries bounds how often a change is tried anew because a sandbox was quicker.
const tries = 4

// push is a request that is carried out.
type push struct {
	*session
	Push
	names names
	keys  map[string][]string // the live paths of each key, where names aren't all told apart
	begun int64               // the head before the first change
	done  Pushed
}

// Push carries a replica's changes out, in order. The same request again has the same
// answer.
func (k *Keeper) Push(ctx context.Context, of Of, req Push) (done Pushed, err error) {
	if err := req.check(); err != nil {
		return done, err
	}
	if _, err := k.cfg.Store.SyncReplica(ctx, of.Team, of.Volume, req.Replica); err != nil {
		return done, err
	}
	err = k.within(ctx, of, func(ctx context.Context, s *session) error {
		hash := req.hash()
		answered, err := k.cfg.Store.SyncAnswer(ctx, of.Volume, req.Replica, req.Request, hash)
		if err != nil {
			return err
		}
		if answered != nil {
			return json.Unmarshal(answered, &done)
		}
		p := &push{session: s, Push: req}
		if err := p.run(ctx, hash); err != nil {
			return err
		}
		done = p.done
		return nil
	})
	return done, err
}

// hash identifies a request.
func (req *Push) hash() []byte {
	h := sha256.New()
	enc := json.NewEncoder(h)
	_ = enc.Encode(req.Base) // a hash takes everything
	for _, c := range req.Changes {
		sum := sha256.Sum256(c.Content)
		c.Content = sum[:]
		_ = enc.Encode(c)
	}
	return h.Sum(nil)
}

// check reads the changes, and completes what they leave out.
func (req *Push) check() error {
	if len(req.Changes) == 0 || len(req.Changes) > MaxChanges {
		return errdefs.New(errdefs.InvalidArgument, "changes: want 1 to %d", MaxChanges)
	}
	total := 0
	for i := range req.Changes {
		c := &req.Changes[i]
		if total += len(c.Content); total > MaxContent {
			return errdefs.New(errdefs.TooLarge, "the changes' content has more than %d bytes together", MaxContent)
		}
		if err := c.check(fmt.Sprintf("changes[%d]", i)); err != nil {
			return err
		}
	}
	return nil
}

func (c *Change) check(field string) (err error) {
	if c.Path, err = cleanPath(field+".path", c.Path); err != nil {
		return err
	}
	if !slices.Contains([]string{"create", "write", "remove", "rename", "chmod"}, c.Event) {
		return errdefs.New(errdefs.InvalidArgument, "%s: event_type %.20q is not for replicas", field, c.Event)
	}
	if (c.Event == "rename") != (c.OldPath != "") {
		return errdefs.New(errdefs.InvalidArgument, "%s: want old_path with event_type rename, and with no other", field)
	}
	if c.OldPath != "" {
		if c.OldPath, err = cleanPath(field+".old_path", c.OldPath); err != nil {
			return err
		}
		if c.Path == c.OldPath || strings.HasPrefix(c.Path, c.OldPath+"/") {
			return errdefs.New(errdefs.InvalidArgument, "%s: a path can't be renamed to itself, or into itself", field)
		}
	}
	content := c.Kind != store.SyncDirectory && (c.Event == "create" || c.Event == "write")
	switch {
	case c.Event == "write" && c.Kind == store.SyncDirectory:
		return errdefs.New(errdefs.InvalidArgument, "%s: a directory can't be written", field)
	case c.Event == "chmod" && c.Mode == nil:
		return errdefs.New(errdefs.InvalidArgument, "%s.mode is required", field)
	case c.Mode != nil && (*c.Mode < 0 || *c.Mode > 0o7777):
		return errdefs.New(errdefs.InvalidArgument, "%s.mode: want permission bits", field)
	case c.SHA256 != "" && !digestForm.MatchString(c.SHA256):
		return errdefs.New(errdefs.InvalidArgument, "%s.content_sha256: want 64 hexadecimal digits", field)
	case c.HasContent && !content && c.Event != "rename":
		return errdefs.New(errdefs.InvalidArgument, "%s.content_base64 is only for files that are created or written", field)
	case content && !c.HasContent && (c.Size == nil || *c.Size != 0):
		return errdefs.New(errdefs.InvalidArgument, "%s.content_base64 is required", field)
	}
	if c.Mode != nil {
		c.Mode = new(*c.Mode & permissions)
	}
	switch {
	case content || c.HasContent:
		return c.checkContent(field)
	case c.Event != "rename": // which may say of what
		c.SHA256 = ""
	}
	return nil
}

const permissions = 0o777

func (c *Change) checkContent(field string) error {
	sum := sha256.Sum256(c.Content)
	is := hex.EncodeToString(sum[:])
	if c.SHA256 != "" && c.SHA256 != is || c.Size != nil && *c.Size != int64(len(c.Content)) {
		return errdefs.New(errdefs.InvalidArgument, "%s: content_sha256 or size_bytes is not the content's", field)
	}
	c.SHA256 = is
	return nil
}

// run carries the request out and stores the answer with what it is the answer to.
func (p *push) run(ctx context.Context, hash []byte) error {
	if err := p.admit(ctx); err != nil {
		return err
	}
	if err := p.k.cfg.Store.RoomForSyncConflicts(audit.Without(ctx), p.of.Volume, len(p.Changes)); err != nil {
		return err
	}
	if err := p.look(ctx, true); err != nil {
		return err
	}
	p.begun = p.head()
	p.done = Pushed{Accepted: []store.SyncEntry{}, Conflicts: []store.SyncConflict{}}
	for _, c := range p.Changes {
		if err := p.carry(ctx, c); err != nil {
			return p.partly(ctx, err)
		}
	}
	p.done.Head = p.head()
	answer, err := json.Marshal(p.done)
	if err != nil {
		return err
	}
	return p.flush(ctx, store.SyncWrite{
		Conflicts: p.done.Conflicts,
		Request:   &store.SyncRequest{Replica: p.Replica, ID: p.Request, Hash: hash, Answer: answer, Lease: replicaLease},
	})
}

// partly stores what was done before an error: it is the replica's, and no sandbox's.
func (p *push) partly(ctx context.Context, cause error) error {
	return errors.Join(cause, p.save(ctx, store.SyncWrite{Conflicts: p.done.Conflicts}))
}

// admit reports why a replica may not change the volume now.
func (p *push) admit(ctx context.Context) error {
	r, err := p.k.cfg.Store.SyncReplica(ctx, p.of.Team, p.of.Volume, p.Replica)
	if err != nil {
		return err
	}
	refuse := func(reason, text string) error {
		return errdefs.New(errdefs.Conflict, "%s", text).WithDetails(map[string]any{
			"reason": reason, "head_seq": p.sync.Head, "last_applied_seq": r.LastApplied,
		})
	}
	switch {
	case !r.Leased:
		return refuse(reasonLease, "the replica's lease is over: register it again")
	case p.Base > p.sync.Head:
		return refuse(reasonAhead, "base_seq is beyond the journal's head")
	case p.Base < r.LastApplied:
		return refuse(reasonBehindCursor, "base_seq is before the replica's cursor")
	case p.Base < p.sync.Floor:
		return reseed(p.sync)
	}
	p.names.SyncNames, err = p.k.cfg.Store.SyncNamesOf(ctx, p.of.Volume)
	return err
}

// carry makes one change. Where a sandbox has changed its path a moment ago, the tree is
// looked at again.
func (p *push) carry(ctx context.Context, c Change) error {
	if len(p.next.entries) > maxPushed {
		return errdefs.New(errdefs.TooLarge, "the changes make more than %d entries together: send fewer at a time", maxPushed)
	}
	for n := 1; ; n++ {
		err := p.change(ctx, c)
		if _, is := errors.AsType[*errMoved](err); !is {
			return err
		}
		switch {
		case n == tries && c.Event == "remove": // something is in it that no look tells
			return p.refuse(ctx, c, reasonUnsupported, p.live(c.Path))
		case n == tries:
			return errdefs.New(errdefs.Unavailable, "the volume is changed too fast").WithRetryAfter(time.Second).WithCause(err)
		}
		p.keys = nil
		if err := p.look(ctx, true); err != nil {
			return err
		}
	}
}

// accept answers the entry that carries a change out.
func (p *push) accept(e store.SyncEntry) error {
	e.CreatedAt = time.Now().UTC() // about when the database says it was
	p.done.Accepted = append(p.done.Accepted, e)
	return nil
}

// acceptAs answers that what a change wants is so already.
func (p *push) acceptAs(row *store.SyncPath) error {
	e := entryOf("write", *row)
	switch {
	case row.Gone:
		e, _ = removed(*row, row.Source, row.Replica)
	case row.Kind == store.SyncDirectory:
		e.Event = "create"
	}
	e.Seq = row.Seq
	return p.accept(e)
}

// refuse makes a conflict of a change. What it would have written is kept beside the path,
// as an entry of nobody: the replica, too, is to have it.
func (p *push) refuse(ctx context.Context, c Change, reason string, existing *store.SyncPath) error {
	conflict := store.SyncConflict{
		ID: uuid.New(), Replica: p.Replica, Event: c.Event, Path: c.Path, OldPath: c.OldPath, BaseSeq: p.Base, Reason: reason,
		Status: store.SyncConflictOpen, CreatedAt: time.Now().UTC(),
	}
	conflict.UpdatedAt = conflict.CreatedAt
	if existing != nil {
		conflict.ExistingSeq = existing.Seq
	}
	if _, refused := p.names.refused(c.Path); c.SHA256 != "" && (c.HasContent || c.Event != "rename") && refused == "" {
		name, err := p.keep(ctx, c, conflict.ID)
		if err != nil {
			return err
		}
		conflict.ArtifactPath = name
	}
	p.done.Conflicts = append(p.done.Conflicts, conflict)
	return nil
}

// keep writes a refused change's content beside its path, or the nearest directory above
// it that is one.
func (p *push) keep(ctx context.Context, c Change, id uuid.UUID) (string, error) {
	dir := path.Dir(c.Path)
	for dir != "." {
		row := p.live(dir)
		if row != nil && row.Kind == store.SyncDirectory && len(dir)+1+maxArtifactName <= procapi.MaxMirrorPath {
			break
		}
		dir = path.Dir(dir)
	}
	if name := p.kept(dir, c); name != "" {
		return name, nil
	}
	name := artifactName(dir, path.Base(c.Path), p.Replica, p.head()+1)
	made, err := p.tree.put(ctx, name, modeOf(c, newFile), procapi.ExpectAbsent, c.Content)
	if err != nil {
		return "", err
	}
	entry, row := p.byReplica("create", made, c.SHA256)
	entry.Replica, row.Replica = "", ""
	about, err := json.Marshal(map[string]string{"conflict_id": id.String(), "conflict_path": Shown(c.Path), "replica_id": p.Replica})
	if err != nil {
		return "", err
	}
	entry.Metadata = about
	p.record(entry, row)
	return name, nil
}

// kept is where a change's content has been kept before, by a request whose answer was
// lost; empty: nowhere.
func (p *push) kept(dir string, c Change) string {
	begin, end := artifactParts(path.Base(c.Path), p.Replica)
	for name, row := range p.rows {
		base := path.Base(name)
		if row.SHA256 == c.SHA256 && !row.Gone && path.Dir(name) == dir && strings.HasPrefix(base, begin) && strings.HasSuffix(base, end) {
			return name
		}
	}
	return ""
}

// Modes of what is made without one.
const newFile, newDirectory = 0o644, 0o755

func modeOf(c Change, otherwise int32) int32 {
	if c.Mode != nil {
		return *c.Mode
	}
	return otherwise
}

// byReplica is an entry of what the replica sent, and what it makes of its path.
func (p *push) byReplica(event string, e procapi.TreeEntry, sha256 string) (store.SyncEntry, store.SyncPath) {
	entry, row := bySandbox(event, e)
	row.SHA256, row.Source, row.Replica = sha256, store.SyncByReplica, p.Replica
	entry.SHA256, entry.Source, entry.Replica = sha256, row.Source, row.Replica
	p.found.entries[e.Path], p.found.stamps[e.Path] = e, e.Stamp
	delete(p.found.writing, e.Path)
	p.found.settled = false
	return entry, row
}
