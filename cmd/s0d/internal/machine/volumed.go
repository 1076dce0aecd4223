package machine

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"s0.run/cmd/s0d/internal/child"
	"s0.run/internal/sealed"
	"s0.run/internal/volumeapi"
	"s0.run/volumed"
)

const (
	volumedGrace        = 15 * time.Second // it commits what it can
	volumedReadyTimeout = 2 * time.Minute  // it mounts JuiceFS, whose first start makes it
)

// startVolumed starts volumed beside us: what it touches may hang. The volumes' mounts
// stay when it ends.
func (s *server) startVolumed(ctx context.Context) error {
	if !s.cfg.Volumes {
		return nil
	}
	if _, err := os.Stat(s.cfg.binary("juicefs")); err != nil {
		return fmt.Errorf("--volumes needs juicefs, which `make tools` builds: %w", err)
	}
	if _, err := sealed.Ensure(s.cfg.credentialKeys()); err != nil {
		return err
	}
	client := volumeapi.NewClient(s.cfg.volumedSocket())
	defer client.Close()
	c := s.launchChild(ctx, child.Config{
		Name: "volumed", Command: s.volumedCommand, StopSignal: syscall.SIGTERM, StopGrace: volumedGrace,
		Ready: func(ctx context.Context) error {
			_, err := client.Info(ctx)
			return err
		},
		Log: s.log, LogFile: s.cfg.logFile("volumed"),
	})
	ctx, cancel := context.WithTimeout(ctx, volumedReadyTimeout)
	defer cancel()
	return s.awaitChild(ctx, "volumed", c)
}

func (s *server) volumedCommand(ctx context.Context) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "volumed",
		"--node", s.cfg.Cluster, "--data-dir", s.cfg.data("volumed"), "--run-dir", s.cfg.run("volumed"), "--socket", s.cfg.volumedSocket(),
		"--juicefs", s.cfg.binary("juicefs"), "--credential-keys", s.cfg.credentialKeys(), "--log-level", s.cfg.LogLevel,
		fmt.Sprintf("--buckets-allow-private=%t", s.cfg.BucketsPrivate),
	)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	return cmd
}

// unmountVolumes is for a machine whose sandboxes have ended.
func (s *server) unmountVolumes() {
	if err := volumed.Unmount(s.cfg.run("volumed")); err != nil {
		s.log.Warn("volumes stay mounted", "error", err)
	}
}
