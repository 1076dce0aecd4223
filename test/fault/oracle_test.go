package fault_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"go.etcd.io/bbolt"

	"s0.run/internal/s0test"
)

// A row is a sandbox as the database has it.
type row struct {
	Status     string
	Generation uint64
	Stored     uint64 // the image that the object store has
}

// A record is a sandbox as the journal has it.
type record struct {
	ID         string
	State      string
	Generation uint64
	Image      uint64
	Stored     uint64
	NetIndex   int             `json:"net_index"`
	Claim      json.RawMessage `json:"claim"`
}

// An image is one directory <paused>/<id>/<generation>.
type image struct {
	generation uint64
	complete   bool
}

// A view is everything that says of a sandbox that it is there, each source by id.
type view struct {
	rows    map[string]row
	records map[string]record
	node    map[string]string // what the node tells others: "slot", "sandbox"
	traces  []s0test.Trace    // kernel, containerd and directories
	images  map[string][]image
	netd    map[string]uint64 // generations of those whose packets it judges; nil: there is none

	snapshotRows map[string]string // states, by the snapshots' own ids
	snapshotDirs map[string]bool
}

// A shape is what a whole sandbox has on the machine: how many traces of each kind and
// name, without what only tells one sandbox from another.
type shape map[string]int

// check waits until every source tells of the same sandboxes, each of them whole, then
// has every survivor do something.
func (s *stack) check() view {
	s.Helper()
	var v view
	s.eventually("all to agree", func() (err error) {
		if v, err = s.view(); err != nil {
			return err
		}
		return v.compare(s.shape)
	})
	for id, r := range v.records {
		if r.State == "claimed" {
			s.mustServe(id)
		}
	}
	return v
}

// learn takes the shape of a slot that nothing has happened to yet.
func (s *stack) learn(pool int) {
	s.Helper()
	if pool == 0 {
		s.Fatal("no slot to learn from")
	}
	s.eventually("a warm pool that is quiet", func() error {
		v, err := s.view()
		if err != nil {
			return err
		}
		if len(v.node) != pool || len(v.records) != pool {
			return fmt.Errorf("%d slots, %d records, want %d", len(v.node), len(v.records), pool)
		}
		s.shape = shapeOf(v.traces, slices.Sorted(maps.Keys(v.node))[0])
		return v.compare(s.shape)
	})
}

// view looks at every source.
func (s *stack) view() (v view, err error) {
	// The node's own words come first: what they name exists by then, and what is
	// not quiet is looked at again.
	if v.node, err = s.Live(); err != nil {
		return v, err
	}
	if v.netd, err = s.attached(); err != nil {
		return v, fmt.Errorf("netd: %w", err)
	}
	if v.records, err = s.records(); err != nil {
		return v, err
	}
	if v.rows, v.snapshotRows, err = s.rows(); err != nil {
		return v, err
	}
	if v.images, err = s.images(); err != nil {
		return v, err
	}
	if v.snapshotDirs, err = s.snapshotDirs(); err != nil {
		return v, err
	}
	traces, err := s.Traces()
	v.traces = slices.DeleteFunc(traces, func(t s0test.Trace) bool { return strings.HasPrefix(t.Name, s.paused()+"/") })
	return v, err
}

// rows are those of the node's sandboxes that are not deleted, and of its snapshots.
func (s *stack) rows() (map[string]row, map[string]string, error) {
	ctx := s.ctx()
	db, err := pgx.Connect(ctx, s.dsn)
	if err != nil {
		return nil, nil, err
	}
	defer db.Close(ctx)
	sandboxes, snapshots := map[string]row{}, map[string]string{}
	found, err := db.Query(ctx, `SELECT id, status, generation, coalesce(stored_generation, 0) FROM sandboxes WHERE deleted_at IS NULL AND node = $1`, s.node)
	if err != nil {
		return nil, nil, err
	}
	var id, state string
	var r row
	if _, err = pgx.ForEachRow(found, []any{&id, &r.Status, &r.Generation, &r.Stored}, func() error { sandboxes[id] = r; return nil }); err != nil {
		return nil, nil, err
	}
	if found, err = db.Query(ctx, `SELECT id::text, state FROM rootfs_snapshots WHERE node = $1`, s.node); err != nil {
		return nil, nil, err
	}
	_, err = pgx.ForEachRow(found, []any{&id, &state}, func() error { snapshots[id] = state; return nil })
	return sandboxes, snapshots, err
}

