package e2e_test

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"s0.run/internal/s0test"
)

// atOnce is how many scripts run at the same time, however many processors there are: a
// small machine serves so many people who sign in and claim without telling any to wait.
const atOnce = 4

// TestCLI runs the scripts of testdata/cli, each a person's session at a
// terminal, with the real s0 against a real machine.
func TestCLI(t *testing.T) {
	s := s0test.Start(t, s0test.Options{Pool: 2, Flags: []string{"--allow-registration", "--volumes"}})
	signUp(t, s, "ada@example.com", "the password of ada")
	t.Run("scripts", func(t *testing.T) {
		server := checker.Proxy(t, s.URL)
		places := make(chan struct{}, atOnce)
		testscript.Run(t, testscript.Params{
			Dir: filepath.Join("testdata", "cli"),
			Setup: func(env *testscript.Env) error {
				places <- struct{}{}
				env.Defer(func() { <-places })
				env.Setenv("PATH", s.Bin()+":"+env.Getenv("PATH"))
				env.Setenv("HOME", env.WorkDir)
				env.Setenv("SANDBOX0_BASE_URL", server)
				env.Setenv("S0_IMAGE", filepath.Join(s0test.ModuleRoot(t), "build", "images", "default"))
				env.Setenv("S0_ADMIN_EMAIL", "admin@example.com")
				env.Setenv("S0_ADMIN_PASSWORD", s0test.AdminPassword)
				return nil
			},
		})
	})
	t.Run("terminal", func(t *testing.T) { testTerminal(t, s) })
	t.Run("terminal signals", func(t *testing.T) { testTerminalSignals(t, s) })
	t.Run("terminal reattach", func(t *testing.T) { testTerminalReattach(t, s) })
	t.Run("output over breaks", func(t *testing.T) { testOutputOverBreaks(t, s) })
	s.CheckOwned()
}

// signUp makes a user, for scripts that need a second one.
func signUp(t *testing.T, s *s0test.Stack, email, password string) {
	t.Helper()
	body := fmt.Sprintf(`{"email":%q,"password":%q,"name":"Ada"}`, email, password)
	resp, err := http.Post(s.URL+"/auth/register", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("signing up %s: %s", email, resp.Status)
	}
}
