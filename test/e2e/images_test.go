package e2e_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"image/png"
	"os"
	"strings"
	"testing"

	"s0.run/api/client"
	"s0.run/internal/s0test"
)

// TestBuiltinImages uses the builtin templates whose images `make images-all`
// builds; `make test-images` does that and says so, for they take minutes to build.
func TestBuiltinImages(t *testing.T) {
	if os.Getenv("S0_TEST_IMAGES") == "" {
		t.Skip("make test-images builds the images and runs this")
	}
	s := s0test.Start(t, s0test.Options{Pool: 0, MaxSandboxes: 8, Flags: []string{"--image-dir=" + s0test.BuiltImage(t, "default")}})
	t.Run("browser", func(t *testing.T) { testBrowser(t, s) })
	t.Run("code-interpreter", func(t *testing.T) { testInterpreter(t, s) })
	s.CheckOwned()
}

// Chromium answers on its DevTools port, and renders a page of the sandbox's own.
func testBrowser(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claimAny("browser")
	if version := text(u.run(id, "curl", "-s", "http://localhost:9222/json/version").Stdout); !strings.Contains(version, "webSocketDebuggerUrl") {
		t.Errorf("DevTools answers %q", version)
	}
	u.write(id, "/srv/index.html", "<body style='background:#00ff00'></body>")
	shot := u.run(id, "sh", "-c", `python3 -m http.server --directory /srv 8123 >/dev/null 2>&1 &
		curl -sf -o /dev/null --retry 60 --retry-delay 1 --retry-connrefused http://localhost:8123/
		exec chromium --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --user-data-dir=/tmp/shot \
			--screenshot=/tmp/shot.png --window-size=400,300 http://localhost:8123/`)
	if *shot.ExitCode != 0 {
		t.Fatalf("chromium: %s", text(shot.Stderr))
	}
	img, err := png.Decode(strings.NewReader(u.read(id, "/tmp/shot.png")))
	must(u, "reading the screenshot", img, err)
	r, g, b, _ := img.At(200, 150).RGBA()
	if size := img.Bounds().Size(); size.X != 400 || size.Y != 300 || r != 0 || g != 0xffff || b != 0 {
		t.Errorf("a screenshot of %v, in its middle %x %x %x, want 400×300 in green", size, r, g, b)
	}
}

// line is one line of an execution's answer.
type line struct {
	Type string
	Text string
	PNG  string
	Name string
	Main bool `json:"is_main_result"`
}

func (u *user) interpret(id, code string, more string) (lines []line) {
	u.t.Helper()
	body, err := json.Marshal(code)
	must(u, "", body, err)
	u.write(id, "/tmp/request", fmt.Sprintf(`{"code":%s%s}`, body, more))
	out := text(u.run(id, "curl", "-sN", "-d", "@/tmp/request", "http://localhost:49999/execute").Stdout)
	for raw := range strings.Lines(out) {
		var l line
		if err := json.Unmarshal([]byte(raw), &l); err != nil {
			u.t.Fatalf("%q: %v", raw, err)
		}
		lines = append(lines, l)
	}
	if n := len(lines); n == 0 || lines[n-1].Type != "end_of_execution" {
		u.t.Fatalf("%s answers %q", code, out)
	}
	return lines
}

func find(lines []line, kind string) line {
	for _, l := range lines {
		if l.Type == kind {
			return l
		}
	}
	return line{}
}

// Results reach the client as they are: text, tables, pictures; state stays between
// executions, and apart between contexts.
func testInterpreter(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claimAny("code-interpreter")
	if l := find(u.interpret(id, "x = 6*7\nprint('out')\nx", ""), "result"); l.Text != "42" || !l.Main {
		t.Errorf("a result: %+v", l)
	}
	if l := find(u.interpret(id, "import sys; print(x, file=sys.stderr)", ""), "stderr"); l.Text != "42\n" {
		t.Errorf("standard error: %+v", l)
	}
	figure := find(u.interpret(id, "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3]); plt.show()", ""), "result")
	picture, err := base64.StdEncoding.DecodeString(figure.PNG)
	must(u, "decoding a figure", picture, err)
	if img, err := png.Decode(bytes.NewReader(picture)); err != nil || img.Bounds().Empty() {
		t.Errorf("a figure: %v", err)
	}
	if l := find(u.interpret(id, "import pandas as pd\npd.DataFrame({'a': [1, 2]}).a.sum()", ""), "result"); !strings.Contains(l.Text, "3") {
		t.Errorf("pandas: %+v", l)
	}
	if l := find(u.interpret(id, "1/0", ""), "error"); l.Name != "ZeroDivisionError" {
		t.Errorf("an error: %+v", l)
	}
	if l := find(u.interpret(id, "import os; os.environ['A']", `,"env_vars":{"A":"b"}`), "result"); l.Text != "'b'" {
		t.Errorf("a variable: %+v", l)
	}
	var made struct{ ID string }
	if err := json.Unmarshal([]byte(text(u.run(id, "curl", "-s", "-d", "{}", "http://localhost:49999/contexts").Stdout)), &made); err != nil || made.ID == "" {
		t.Fatalf("a context: %+v, %v", made, err)
	}
	if l := find(u.interpret(id, "x", `,"context_id":"`+made.ID+`"`), "error"); l.Name != "NameError" {
		t.Errorf("another context: %+v", l)
	}
	if l := find(u.interpret(id, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)", ""), "error"); l.Name != "KernelDied" {
		t.Errorf("a kernel that dies: %+v", l)
	}
	if l := find(u.interpret(id, "1+1", ""), "result"); l.Text != "2" {
		t.Errorf("after its death: %+v", l)
	}
	claimed := u.claimed(client.ClaimRequest{Template: "code-interpreter", Config: &client.SandboxConfig{EnvVars: map[string]string{"CLAIMED": "yes"}}})
	// The claim has started the kernels anew: it does not wait until they serve.
	s.Eventually("the kernels to serve again", func() error {
		if res := u.run(claimed, "curl", "-sf", "http://localhost:49999/health"); *res.ExitCode != 0 {
			return fmt.Errorf("curl ends with %d", *res.ExitCode)
		}
		return nil
	})
	if l := find(u.interpret(claimed, "import os; os.environ.get('CLAIMED')", ""), "result"); l.Text != "'yes'" {
		t.Errorf("the claim's variable: %+v", l)
	}
}
