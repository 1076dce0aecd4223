// Package oidctest runs a real OpenID provider as a process of its own, and
// browsers that sign in there.
//
// A provider belongs to one test and ends with it, however the test ends. Its
// program and its pins are in the folder provider; `make test-deps` installs it.
package oidctest

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"s0.run/internal/s0test"
)

const startTimeout = time.Minute // on a loaded machine

// The client that every provider knows.
const (
	ClientID     = "s0"
	ClientSecret = "a secret: with + and % and /"
)

// Account is what the provider says of whoever types its login.
type Account struct {
	Email    string `json:"email,omitempty"`
	Verified bool   `json:"email_verified"`
	Name     string `json:"name,omitempty"`
}

// Provider is a process.
type Provider struct {
	Issuer string

	t       testing.TB
	process *exec.Cmd
	ended   chan struct{}
}

// Start starts a provider that sends browsers back to a callback URL.
func Start(t testing.TB, callback string, accounts map[string]Account) *Provider {
	t.Helper()
	if testing.Short() {
		t.Skip("needs node and an OpenID provider from npm: not in short mode")
	}
	dir := filepath.Join(s0test.ModuleRoot(t), "internal", "s0test", "oidctest", "provider")
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "oidc-provider")); err != nil {
		t.Fatalf("the OpenID provider is not installed: run `make test-deps`: %v", err)
	}
	config, err := json.Marshal(map[string]any{"accounts": accounts, "clients": []any{map[string]any{
		"client_id": ClientID, "client_secret": ClientSecret,
		"redirect_uris":  []string{callback},
		"grant_types":    []string{"authorization_code", "urn:ietf:params:oauth:grant-type:device_code"},
		"response_types": []string{"code"},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	p := &Provider{t: t, process: exec.Command("node", "provider.mjs", string(config)), ended: make(chan struct{})}
	p.process.Dir = dir
	p.run()
	return p
}

// run starts the process and waits for its issuer. It lives as long as its
// standard input is open, which the kernel closes when we are killed.
func (p *Provider) run() {
	p.t.Helper()
	if _, err := p.process.StdinPipe(); err != nil {
		p.t.Fatal(err)
	}
	out, err := p.process.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	var complaints strings.Builder
	p.process.Stderr = &complaints
	if err := p.process.Start(); err != nil {
		p.t.Fatalf("starting the OpenID provider: %v", err)
	}
	p.t.Cleanup(p.Stop)
	issuer := make(chan string, 1)
	go func() {
		defer close(p.ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if line := lines.Text(); strings.HasPrefix(line, "http://") {
				issuer <- line
			}
		}
		_ = p.process.Wait() // it ends by a signal
	}()
	select {
	case p.Issuer = <-issuer:
	case <-p.ended:
		p.t.Fatalf("the OpenID provider did not start:\n%s", complaints.String())
	case <-time.After(startTimeout):
		p.t.Fatal("the OpenID provider does not serve")
	}
}

// Stop ends the provider. Stopping twice is fine.
func (p *Provider) Stop() {
	_ = p.process.Process.Kill() // it may have ended
	<-p.ended
}

// SecretFile writes the client's secret where a server can read it.
func (p *Provider) SecretFile() string {
	p.t.Helper()
	path := filepath.Join(p.t.TempDir(), "client-secret")
	if err := os.WriteFile(path, []byte(ClientSecret+"\n"), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return path
}
