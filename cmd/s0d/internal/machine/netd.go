package machine

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"s0.run/cmd/s0d/internal/child"
	"s0.run/internal/netdapi"
	"s0.run/internal/sealed"
)

const (
	netdGrace        = 5 * time.Second // it closes its sockets
	netdReadyTimeout = time.Minute     // it loads its programs
)

// startNetd starts netd beside us: in a process of its own, for it lives in the
// sandboxes' network namespace, which noded has made, and its end takes nothing along.
func (s *server) startNetd(ctx context.Context) error {
	if _, err := sealed.Ensure(s.cfg.credentialKeys()); err != nil {
		return err
	}
	client := netdapi.NewClient(s.cfg.netdSocket())
	defer client.Close()
	c := s.launchChild(ctx, child.Config{
		Name: "netd", Command: s.netdCommand, StopSignal: syscall.SIGTERM, StopGrace: netdGrace,
		Ready: func(ctx context.Context) error {
			_, err := client.Info(ctx)
			return err
		},
		Log: s.log, LogFile: s.cfg.logFile("netd"),
	})
	ctx, cancel := context.WithTimeout(ctx, netdReadyTimeout)
	defer cancel()
	return s.awaitChild(ctx, "netd", c)
}

func (s *server) netdCommand(ctx context.Context) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "netd",
		"--netns", s.cfg.dataplane(), "--run-dir", s.cfg.run("netd"), "--socket", s.cfg.netdSocket(),
		"--sandbox-cidr", s.cfg.SandboxCIDR.String(), "--sandbox-cidr6", s.cfg.SandboxCIDR6.String(), "--credential-keys", s.cfg.credentialKeys(), "--log-level", s.cfg.LogLevel,
	)
	if deny := s.denied(); len(deny) > 0 {
		cmd.Args = append(cmd.Args, "--deny", strings.Join(deny, ","))
	}
	for _, r := range s.cfg.Resolvers {
		cmd.Args = append(cmd.Args, "--resolvers", r.String())
	}
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, name := range []string{"SSL_CERT_FILE", "SSL_CERT_DIR"} { // whom upstream it believes, as sandboxes do
		if value := os.Getenv(name); value != "" {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	return cmd
}

// denied is what the operator says, and the database where it has an address of its
// own; this machine's addresses netd knows itself.
func (s *server) denied() (all []string) {
	for _, p := range s.cfg.Deny {
		all = append(all, p.String())
	}
	if u, err := url.Parse(s.cfg.DatabaseURL); err == nil {
		if a, err := netip.ParseAddr(u.Hostname()); err == nil {
			all = append(all, fmt.Sprintf("%s/%d", a, a.BitLen()))
		}
	}
	return all
}
