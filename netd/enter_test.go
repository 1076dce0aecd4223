package netd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// noded and netd are started at once: the namespace that noded makes, a file first and
// then what is mounted on it, is waited for.
func TestTheNamespaceIsWaitedFor(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "_dataplane")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openNamespace(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a file is no namespace: %v", err)
	}
	opened := make(chan error, 1)
	go func() {
		ns, err := awaitNamespace(t.Context(), path)
		opened <- errors.Join(err, ns.Close())
	}()
	ready := path + ".ready"
	if err := errors.Join(os.Symlink("/proc/self/ns/net", ready), os.Rename(ready, path)); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

// Who stops netd while it waits is not kept.
func TestTheWaitForTheNamespaceEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := awaitNamespace(ctx, filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