func (s *stack) snapshotDirs() (map[string]bool, error) {
	entries, err := os.ReadDir(filepath.Join(s.nodedData(), "snapshots"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	all := map[string]bool{}
	for _, e := range entries {
		all[e.Name()] = true
	}
	return all, nil
}

// records are the journal's, from a copy: noded holds the file.
func (s *stack) records() (map[string]record, error) {
	raw, err := os.ReadFile(s.journal())
	if err != nil {
		return nil, err
	}
	if twice, err := os.ReadFile(s.journal()); err != nil || !bytes.Equal(raw, twice) {
		return nil, errors.Join(errors.New("the journal is being written"), err)
	}
	return readJournal(raw, filepath.Join(s.Root, "journal.copy"))
}

func readJournal(raw []byte, path string) (map[string]record, error) {
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		return nil, err
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	all := map[string]record{}
	return all, db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("sandboxes")).ForEach(func(k, v []byte) error {
			var r record
			err := json.Unmarshal(v, &r)
			all[string(k)] = r
			return err
		})
	})
}

func (s *stack) images() (map[string][]image, error) {
	all := map[string][]image{}
	owners, err := os.ReadDir(s.paused())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, owner := range owners {
		all[owner.Name()] = nil // an empty directory is a leftover, too
		dirs, _ := os.ReadDir(filepath.Join(s.paused(), owner.Name()))
		for _, d := range dirs {
			gen, err := strconv.ParseUint(d.Name(), 10, 64)
			if err != nil {
				return nil, fmt.Errorf("an image of %s: %w", owner.Name(), err)
			}
			all[owner.Name()] = append(all[owner.Name()], image{gen, complete(filepath.Join(s.paused(), owner.Name(), d.Name()))})
		}
	}
	return all, nil
}

// complete reports whether an image is: of everything, or of files alone.
func complete(dir string) bool {
	part := "memory"
	if _, err := os.Stat(filepath.Join(dir, part)); errors.Is(err, fs.ErrNotExist) {
		part = "files"
	}
	_, err := os.Stat(filepath.Join(dir, part, "complete"))
	return err == nil
}

// compare says what does not fit together, sandbox by sandbox.
func (v view) compare(whole shape) error {
	var errs []error
	for _, id := range v.ids() {
		if err := v.compareOne(id, whole); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", id, err))
		}
	}
	indexes := map[int]string{}
	running := map[string]string{}
	for id, r := range v.records {
		if other := indexes[r.NetIndex]; r.NetIndex != 0 && other != "" {
			errs = append(errs, fmt.Errorf("%s and %s have one address", id, other))
		}
		indexes[r.NetIndex] = id
		if r.runs() {
			running[id] = r.State
		}
	}
	errs = append(errs, v.compareSnapshots())
	return errors.Join(append(errs, s0test.CompareShared(running, v.traces))...)
}

func (v view) compareSnapshots() error {
	var errs []error
	for id, state := range v.snapshotRows {
		if state != "ready" {
			errs = append(errs, fmt.Errorf("snapshot %s is %s, on the way to something else", id, state))
		}
		if !v.snapshotDirs[id] {
			errs = append(errs, fmt.Errorf("snapshot %s has no directory", id))
		}
	}
	for id := range v.snapshotDirs {
		if v.snapshotRows[id] == "" {
			errs = append(errs, fmt.Errorf("snapshot %s is nobody's", id))
		}
	}
	return errors.Join(errs...)
}

