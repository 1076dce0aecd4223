package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"s0.run/cmd/s0/internal/sync/state"
	"s0.run/cmd/s0/internal/sync/tree"
)

const (
	maxChanges = 256     // of a request
	maxContent = 4 << 20 // of a request with more than one change
)

const (
	tooLarge = "larger than what syncing takes"
	// reseedRequired is what the server calls a journal that does not lead on.
	reseedRequired = "reseed_required"
)

// curable are the 409s after which the rest of a cycle, or the next lease, helps.
var curable = []string{reseedRequired, "lease_expired", "base_seq_behind_cursor"}

// local is a change that was found here.
type local struct {
	Change
	row  *state.Row // what is agreed on once it is accepted; nil is nothing
	seen tree.Seen
}

// push sends what changed here, unless conflicts are open.
func (e *Engine) push(ctx context.Context) error {
	found, err := e.Tree.Scan(ctx, e.known())
	if err != nil {
		return err
	}
	if err := errors.Join(e.at("scanned"), e.Tree.Check(e.ID)); err != nil {
		return err
	}
	e.status.Pending = 0
	changes, err := e.diff(ctx, found)
	if err != nil {
		return err
	}
	e.status.Pending += len(changes)
	if e.stopped || e.mem.Progress.Reseed || len(changes) == 0 && e.status.Conflicts == 0 {
		return nil
	}
	if open, err := e.openConflicts(ctx); err != nil || open {
		return err
	}
	for len(changes) > 0 {
		request, used, err := e.request(&changes)
		if err != nil {
			return err
		}
		if len(request.rows) == 0 {
			continue // they have changed again meanwhile
		}
		if err := e.Tree.Check(e.ID); err != nil {
			return err
		}
		if err := e.send(ctx, request); err != nil {
			return err
		}
		if e.stopped {
			return nil
		}
		e.status.Pending -= used
		if e.status.Conflicts > 0 || e.mem.Outbox != nil {
			return nil
		}
	}
	return nil
}

// openConflicts counts the conflicts of ours that somebody must look at.
func (e *Engine) openConflicts(ctx context.Context) (bool, error) {
	list, err := e.Server.Conflicts(ctx)
	if err != nil {
		return false, fmt.Errorf("asking for conflicts: %w", err)
	}
	e.status.Conflicts = 0
	for _, c := range list {
		if c.ReplicaID == e.ID || c.ReplicaID == "" {
			e.status.Conflicts++
		}
	}
	return e.status.Conflicts > 0, nil
}

// diff is what of a snapshot is not the base: first what is gone, the innermost first,
// then what is new, the outermost first.
func (e *Engine) diff(ctx context.Context, found *tree.Snapshot) (changes []local, err error) {
	e.status.Skipped = slices.Clone(found.Skipped)
	var removed, written []local
	rested := map[string]*state.Row{}
	waits, around := e.missing(found), e.aroundHeld()
	retry := !e.now().Before(e.retry)
	for p, row := range e.mem.Base {
		if row.Held != "" {
			e.reconsider(p, row, found, retry)
			continue
		}
		seen, is := found.Entries[p]
		if is && seen.Kind == row.Kind || seen.Kind == tree.Other || hidden(p, found) {
			continue
		}
		if waits[p] {
			e.status.Pending++
			continue
		}
		if around[p] { // a directory in which the volume has what is held back stays there
			row.Held = ignoredHere
			rested[p] = &row
			continue
		}
		if change, ok := e.removal(p, row); ok {
			removed = append(removed, change)
		}
	}
	for p, seen := range found.Entries {
		row, is := e.mem.Base[p]
		if is && row.Held != "" || seen.Kind == tree.Other {
			continue
		}
		if row.Same(seen.Entry) {
			if row.Stamp != seen.Stamp || row.Settled != seen.Settled {
				rested[p] = &state.Row{Seen: seen}
			}
			continue
		}
		if len(waits) > 0 && waits[e.fold[tree.Fold(p)]] {
			e.status.Pending++ // renamed, for a file system without case
			continue
		}
		if change, ok := e.writing(p, row, seen); ok {
			written = append(written, change)
		}
	}
	slices.SortFunc(removed, func(a, b local) int { return strings.Compare(b.Path, a.Path) })
	slices.SortFunc(written, func(a, b local) int { return strings.Compare(a.Path, b.Path) })
	return append(removed, written...), e.storeRows(ctx, rested)
}

