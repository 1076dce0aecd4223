package engine

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"strings"

	"s0.run/cmd/s0/internal/sync/state"
	"s0.run/cmd/s0/internal/sync/tree"
)

// maxArchive bounds what is unpacked of a volume: a small archive may be a large disk.
const maxArchive = 256 << 30

// The sides that may be right when both have something at the beginning.
const (
	FromAuto   = "auto"
	FromVolume = "volume"
	FromLocal  = "local"
)

// BothError is returned when a directory and a volume both hold something, and not the
// same, and nobody has said which is right.
type BothError struct {
	Paths []string // some of those that differ
}

func (e *BothError) Error() string {
	return "the directory and the volume both hold something, and differ in " + strings.Join(e.Paths, ", ")
}

// seed makes both sides alike without the journal: at the beginning, and when the journal
// does not lead on.
func (e *Engine) seed(ctx context.Context) error {
	first := !e.mem.Progress.Seeded
	if !first && !e.mem.Progress.Reseed {
		return nil
	}
	seed, err := e.Server.Bootstrap(ctx, "sync "+e.ID, e.Replica.Capabilities)
	if err != nil {
		return e.incompatible(fmt.Errorf("fetching the volume: %w", err))
	}
	backup := first && e.From == FromLocal // whoever was wrong about that can go back
	defer func() {
		if !backup {
			e.release(ctx, seed.SnapshotID)
		}
	}()
	d := &delta{Engine: e, wants: map[string]want{}, rows: map[string]*state.Row{}, keep: backup}
	defer d.drop()
	if err := d.unpack(ctx, seed); err != nil {
		return fmt.Errorf("fetching the volume: %w", err)
	}
	if first && e.From == FromAuto {
		if err := d.onlyOne(ctx); err != nil {
			return err
		}
	}
	for p := range e.mem.Base {
		if _, is := d.wants[p]; !is {
			d.wants[p] = want{seq: seed.Cursor}
		}
	}
	if err := d.apply(ctx); err != nil {
		return err
	}
	if len(d.gone) > 0 {
		return fmt.Errorf("%w (%s)", errAgain, d.gone[0])
	}
	e.mem.Progress = state.Progress{Seeded: true, Cursor: seed.Cursor}
	if err := d.commit(ctx); err != nil {
		return err
	}
	e.Log.Info("fetched the volume", "changes", d.changed, "cursor", seed.Cursor)
	return e.setCursor(ctx)
}

func (e *Engine) release(ctx context.Context, snapshot string) {
	if err := e.Server.Release(context.WithoutCancel(ctx), snapshot); err != nil {
		e.Log.Warn("a snapshot of the volume is left", "snapshot", snapshot, "cause", err.Error())
	}
}

// incompatible says which names of the volume can't be here, if that is what is wrong.
func (e *Engine) incompatible(err error) error {
	no := refusal(err)
	if no == nil || no.StatusCode != http.StatusConflict || reason(no) != "namespace_incompatible" {
		return err
	}
	issues, _ := no.Details["issues"].([]any)
	var names []string
	for _, i := range issues[:min(len(issues), 5)] {
		if issue, ok := i.(map[string]any); ok {
			names = append(names, fmt.Sprint(issue["path"]))
		}
	}
	return fmt.Errorf("the volume has names that this file system can't tell apart or have: %s: %w", strings.Join(names, ", "), err)
}

// unpack reads the volume's archive. Names in it stay names: contents are files of ours
// until they are placed.
func (d *delta) unpack(ctx context.Context, seed *Seed) error {
	body, err := d.Server.Archive(ctx, seed.SnapshotID)
	if err != nil {
		return err
	}
	defer body.Close()
	plain, err := gzip.NewReader(body)
	if err != nil {
		return err
	}
	archive, left := tar.NewReader(plain), int64(maxArchive)
	for n := 0; ; n++ {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			_, err := io.Copy(io.Discard, io.LimitReader(plain, 1<<20)) // its checksum is at its end
			return err
		}
		if err != nil {
			return err
		}
		if left -= h.Size; n == tree.MaxEntries || left < 0 || h.Size < 0 {
			return fmt.Errorf("more than %d files or %d bytes", tree.MaxEntries, int64(maxArchive))
		}
		if err := d.unpackEntry(ctx, h, archive, seed.Cursor); err != nil {
			return err
		}
	}
}

func (d *delta) unpackEntry(ctx context.Context, h *tar.Header, content io.Reader, seq int64) error {
	name := strings.Trim(strings.TrimPrefix(h.Name, "./"), "/")
	if strings.HasPrefix(h.Name, "/") {
		name = h.Name // which nothing here can have
	}
	if name == "" || name == "." {
		return nil
	}
	w := want{seq: seq}
	switch h.Typeflag {
	case tar.TypeDir:
		w.Entry = tree.Entry{Kind: tree.Dir, Mode: tree.Permissions(tree.Dir, fs.FileMode(h.Mode))}
	case tar.TypeReg:
		w.Entry = tree.Entry{Kind: tree.File, Mode: tree.Permissions(tree.File, fs.FileMode(h.Mode)), Size: h.Size}
		if err := d.unpackFile(ctx, name, &w, content); err != nil {
			return err
		}
	default:
		return nil // links and the like are the volume's alone
	}
	if old := d.wants[name]; old.staged != nil {
		d.Tree.Drop(*old.staged)
	}
	d.wants[name] = w
	return nil
}

// unpackFile takes a file's content. That of one which the base has is fetched by its sum
// if it is needed after all.
func (d *delta) unpackFile(ctx context.Context, name string, w *want, content io.Reader) error {
	if tree.CheckPath(name) != nil {
		h := sha256.New()
		if _, err := io.Copy(h, content); err != nil {
			return err
		}
		w.Sum = hex.EncodeToString(h.Sum(nil))
		w.ref = refOf(w.Entry)
		return ctx.Err()
	}
	staged, err := d.Tree.Stage(ctx, content, w.Size)
	if err != nil {
		return err
	}
	w.Sum = staged.Sum
	if row := d.mem.Base[name]; row.Kind == tree.File && row.Sum == staged.Sum {
		d.Tree.Drop(staged)
		w.ref = refOf(w.Entry)
		return nil
	}
	w.staged = &staged
	return nil
}

// onlyOne fails if the directory and the volume both hold something, and differ.
func (d *delta) onlyOne(ctx context.Context) error {
	found, err := d.Tree.Scan(ctx, nil)
	if err != nil {
		return err
	}
	var differ []string
	here := 0
	for p, seen := range found.Entries {
		if seen.Kind == tree.Other {
			continue
		}
		here++
		if w := d.wants[p]; !w.SameContent(seen.Entry) {
			differ = append(differ, p)
		}
	}
	there := 0
	for p, w := range d.wants {
		if d.hold(p, w.Kind) == ignoredHere {
			continue
		}
		there++
		if found.Entries[p].Kind == tree.None {
			differ = append(differ, p)
		}
	}
	// What an end has left of a beginning is not the user's.
	differ = slices.DeleteFunc(differ, func(p string) bool {
		return len(d.mem.Intents) > 0 && (d.intended(p, found.Entries[p].Entry) || found.Entries[p].Kind == tree.None)
	})
	if here == 0 || there == 0 || len(differ) == 0 {
		return nil
	}
	slices.Sort(differ)
	some := slices.Clone(differ[:min(3, len(differ))])
	if more := len(differ) - len(some); more > 0 {
		some = append(some, fmt.Sprintf("%d more", more))
	}
	return &BothError{Paths: some}
}