func (v view) ids() []string {
	all := map[string]bool{}
	for id := range v.rows {
		all[id] = true
	}
	for id := range v.records {
		all[id] = true
	}
	for id := range v.node {
		all[id] = true
	}
	for id := range v.images {
		all[id] = true
	}
	for id := range v.netd {
		all[id] = true
	}
	for _, t := range v.traces {
		if t.ID != "" {
			all[t.ID] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// runs reports whether a sandbox of such a record has processes.
func (r record) runs() bool { return r.State == "slot" || r.State == "claimed" }

// orphans are sandboxes that no row is of: of a claim or a fork whose API server did not live
// to record them, or to end them; whatever has become of them since.
func (v view) orphans() (ids []string) {
	for id, rec := range v.records {
		if _, ok := v.rows[id]; !ok && rec.State != "slot" {
			ids = append(ids, id)
		}
	}
	return ids
}

const (
	// childTime is how soon a fork's children without rows are ended: comparisons with their
	// node find them for half a minute.
	childTime = 2 * time.Minute
	// orphanTime is how soon any orphan is, one of a claim whose server died included (R4),
	// and a comparison.
	orphanTime = 11 * time.Minute
)

// awaitOrphans waits for the end of sandboxes without a row, which have longer than anything
// else. What is left of them at the limit is the oracle's.
func (s *stack) awaitOrphans(limit time.Duration) {
	s.Helper()
	began, seen := time.Now(), 0
	for ; time.Since(began) < limit; <-time.After(time.Second) {
		v, err := s.view()
		if err != nil {
			continue // it is not quiet yet
		}
		if seen = max(seen, len(v.orphans())); len(v.orphans()) == 0 {
			break
		}
	}
	s.Logf("orphans: %d, gone after %s", seen, time.Since(began).Round(time.Second))
}

// stored is the image of a paused sandbox that the object store has; 0: none.
func (r record) stored() uint64 {
	if r.State != "paused" || r.Stored != r.Image {
		return 0
	}
	return r.Stored
}

// compareOne holds everything against the journal, which is the truth about the node.
func (v view) compareOne(id string, whole shape) error {
	var errs []error
	differs := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	rec, known := v.records[id]
	switch {
	case !known:
		differs("the journal has no record")
	case !slices.Contains([]string{"slot", "claimed", "paused", "failed"}, rec.State):
		differs("it is %s, on the way to something else", rec.State)
	}
	if want := map[string]string{"slot": "slot", "claimed": "sandbox", "paused": "sandbox", "failed": "sandbox"}[rec.State]; v.node[id] != want {
		differs("the journal has it as %q, the node tells of %q", rec.State, v.node[id])
	}
	want := row{map[string]string{"claimed": "running"}[rec.State], rec.Generation, rec.stored()}
	if want.Status == "" {
		want.Status = rec.State
	}
	switch got, ok := v.rows[id]; {
	case ok && (!known || rec.State == "slot"):
		differs("the database has it as %s, the journal as %q", got.Status, rec.State)
	case !ok && known && rec.State != "slot":
		differs("the database has no row of it, the journal has it as %s", rec.State)
	case ok && got != want:
		differs("the database has it as %s of generation %d, want %s of %d", got.Status, got.Generation, want.Status, want.Generation)
	}
	v.compareNetd(id, rec, differs)
	v.compareImages(id, rec, differs)
	v.compareTraces(id, rec, whole, differs)
	return errors.Join(errs...)
}

// compareNetd: R5, whoever runs is judged as what he is, and nobody else is.
func (v view) compareNetd(id string, rec record, differs func(string, ...any)) {
	if v.netd == nil {
		return
	}
	want := rec.Generation
	if !rec.runs() {
		want = 0
	}
	if got := v.netd[id]; got != want {
		differs("netd has its generation %d, want %d", got, want)
	}
}

func (v view) compareImages(id string, rec record, differs func(string, ...any)) {
	images, any := v.images[id]
	if rec.State != "paused" {
		if any {
			differs("it is %q and has images: %v", rec.State, images)
		}
		return
	}
	if dropped := !any && rec.stored() != 0; !dropped && !slices.Equal(images, []image{{rec.Image, true}}) {
		differs("it is paused with image %d and has %v", rec.Image, images)
	}
}

func (v view) compareTraces(id string, rec record, whole shape, differs func(string, ...any)) {
	want := whole
	if !rec.runs() {
		want = nil
	}
	got := shapeOf(v.traces, id)
	for what, n := range got {
		if n > want[what] {
			differs("it has %d of %s, want %d", n, what, want[what])
		}
	}
	for what, n := range want {
		if n > got[what] {
			differs("it has %d of %s, want %d", got[what], what, n)
		}
	}
	for _, t := range v.traces {
		if number := strings.TrimLeft(strings.Fields(t.Name)[0], "abcdefghijklmnopqrstuvwxyz"); t.ID == id && t.Kind == "link" && number != strconv.Itoa(rec.NetIndex) {
			differs("its link is %s, its record has index %d", t.Name, rec.NetIndex)
		}
	}
}

// numbers are what differs between two whole sandboxes, beside their ids: the process
// before a name, and the index in that of a link.
var numbers = regexp.MustCompile(`^([a-z]*)\d+ `)

// scope is a node's group in the path of a sandbox's.
var scope = regexp.MustCompile(`/[0-9a-f]{8}/<id>`)

func shapeOf(traces []s0test.Trace, id string) shape {
	all := shape{}
	for _, t := range traces {
		if t.ID == id {
			name := numbers.ReplaceAllString(strings.ReplaceAll(t.Name, id, "<id>"), "$1 ")
			name = scope.ReplaceAllString(name, "/<scope>/<id>")
			all[strings.Join(append([]string{t.Kind}, strings.Fields(name)...), " ")]++
		}
	}
	return all
}