// missing yields what of the base is missing here and may come back, or is only the
// beginning of what is being deleted.
func (e *Engine) missing(found *tree.Snapshot) map[string]bool {
	now := e.now()
	absent := map[string]time.Time{}
	var newest time.Time
	for p, row := range e.mem.Base {
		if row.Held != "" || found.Entries[p].Kind != tree.None || inTheWay(p, found) {
			continue
		}
		since, is := e.absent[p]
		if !is {
			since = now
		}
		absent[p] = since
		if since.After(newest) {
			newest = since
		}
	}
	e.absent = absent
	waits := map[string]bool{}
	for p, since := range absent {
		if now.Sub(newest) < confirmAfter && now.Sub(since) < confirmAnyway {
			waits[p] = true
		}
	}
	return waits
}

// hidden reports whether something above a path keeps us from seeing what is there.
func hidden(p string, found *tree.Snapshot) bool {
	for i := range len(p) {
		if p[i] == '/' && found.Entries[p[:i]].Kind == tree.Other {
			return true
		}
	}
	return false
}

// inTheWay reports whether something here keeps what the volume has at a path away.
func inTheWay(p string, found *tree.Snapshot) bool {
	for i := range len(p) {
		if p[i] == '/' && found.Entries[p[:i]].Kind == tree.File {
			return true
		}
	}
	return hidden(p, found) || found.Entries[p].Kind == tree.Other
}

// reconsider asks for a reseed when what the volume has at a path can be here after all.
func (e *Engine) reconsider(p string, row state.Row, found *tree.Snapshot, retry bool) {
	unable := strings.HasPrefix(row.Held, misses) || strings.HasPrefix(row.Held, stays)
	switch why := e.hold(p, row.Kind); {
	case unable && !retry:
		e.status.Skipped = append(e.status.Skipped, tree.Skip{Path: p, Reason: row.Held})
	case why == "" && !inTheWay(p, found):
		e.Log.Info("something of the volume can be here now", "path", p)
		e.mem.Progress.Reseed = true
	case row.Held != ignoredHere:
		e.status.Skipped = append(e.status.Skipped, tree.Skip{Path: p, Reason: "of the volume: " + row.Held})
	}
}

// aroundHeld are the directories in which something is held.
func (e *Engine) aroundHeld() map[string]bool {
	around := map[string]bool{}
	for p, row := range e.mem.Base {
		if row.Held == "" {
			continue
		}
		for dir := path.Dir(p); dir != "." && dir != "/" && !around[dir]; dir = path.Dir(dir) {
			around[dir] = true
		}
	}
	return around
}

// removal is the change of something that is gone.
func (e *Engine) removal(p string, row state.Row) (local, bool) {
	c := Change{Event: eventRemove, Path: p, Kind: row.Kind}
	return local{Change: c}, !e.isRefused(c)
}

// refused is a change that the server did not take.
type refused struct {
	mark, reason string
	until        time.Time // then it is tried again
}

// isRefused reports whether the server did not take a change, and says so: it is pending
// until it does.
func (e *Engine) isRefused(c Change) bool {
	no, is := e.no[c.Path]
	if !is || no.mark != mark(c) || !e.now().Before(no.until) {
		return false
	}
	e.status.Pending++
	e.status.Skipped = append(e.status.Skipped, tree.Skip{Path: c.Path, Reason: no.reason})
	return true
}

