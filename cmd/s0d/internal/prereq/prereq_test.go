package prereq_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"s0.run/cmd/s0d/internal/prereq"
)

func find(t *testing.T, results []prereq.Result, name string) prereq.Result {
	t.Helper()
	for _, r := range results {
		if r.Name == name {
			return r
		}
	}
	t.Fatalf("no check is called %q", name)
	return prereq.Result{}
}

func TestEverythingMissingIsNamedWithItsFix(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	empty := t.TempDir()
	cfg := prereq.Config{
		BinDir: empty, PostgresBin: empty, PostgresUser: "no-such-user-here", ImageDir: empty,
		DataDir: filepath.Join(empty, "not", "yet"), Addresses: []string{taken.Addr().String()},
	}
	results := prereq.All(cfg)
	for _, name := range []string{
		"containerd", "runsc", "containerd-shim-s0-v1", "procd", "PostgreSQL", "PostgreSQL's user",
		"template image", "address " + taken.Addr().String(),
	} {
		if r := find(t, results, name); r.OK() || r.Detail == "" {
			t.Errorf("%s = %+v: want what is wrong and a fix", name, r)
		}
	}

	var missing prereq.Missing
	if err := prereq.Check(cfg); !errors.As(err, &missing) {
		t.Fatalf("Check = %v", err)
	}
	for _, r := range missing {
		if !strings.Contains(missing.Error(), r.Fix) {
			t.Errorf("the error leaves out how to get %s", r.Name)
		}
	}
}

func TestFindsWhatIsThere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"containerd", "runsc", "containerd-shim-s0-v1", "procd", "initdb", "postgres"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "index.json"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	results := prereq.All(prereq.Config{
		BinDir: dir, PostgresBin: dir, PostgresUser: "nobody", ImageDir: dir, DataDir: dir, Addresses: []string{"127.0.0.1:0"},
	})
	for _, name := range []string{"containerd", "runsc", "containerd-shim-s0-v1", "procd", "PostgreSQL", "PostgreSQL's user", "template image", "address 127.0.0.1:0"} {
		if r := find(t, results, name); !r.OK() {
			t.Errorf("%s: %s", r.Name, r.Detail)
		}
	}
}
