package config_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"s0.run/cmd/s0/internal/config"
)

func TestSaveAndLoad(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "new", "config.yaml")
	f, err := config.Load(path)
	if err != nil {
		t.Fatalf("a file that does not exist: %v", err)
	}
	f.Profile("").Token = "secret"
	f.Profile("work").APIURL = "https://s0.example.com"
	f.CurrentProfile = "work"
	if err := f.Save(path); err != nil {
		t.Fatal(err)
	}
	got, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if got.Profile("").APIURL != "https://s0.example.com" || got.Profile("default").Token != "secret" {
		t.Errorf("got %+v", got.Profiles)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v: others can read the tokens", info.Mode())
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("saving left %v", entries)
	}
}

// A file with wider permissions is narrowed by the next save.
func TestSaveNarrowsPermissions(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Save(path); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(path); runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
}

func TestSaveKeepsWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "config.yaml")
	before := "future: {a: 1}\nprofiles:\n  default:\n    token: x\n    shiny: true\n"
	if err := os.WriteFile(path, []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	f.Profile("").Token = "new"
	if err := f.Save(path); err != nil {
		t.Fatal(err)
	}
	after, _ := os.ReadFile(path)
	for _, want := range []string{"future:", "a: 1", "shiny: true", "token: new"} {
		if !strings.Contains(string(after), want) {
			t.Errorf("lost %q:\n%s", want, after)
		}
	}
}

func TestLoadRefusesNonsense(t *testing.T) {
	t.Parallel()
	for _, content := range []string{"profiles: 7\n", "{", "profiles:\n  default: [a]\n"} {
		path := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := config.Load(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: got %v, want an error that names the file", content, err)
		}
	}
}

func TestExpandedToken(t *testing.T) {
	t.Parallel()
	env := map[string]string{"KEY": "s0_x"}
	tests := []struct{ token, want, missing string }{
		{token: "plain$1", want: "plain$1"},
		{token: "${KEY}", want: "s0_x"},
		{token: "a${KEY}b", want: "as0_xb"},
		{token: "${NOT_SET}", missing: "NOT_SET"},
	}
	for _, tt := range tests {
		p := &config.Profile{Token: tt.token}
		got, err := p.ExpandedToken(func(k string) string { return env[k] })
		switch {
		case tt.missing != "":
			if err == nil || !strings.Contains(err.Error(), tt.missing) {
				t.Errorf("%s: got %v, want an error about %s", tt.token, err, tt.missing)
			}
		case err != nil || got != tt.want:
			t.Errorf("%s: got %q, %v", tt.token, got, err)
		}
	}
}

func TestLockHoldsOthersUp(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "new", "config.yaml")
	unlock, err := config.Lock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := config.Lock(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while it is held: %v", err)
	}
	unlock()
	unlock, err = config.Lock(t.Context(), path)
	if err != nil {
		t.Fatalf("after it was given back: %v", err)
	}
	unlock()
}