// writing is the change of something that is new or different.
func (e *Engine) writing(p string, row state.Row, seen tree.Seen) (local, bool) {
	if seen.Kind == tree.File && seen.Size > e.MaxFile {
		e.status.Skipped = append(e.status.Skipped, tree.Skip{Path: p, Reason: tooLarge})
		return local{}, false
	}
	c := Change{Path: p, Kind: seen.Kind, Mode: seen.Mode, Size: seen.Size, Sum: seen.Sum}
	switch {
	case row.SameContent(seen.Entry):
		c.Event = eventChmod
	case seen.Kind == tree.Dir:
		c.Event = eventCreate
	default:
		c.Event = eventWrite
	}
	if e.isRefused(c) {
		return local{}, false
	}
	return local{Change: c, row: &state.Row{Seen: seen}, seen: seen}, true
}

// mark is what a refusal is remembered by.
func mark(c Change) string { return fmt.Sprintf("%s %s %o %s", c.Event, c.Kind, c.Mode, c.Sum) }

// storeRows stores rows of the base.
func (e *Engine) storeRows(ctx context.Context, rows map[string]*state.Row) error {
	if len(rows) == 0 {
		return nil
	}
	for p, r := range rows {
		e.setRow(p, r)
	}
	return e.Store.Update(ctx, func(tx *state.Tx) {
		for p, r := range rows {
			tx.SetRow(p, r)
		}
	})
}

// outgoing is a request that is about to be sent.
type outgoing struct {
	Request
	rows map[string]*state.Row
}

// request takes as many changes as go into one, with their content as it is now.
func (e *Engine) request(changes *[]local) (*outgoing, int, error) {
	out := &outgoing{Request: Request{ID: uuid.NewString(), Base: e.mem.Progress.Cursor}, rows: map[string]*state.Row{}}
	content, used := int64(0), 0
	for used < len(*changes) && len(out.Changes) < e.batch {
		c := (*changes)[used]
		if out.Changes != nil && content+c.Size > maxContent {
			break
		}
		if _, twice := out.rows[c.Path]; twice {
			break // removed and written: an answer tells changes apart by their paths
		}
		used++
		ok, err := e.fill(&c)
		if err != nil {
			return nil, 0, err
		}
		if !ok {
			continue
		}
		content += int64(len(c.Content))
		out.Changes = append(out.Changes, c.Change)
		out.rows[c.Path] = c.row
	}
	*changes = (*changes)[used:]
	return out, used, nil
}

// fill reads a change's content; it is not ok when the file is no longer what it was.
func (e *Engine) fill(c *local) (ok bool, err error) {
	if c.Event != eventWrite {
		return true, nil
	}
	b, seen, err := e.Tree.Content(c.Path, e.MaxFile)
	if errors.Is(err, tree.ErrChanged) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading %s: %w", c.Path, err)
	}
	c.Content, c.Sum, c.Size, c.Mode = b, seen.Sum, seen.Size, seen.Mode
	c.row = &state.Row{Seen: seen}
	return true, nil
}

// send stores a request, sends it and does what the answer says.
func (e *Engine) send(ctx context.Context, out *outgoing) error {
	b, err := json.Marshal(out.Request)
	if err != nil {
		return err
	}
	box := &state.Outbox{Request: b, Rows: out.rows}
	if err := e.Store.Update(ctx, func(tx *state.Tx) { tx.SetOutbox(box) }); err != nil {
		return err
	}
	e.mem.Outbox = box
	if err := e.at("stored"); err != nil {
		return err
	}
	return e.resend(ctx)
}

// resend sends the request that is stored, if one is.
func (e *Engine) resend(ctx context.Context) error {
	box := e.mem.Outbox
	if box == nil {
		return nil
	}
	var r Request
	if err := json.Unmarshal(box.Request, &r); err != nil {
		return fmt.Errorf("the stored request: %w", err)
	}
	answer, err := e.Server.Push(ctx, r)
	if no := refusal(err); no != nil {
		return e.declined(ctx, &r, err)
	}
	if err != nil {
		return fmt.Errorf("sending %d changes: %w", len(r.Changes), err)
	}
	if err := e.at("sent"); err != nil {
		return err
	}
	return e.accepted(ctx, &r, answer)
}

