package s0test

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/bbolt"
)

// shimGroup is how many sandboxes, by the number of their link, share a shim.
const shimGroup = 16

// never are the kinds of which nothing exists that is no sandbox's, once all is
// quiet: pulls have given their leases back and layers are unpacked.
var never = []string{"sentry", "gofer", "runsc", "link", "container", "task", "snapshot", "lease"}

// CompareShared looks at what is no single sandbox's, by count: shims are as many
// as there are groups of live sandboxes, the node keeps one control group in each
// hierarchy, and the rest is infrastructure.
func CompareShared(live map[string]string, traces []Trace) error {
	var errs []error
	groups, shims, scopes := map[int]bool{}, 0, map[string]int{}
	for _, t := range traces {
		if t.Kind == "link" && live[t.ID] != "" {
			groups[t.linkNumber()/shimGroup] = true
		}
		switch {
		case t.ID != "":
		case t.Kind == "shim":
			shims++
		case t.Kind == "cgroup":
			scopes[filepath.Dir(t.Name)]++
		case slices.Contains(never, t.Kind), !slices.Contains(infrastructure, filepath.Base(t.Name)):
			errs = append(errs, fmt.Errorf("nobody's: %s", t))
		}
	}
	if shims != len(groups) {
		errs = append(errs, fmt.Errorf("%d shims for %d groups of sandboxes", shims, len(groups)))
	}
	for parent, n := range scopes {
		if n > 1 {
			errs = append(errs, fmt.Errorf("%d control groups of nodes in %s", n, parent))
		}
	}
	return errors.Join(errs...)
}

// linkNumber is the number in a link's name.
func (t Trace) linkNumber() int {
	name, _, _ := strings.Cut(t.Name, " ")
	n, err := strconv.Atoi(strings.TrimLeft(name, "abcdefghijklmnopqrstuvwxyz"))
	if err != nil {
		panic("no number: " + t.String())
	}
	return n
}

// storedObjects lists what a containerd that does not run has of sandboxes, from
// its database.
func (m *Machine) storedObjects() ([]Trace, error) {
	var all []Trace
	files, err := filepath.Glob(filepath.Join(m.DataDir, "*", "io.containerd.metadata.v1.bolt", "meta.db"))
	for _, f := range files {
		db, err := bbolt.Open(f, 0o600, &bbolt.Options{ReadOnly: true, Timeout: 5 * time.Second})
		if err != nil {
			return nil, fmt.Errorf("containerd's database: %w", err)
		}
		err = db.View(func(tx *bbolt.Tx) error {
			all = append(all, m.stored(tx)...)
			return nil
		})
		if err := errors.Join(err, db.Close()); err != nil {
			return nil, fmt.Errorf("containerd's database: %w", err)
		}
	}
	return all, err
}

// stored reads v1/<namespace>/{containers,leases}/<id> and …/snapshots/<snapshotter>/<key>.
func (m *Machine) stored(tx *bbolt.Tx) []Trace {
	var all []Trace
	namespace := tx.Bucket([]byte("v1"))
	if namespace != nil {
		namespace = namespace.Bucket([]byte(m.Namespace))
	}
	if namespace == nil {
		return nil
	}
	each := func(kind string, b *bbolt.Bucket) {
		if b == nil {
			return
		}
		_ = b.ForEachBucket(func(k []byte) error {
			// A committed snapshot is an image's layer, named by its digest.
			if t := m.trace(kind, string(k)); kind != "snapshot" || !strings.HasPrefix(t.Name, "sha256:") {
				all = append(all, t)
			}
			return nil
		})
	}
	each("container", namespace.Bucket([]byte("containers")))
	each("lease", namespace.Bucket([]byte("leases")))
	if snapshots := namespace.Bucket([]byte("snapshots")); snapshots != nil {
		_ = snapshots.ForEachBucket(func(snapshotter []byte) error {
			each("snapshot", snapshots.Bucket(snapshotter))
			return nil
		})
	}
	return all
}
