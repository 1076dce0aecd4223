// Package jfs has JuiceFS mounted: the durable tier.
//
// It is the stock program, in a process group of its own that outlives us: its keeper
// hands the mount to a new worker when one dies, and a mount that is found working is
// used as it is. Secrets reach it in its environment, never on its command line. The
// package knows nothing of volumes.
package jfs

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// readyTimeout bounds a start on a loaded machine, lookTimeout the question whether a
	// mount works: one that lost its server hangs.
	readyTimeout, lookTimeout = 60 * time.Second, 5 * time.Second
	lookInterval              = 50 * time.Millisecond
	formatTimeout             = 60 * time.Second
	// hangTime is what a file system may take for an answer before it is replaced: its own
	// keeper replaces a worker that died, on a loaded machine in some seconds.
	hangTime = 30 * time.Second
	// endTimeout is for processes that were killed to let their files go.
	endTimeout = 10 * time.Second
	// Magic is FUSE's: what is mounted when the file system is.
	Magic = 0x65735546
	// A store that does not answer makes an EIO in a bounded time.
	ioRetries, ioTimeout = "4", "20"
)

// Config says what to mount where. Zero fields but Log are what they mean.
type Config struct {
	Binary    string
	Meta      string // URL of the metadata, without password: badger:///dir, sqlite3:///file, postgres://…
	Storage   string // file or s3
	Bucket    string // directory, or URL of the bucket
	MountDir  string
	CacheDir  string
	CacheMiB  int
	KeyFile   string   // RSA key that encrypts what is stored; empty: none does
	Secrets   []string // of its environment: META_PASSWORD, ACCESS_KEY, SECRET_KEY, JFS_RSA_PASSPHRASE
	LogFile   string
	Log       *slog.Logger
	MountArgs []string      // in tests
	HangTime  time.Duration // in tests; 0: hangTime
}

// name is the file system's.
const name = "s0-volumes"

// Ensure mounts the file system, unless it is mounted and works. One that hangs is given
// time, then replaced: whoever waits for it has an error.
func Ensure(ctx context.Context, cfg Config) error {
	// Nothing that can hang is asked of the place itself before it is known to answer.
	if err := os.MkdirAll(filepath.Dir(cfg.MountDir), 0o700); err != nil {
		return err
	}
	works, err := await(ctx, cfg)
	if works || err != nil {
		return err
	}
	if err := clear(ctx, cfg); err != nil {
		return fmt.Errorf("clearing %s: %w", cfg.MountDir, err)
	}
	if err := os.MkdirAll(cfg.MountDir, 0o700); err != nil {
		return err
	}
	if err := format(ctx, cfg); err != nil {
		return err
	}
	return mount(ctx, cfg)
}

// await gives a file system that hangs the time to come back.
func await(ctx context.Context, cfg Config) (works bool, err error) {
	patience := cfg.HangTime
	if patience == 0 {
		patience = hangTime
	}
	for end := time.Now().Add(patience); ; {
		health := Look(cfg.MountDir)
		if health != Hangs || time.Now().After(end) {
			return health == Good, nil
		}
		if err := ctx.Err(); err != nil {
			return false, err
		}
	}
}

// Works tells whether the file system is mounted and answers.
func Works(dir string) bool { return Look(dir) == Good }

// A Health is what a look at the file system saw.
type Health int

// What hangs may come back: a worker that died is replaced. What is not there does not.
const (
	Good Health = iota
	Hangs
	Gone
)

// Look asks the file system.
func Look(dir string) Health {
	answer := make(chan Health, 1)
	go func() { // ends with the system call, which may never do: there is one for each look
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil || st.Type != Magic {
			answer <- Gone
			return
		}
		answer <- Good
	}()
	select {
	case health := <-answer:
		return health
	case <-time.After(lookTimeout):
		return Hangs
	}
}

// format makes the file system; one that is there keeps what it is.
func format(ctx context.Context, cfg Config) error {
	for _, dir := range []string{cfg.CacheDir, filepath.Dir(cfg.LogFile)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, formatTimeout)
	defer cancel()
	args := []string{"format", cfg.Meta, name, "--storage", cfg.Storage, "--bucket", cfg.Bucket, "--trash-days", "0", "--no-update"}
	if cfg.KeyFile != "" {
		args = append(args, "--encrypt-rsa-key", cfg.KeyFile)
	}
	cmd := cfg.command(ctx, args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("making the volumes' file system: %w: %.500s", err, out)
	}
	return nil
}

func mount(ctx context.Context, cfg Config) error {
	log, err := os.OpenFile(cfg.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	args := []string{"mount", cfg.Meta, cfg.MountDir, "--no-usage-report", "--no-syslog", "--backup-meta", "0", "--metrics", "127.0.0.1:0",
		"--cache-dir", cfg.CacheDir, "--cache-size", strconv.Itoa(cfg.CacheMiB), "--io-retries", ioRetries, "--get-timeout", ioTimeout, "--put-timeout", ioTimeout}
	cmd := cfg.command(context.WithoutCancel(ctx), append(args, cfg.MountArgs...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // our end is not its own
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with the child, which may outlive us
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for !Works(cfg.MountDir) {
		select {
		case <-tick.C:
		case err := <-ended:
			return fmt.Errorf("juicefs ended: %w; its log is %s", err, cfg.LogFile)
		case <-ctx.Done():
			_ = cmd.Process.Kill()
			return fmt.Errorf("juicefs did not mount: %w; its log is %s", ctx.Err(), cfg.LogFile)
		}
	}
	return nil
}

func (c Config) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.Binary, args...)
	cmd.Dir = "/"
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/nonexistent"}, c.Secrets...)
	return cmd
}
