package machine

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func config(t *testing.T) Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "s0m-") // short: sockets live in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return Config{
		DataDir: filepath.Join(dir, "d"), RunDir: filepath.Join(dir, "r"), BinDir: dir, ImageDir: dir, Listen: "127.0.0.1:0", RegistryListen: "127.0.0.1:0",
		Cluster: "test", PoolMin: 1, PoolMax: 2, SandboxCIDR: netip.MustParsePrefix("10.73.0.0/16"), SandboxCIDR6: netip.MustParsePrefix("fd73::/64"),
	}
}

func TestValidateNamesTheFlag(t *testing.T) {
	t.Parallel()
	for flag, spoil := range map[string]func(*Config){
		"--data-dir":          func(c *Config) { c.DataDir = "relative" },
		"want a path without": func(c *Config) { c.DataDir += "/a:b" },
		"--image-dir":         func(c *Config) { c.ImageDir = "relative" },
		"--postgres-bin":      func(c *Config) { c.PostgresBin = "bin" },
		"--run-dir":           func(c *Config) { c.RunDir = "/" + strings.Repeat("x", 100) },
		"--oidc-config":       func(c *Config) { c.OIDCFile = "oidc.yaml" },
		"--bin-dir":           func(c *Config) { c.BinDir = "/" },
		"--pool-min":          func(c *Config) { c.PoolMin = 5 },
		"cluster":             func(c *Config) { c.Cluster = "Not A Label" },
	} {
		c := config(t)
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		spoil(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s: %v", flag, err)
		}
	}
}

func TestOneServerForAnInstance(t *testing.T) {
	t.Parallel()
	c := config(t)
	if running, err := c.Running(); err != nil || running {
		t.Errorf("without a directory: running %v, %v", running, err)
	}
	if err := c.makeDirs(); err != nil {
		t.Fatal(err)
	}
	first, err := c.tryLock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.tryLock(); !errors.Is(err, ErrRunning) {
		t.Errorf("a second lock: %v, want %v", err, ErrRunning)
	}
	if running, err := c.Running(); err != nil || !running {
		t.Errorf("with a lock: running %v, %v", running, err)
	}
	time.AfterFunc(30*time.Millisecond, first.release)
	if err := c.awaitEnd(t.Context()); err != nil {
		t.Errorf("awaitEnd: %v", err)
	}
}

// serveControl runs a control socket that stops as told.
func serveControl(t *testing.T, c Config, stop func(*stopRequest)) *control {
	t.Helper()
	if err := c.makeDirs(); err != nil {
		t.Fatal(err)
	}
	var ctl *control
	ctl = newControl(func() Status { return Status{PID: 7, State: Ready, API: "http://here"} }, func() {
		go func() {
			stop(ctl.requested())
			close(ctl.ended)
		}()
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- ctl.serve(ctx, c.controlSocket()) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("control socket: %v", err)
		}
	})
	deadline := time.Now().Add(time.Minute)
	for {
		if _, err := c.Ask(t.Context()); err == nil {
			return ctl
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func TestDownTellsWhatHappens(t *testing.T) {
	t.Parallel()
	c := config(t)
	var kept []bool
	ctl := serveControl(t, c, func(s *stopRequest) {
		kept = append(kept, s.keep)
		s.tell("ending %d sandboxes", 3)
	})
	if s, err := c.Ask(t.Context()); err != nil || s.PID != 7 || s.State != Ready || s.API != "http://here" {
		t.Errorf("Ask = %+v, %v", s, err)
	}
	var out bytes.Buffer
	if err := c.Down(t.Context(), true, &out); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); got != "ending 3 sandboxes\n" {
		t.Errorf("Down said %q", got)
	}
	if err := c.Down(t.Context(), false, &out); err != nil { // nothing stops twice
		t.Fatal(err)
	}
	if len(kept) != 1 || !kept[0] {
		t.Errorf("stops with keep %v, want the first alone", kept)
	}
	ctl.requested().tell("too late") // must not write to an answer that is done
}

// A start that is cut short before it showed the first password leaves it to the
// next one, which shows it once.
func TestTheFirstPasswordIsShownOnce(t *testing.T) {
	t.Parallel()
	c := config(t)
	if err := c.makeDirs(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cut := &server{cfg: c, say: printer(&out)}
	cut.bootstrapped("admin@example.com", "the password")
	if info, err := os.Stat(c.passwordFile()); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", info, err)
	}
	next := &server{cfg: c, say: printer(&out)}
	next.firstUser = next.unshown()
	next.announce()
	if s := out.String(); !strings.Contains(s, "admin@example.com") || strings.Count(s, "the password") != 1 {
		t.Errorf("shown:\n%s", s)
	}
	if later := next.unshown(); later != nil {
		t.Errorf("shown again: %v", later)
	}
}
