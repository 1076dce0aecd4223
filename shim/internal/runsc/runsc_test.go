package runsc

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestFlags(t *testing.T) {
	t.Parallel()
	r := New(Config{Binary: "/runsc", Root: "/root", ErrorLog: "/err"}, "x", nil)
	cmd := r.command(t.Context(), "delete", "--force")
	if got := cmd.Args[len(cmd.Args)-3:]; !slices.Equal(got, []string{"delete", "--force", "x"}) {
		t.Errorf("command ends with %q", got)
	}
	for _, want := range []string{"--root=/root", "--platform=systrap", "--overlay2=none", "--host-uds=open"} {
		if !slices.Contains(cmd.Args, want) {
			t.Errorf("%q lacks %s", cmd.Args, want)
		}
	}
	for _, a := range cmd.Args {
		if strings.Contains(a, "allow-flag-override") { // C03
			t.Errorf("annotations could change flags: %s", a)
		}
	}
	r = New(Config{OverlayDir: "/ov", OverlaySize: "9"}, "x", nil)
	if !slices.Contains(r.flags(""), "--overlay2=root:dir=/ov,size=9") {
		t.Errorf("flags %q lack the overlay", r.flags(""))
	}
}

func TestOwns(t *testing.T) {
	t.Parallel()
	r := New(Config{Root: "/root"}, "id-1", nil)
	for cmdline, want := range map[string]bool{
		"runsc-sandbox\x00--root=/root\x00boot\x00id-1\x00":  true,
		"runsc-gofer\x00--root=/root\x00gofer\x00id-1\x00":   true,
		"runsc-sandbox\x00--root=/root\x00boot\x00id-10\x00": false,
		"runsc-sandbox\x00--root=/root2\x00boot\x00id-1\x00": false,
		"grep\x00id-1\x00": false,
		"":                 false,
	} {
		if r.owns([]byte(cmdline)) != want {
			t.Errorf("owns(%q) is not %v", cmdline, want)
		}
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	text := `{"msg":"the cause","level":"error"}` + "\n" + `{"msg":"x","level":"info"}{"msg":"what came of it","level":"error"}{"msg":"half`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := Errors(path); got != "the cause; what came of it" {
		t.Errorf("errors %q", got)
	}
	if got := Errors("/no/such"); got != "" {
		t.Errorf("errors of no file: %q", got)
	}
}

func TestTailIsBounded(t *testing.T) {
	t.Parallel()
	var w tail
	for _, s := range []string{strings.Repeat("a", maxOutput), "b", strings.Repeat("c", 2*maxOutput), "end"} {
		if n, err := w.Write([]byte(s)); n != len(s) || err != nil {
			t.Errorf("wrote %d of %d, %v", n, len(s), err)
		}
		if w.Len() > maxOutput {
			t.Errorf("keeps %d bytes", w.Len())
		}
	}
	if !strings.HasSuffix(w.String(), "cend") {
		t.Error("the end is lost")
	}
}
