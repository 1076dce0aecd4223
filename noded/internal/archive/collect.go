package archive

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"s0.run/internal/sandbox"
)

const (
	// uploadsPrefix holds a note of every upload that began and is not known to be whole.
	uploadsPrefix = "uploads/"
	// clockPrefix holds what is written to read the store's clock.
	clockPrefix = "clock/"
	maxNote     = 4 << 10

	// abandoned is how old an upload must be to be nobody's: several times as long as
	// one may take, by the clock of the store, which dates both its note and the moment.
	abandoned = 24 * time.Hour
	// share bounds what one pass removes: one in ten uploads that are not whole, and one
	// at least (G09).
	share = 10
)

// announce is what an upload's note says: what it is for.
func (r Ref) announce() []byte {
	b, _ := json.Marshal(note{r.Sandbox, r.Generation, r.Snapshot}) // strings and a number: it can't fail
	return b
}

type note struct {
	Sandbox    sandbox.ID         `json:"sandbox,omitempty"`
	Generation sandbox.Generation `json:"generation,omitempty"`
	Snapshot   string             `json:"snapshot,omitempty"`
}

// ref is what was announced, without its team. What names no place of an image is none.
func (n note) ref() (Ref, error) {
	if n.Snapshot != "" {
		if len(n.Snapshot) != 36 || strings.Trim(n.Snapshot, "0123456789abcdef-") != "" {
			return Ref{}, fmt.Errorf("%.40q is no name of a snapshot", n.Snapshot)
		}
		return Ref{Snapshot: n.Snapshot}, nil
	}
	_, err := sandbox.ParseID(string(n.Sandbox))
	return Ref{Sandbox: n.Sandbox, Generation: n.Generation}, err
}

// Collection is what a pass over the uploads found and did.
type Collection struct {
	Unfinished int // uploads that are not known to be whole
	Abandoned  int // of them, for a day
	Removed    int // of them, what was stored of so many
}

// Collect removes what uploads left that were cut off a day ago or earlier, and is no
// image's, a few at a time. What it needs to know of each it reads from the store: an
// upload's own note and the manifest of its image. In a dry run it only tells.
func (a *Archive) Collect(ctx context.Context, dryRun bool, log *slog.Logger) (Collection, error) {
	var c Collection
	now, err := a.storeTime(ctx)
	if err != nil {
		return c, err
	}
	var due []upload
	for o, err := range a.cfg.Store.List(ctx, uploadsPrefix) {
		if err != nil {
			return c, err
		}
		c.Unfinished++
		u, err := parseUpload(strings.TrimPrefix(o.Key, uploadsPrefix))
		if err == nil && now.Sub(o.Modified) >= abandoned {
			due = append(due, u)
		}
	}
	c.Abandoned = len(due)
	most := max(1, c.Unfinished/share)
	if dryRun {
		for _, u := range due[:min(len(due), most)] {
			log.Info("would collect an upload that was cut off", "upload", u)
		}
		return c, nil
	}
	c.Removed, err = a.collectAll(ctx, due, most, log)
	return c, err
}

// collectAll removes so many at most. One that can't be removed keeps no other from it.
func (a *Archive) collectAll(ctx context.Context, due []upload, most int, log *slog.Logger) (removed int, err error) {
	var failed []error
	for _, u := range due {
		if removed == most || ctx.Err() != nil {
			break
		}
		log.Info("collecting an upload that was cut off", "upload", u)
		if err := a.collect(ctx, u); err != nil {
			failed = append(failed, fmt.Errorf("collecting upload %s: %w", u, err))
			continue
		}
		removed++
	}
	return removed, errors.Join(append(failed, context.Cause(ctx))...)
}

func (a *Archive) collect(ctx context.Context, u upload) error {
	b, err := a.cfg.Store.Get(ctx, u.key(), maxNote)
	if errors.Is(err, ErrNotFound) {
		return nil // another node was quicker
	}
	if err != nil {
		return err
	}
	var n note
	if err := json.Unmarshal(b, &n); err != nil {
		return fmt.Errorf("its note can't be read: %w", err)
	}
	ref, err := n.ref()
	if err != nil {
		return fmt.Errorf("its note can't be read: %w", err)
	}
	return a.clear(ctx, ref, u)
}

// storeTime reads the store's clock: what it says of an object that was just written.
func (a *Archive) storeTime(ctx context.Context) (now time.Time, err error) {
	key := clockPrefix + strings.ToLower(rand.Text())
	if err := a.cfg.Store.Put(ctx, key, []byte("now?")); err != nil {
		return now, err
	}
	defer func() { err = errors.Join(err, a.cfg.Store.Delete(ctx, key)) }()
	for o, err := range a.cfg.Store.List(ctx, key) {
		return o.Modified, err
	}
	return now, errors.New("the object store does not list what it has just stored")
}