// declined forgets a request that the server does not take: what it was made of is still
// here. One change alone is not sent again as long as it is the same.
func (e *Engine) declined(ctx context.Context, r *Request, err error) error {
	no := refusal(err)
	conflict := no.StatusCode == http.StatusConflict
	if conflict && reason(no) == reseedRequired {
		e.mem.Progress.Reseed = true
	}
	e.leased = e.leased.Add(-leaseEvery) // if that was it
	alone := len(r.Changes) == 1 && !conflict && no.StatusCode != http.StatusNotFound
	up := e.Store.Update(ctx, func(tx *state.Tx) {
		tx.SetOutbox(nil)
		tx.SetProgress(e.mem.Progress)
	})
	if up != nil {
		return up
	}
	e.mem.Outbox = nil
	switch {
	case conflict:
		e.stopped = true
		if e.clashes++; e.clashes > 2 || !slices.Contains(curable, reason(no)) {
			e.clash = fmt.Errorf("sending %d changes: %w", len(r.Changes), err)
		}
		e.Log.Info("the server wants its changes done first", "cause", no.Message)
		return nil
	case alone:
		c := r.Changes[0]
		e.no[c.Path] = refused{mark(c), "refused by the server: " + no.Message, e.now().Add(forget)}
		e.status.Pending++
		e.Log.Warn("the server refused a change", "path", r.Changes[0].Path, "cause", no.Message)
		return nil
	case no.StatusCode == http.StatusNotFound:
		return err
	}
	e.batch = max(1, min(e.batch, len(r.Changes))/2) // until we know which one it is
	e.Log.Info("the server refused changes: sending fewer at once", "changes", len(r.Changes), "cause", no.Message)
	return nil
}

// accepted agrees with the server on what it took, and remembers what it did not.
func (e *Engine) accepted(ctx context.Context, r *Request, answer *Pushed) error {
	contested := map[string]string{}
	for _, c := range answer.Conflicts {
		contested[tree.Relative(c.Path)] = tree.Relative(c.Artifact)
		e.Log.Warn("conflict: the volume has changed there, too", "path", c.Path, "reason", c.Reason, "conflict", c.ID)
	}
	box := e.mem.Outbox
	sent := map[string]int64{}
	for _, a := range answer.Accepted {
		if p := tree.Relative(a.Path); a.ReplicaID == "" || a.ReplicaID == e.ID {
			sent[p] = max(sent[p], a.Seq)
		}
	}
	for _, c := range r.Changes {
		if _, is := contested[c.Path]; is {
			delete(box.Rows, c.Path)
		}
	}
	err := e.Store.Update(ctx, func(tx *state.Tx) {
		tx.SetOutbox(nil)
		for p, row := range box.Rows {
			tx.SetRow(p, row)
			if seq := sent[p]; seq != 0 {
				tx.AddSent(p, seq)
			}
		}
		for p, artifact := range contested {
			tx.Contest(p, artifact)
		}
	})
	if err != nil {
		return err
	}
	for p, row := range box.Rows {
		e.setRow(p, row)
		delete(e.no, p)
		if seq := sent[p]; seq != 0 {
			e.mem.Sent[p] = seq
		}
	}
	for p, artifact := range contested {
		e.mem.Contested[p] = artifact
	}
	e.mem.Outbox, e.status.Head = nil, max(e.status.Head, answer.Head)
	e.status.Conflicts += len(contested)
	e.batch, e.clashes = min(maxChanges, e.batch*2), 0
	e.Log.Info("sent", "changes", len(box.Rows), "conflicts", len(contested))
	return nil
}
