package noded

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestKataIsOfferedWithItsShim(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	shim := filepath.Join(dir, kataShim)
	if _, err := findShim(kataShim, []string{"", ".", dir}); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("without a shim: %v", err)
	}
	for mode, want := range map[os.FileMode]bool{0o600: false, 0o700: true} {
		if err := os.WriteFile(shim, []byte("#!/bin/sh\n"), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(shim, mode); err != nil {
			t.Fatal(err)
		}
		if got, err := findShim(kataShim, []string{t.TempDir(), dir}); (err == nil) != want || want && got != shim {
			t.Errorf("mode %o: %q, %v", mode, got, err)
		}
	}
}

// A hypervisor that is not there, or is none, is none.
func TestKataNeedsAHypervisor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := checkKVM(filepath.Join(dir, "kvm")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no device: %v", err)
	}
	if err := checkKVM("/dev/null"); err == nil {
		t.Error("/dev/null passes for a hypervisor")
	}
}

// Shims are looked for where the process behind the socket does, which here is this
// one, and where nobody answers in this one's PATH.
func TestShimsAreLookedForWhereContainerdDoes(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "c.sock")
	path := filepath.SplitList(os.Getenv("PATH"))
	if got := shimDirs(socket); !slices.Equal(got, path) {
		t.Errorf("without containerd: %q", got)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := shimDirs(socket), append(path, filepath.Dir(exe)); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
