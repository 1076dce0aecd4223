package imageref

import (
	"errors"
	"strings"
	"testing"
)

const digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestParse(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"python":                               "docker.io/library/python:latest",
		"python:3.13":                          "docker.io/library/python:3.13",
		"library/python":                       "docker.io/library/python:latest",
		"docker.io/python":                     "docker.io/library/python:latest",
		"index.docker.io/a/b:c":                "docker.io/a/b:c",
		"a/b":                                  "docker.io/a/b:latest",
		"ghcr.io/a/b/c__d:x":                   "ghcr.io/a/b/c__d:x",
		"GHCR.io/a/b":                          "ghcr.io/a/b:latest",
		"localhost/a":                          "localhost/a:latest",
		"127.0.0.1:5000/t-0123abcd/x":          "127.0.0.1:5000/t-0123abcd/x:latest",
		"[::1]:5000/x":                         "[::1]:5000/x:latest",
		"a@" + digest:                          "docker.io/library/a@" + digest,
		"quay.io/a/b:tag@" + digest:            "quay.io/a/b@" + digest,
		"registry.example.com:443/a.b/c-d:1_0": "registry.example.com:443/a.b/c-d:1_0",
	} {
		got, err := Parse(in)
		if err != nil || got.String() != want {
			t.Errorf("Parse(%q) = %v, %v, want %s", in, got, err, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for _, in := range []string{
		"", " ", "a b", "A", "a:", "a:b:c", "a/", "/a", "a//b", "a/../b", "./a", "http://a/b", "a@sha256:12", "a@md5:0", "a@" + digest + "0",
		"--x", "a.b/c?d", "a.b/c#d", "u@h.example/a", "h.example:port/a", "h.example:/a", "..example/a", "a/b:" + strings.Repeat("x", 129),
		strings.Repeat("a", 600), "a\x00", "a\n", "h.example/" + strings.Repeat("a", 300), "-a.example/b", "_a", "t-1/_b",
	} {
		if got, err := Parse(in); !errors.Is(err, ErrInvalid) {
			t.Errorf("Parse(%q) = %+v, %v", in, got, err)
		}
	}
}

// What was read means the same when it is read again: api and node agree.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"python", "a.b/c:d@" + digest, "[::1]:1/x", "localhost:5000/a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(r.String())
		if err != nil || again.String() != r.String() || again.Name() != r.Name() {
			t.Errorf("%q is %+v, and that is %+v, %v", s, r, again, err)
		}
	})
}

func TestRegistries(t *testing.T) {
	t.Parallel()
	some := Registries{"ghcr.io", "registry.corp:5000"}
	all := Registries{"*", "registry.corp:5000"}
	for host, want := range map[string][3]bool{ // some allows, all allows, all lists
		"ghcr.io": {true, true, false}, "registry.corp:5000": {true, true, true},
		"registry.corp": {false, true, false}, "evil.ghcr.io": {false, true, false}, "": {false, true, false},
	} {
		if got := [3]bool{some.Allows(host), all.Allows(host), all.Lists(host)}; got != want {
			t.Errorf("%q: %v, want %v", host, got, want)
		}
	}
	if some.Allows("*") {
		t.Error("a host called *")
	}
}
