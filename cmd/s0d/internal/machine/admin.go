package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"s0.run/api/client"
)

// bootstrapped is called by the API server when it has made the first user. The
// password exists nowhere else.
func (s *server) bootstrapped(email, password string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.firstUser = &credentials{email, password}
	if err := os.WriteFile(s.cfg.passwordFile(), []byte(email+"\n"+password+"\n"), 0o600); err != nil {
		s.say("  admin        %s, password %s (it could not be kept: %v)", email, password, err)
	}
}

// unshown are the first user's credentials when an earlier start was cut short
// before it showed them.
func (s *server) unshown() *credentials {
	b, err := os.ReadFile(s.cfg.passwordFile())
	if err != nil {
		return nil
	}
	email, password, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	return &credentials{email, password}
}

// firstCredentials are nil once the first user was shown them.
func (s *server) firstCredentials() *credentials {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.firstUser
}

// mintKey makes the key with which root of this machine uses the API: for the
// demo, the benchmark and scripts. Without it all else works, so a failure is
// shown and no more.
func (s *server) mintKey(ctx context.Context) {
	c := s.firstCredentials()
	if c == nil {
		return
	}
	if _, err := os.Stat(s.cfg.KeyFile()); err == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := s.writeKey(ctx, *c); err != nil {
		s.say("  admin key    was not made: %v", err)
	}
}

func (s *server) writeKey(ctx context.Context, c credentials) error {
	base := s.snapshot().API
	anonymous, err := client.New(client.Config{BaseURL: base})
	if err != nil {
		return err
	}
	login, err := anonymous.Login(ctx, c.email, c.password)
	if err != nil {
		return fmt.Errorf("logging in as %s: %w", c.email, err)
	}
	admin, err := client.New(client.Config{BaseURL: base, Token: login.AccessToken})
	if err != nil {
		return err
	}
	never := client.CreateAPIKeyRequestExpiresIn("never")
	key, err := admin.CreateAPIKey(ctx, client.CreateAPIKeyRequest{Name: "root of this machine", Roles: []client.Role{"admin"}, ExpiresIn: &never})
	if err != nil {
		return fmt.Errorf("creating the key: %w", err)
	}
	return os.WriteFile(s.cfg.KeyFile(), []byte(key.Key+"\n"), 0o600)
}

// announce ends a start: where the API is, how to get in, what to try.
func (s *server) announce() {
	s.say("\ns0 is up: %s", s.snapshot().API)
	if c := s.firstCredentials(); c != nil {
		s.say("  admin     %s\n  password  %s   (shown this once)", c.email, c.password)
		if err := os.Remove(s.cfg.passwordFile()); err != nil {
			s.say("  remove %s: %v", s.cfg.passwordFile(), err)
		}
	}
	s.say(`
Try:
  make demo
  export PATH="%s:$PATH" && s0 auth login
  export SANDBOX0_TOKEN="$(s0 apikey create --name t --role admin --expires-in 30d --raw)" && s0 sandbox create -t default`, s.cfg.BinDir)
}

// endSandboxes deletes what is claimed while the API server still records it,
// then stops that server, which would refill, and drains the pools.
func (s *server) endSandboxes(ctx context.Context, tell progress) error {
	if s.part("noded") < 0 {
		return errors.New("sandboxes of an earlier run, if any, are left: noded had not started")
	}
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	n := s.cfg.Node()
	view, err := n.Look(ctx)
	if err != nil {
		return err
	}
	tell("ending %d sandboxes and %d warm slots; %d paused sandboxes stay", len(view.Claimed), len(view.Slots)+view.Warming, len(view.Paused))
	if err := n.EndSandboxes(ctx, "the server was shut down"); err != nil {
		return err
	}
	s.stopPart(s.part("api"))
	if err := n.Drain(ctx); err != nil {
		return errors.Join(errors.New("some slots are left; the next start sweeps them"), err)
	}
	return nil
}
