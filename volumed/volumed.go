// Package volumed is the daemon that has a node's volumes.
//
// It keeps JuiceFS mounted, which is where volumes are durable (internal/jfs), and serves
// noded over a unix socket: volumes, their versions and where they are mounted
// (internal/work on internal/store and internal/layers). It is a process of its own
// because what it touches may hang, and none of a sandbox's way leads through it: a mount
// is the kernel's, and goes on while no volumed runs. It knows no sandbox and no wire but
// noded's.
package volumed

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/daemon"
	"s0.run/internal/volumeapi"
	"s0.run/volumed/internal/bucket"
	"s0.run/volumed/internal/calls"
	"s0.run/volumed/internal/jail"
	"s0.run/volumed/internal/jfs"
	"s0.run/volumed/internal/layers"
	"s0.run/volumed/internal/store"
	"s0.run/volumed/internal/work"
)

const (
	// stopGrace is what running calls get to finish when volumed stops.
	stopGrace = 5 * time.Second
	// headerTimeout and idleTimeout bound what noded's connections may keep waiting.
	headerTimeout, idleTimeout = 5 * time.Second, 10 * time.Minute
	// watchInterval is how soon a file system that died is mounted again.
	watchInterval = 2 * time.Second
)

// Config says what a volumed owns and where. Zero fields take the value that [Default]
// has for them.
type Config struct {
	Node    string // tells this node from others of the same store
	DataDir string // what this node alone has, and its store where that is local
	RunDir  string // mounts
	Socket  string // for noded

	JuiceFS  string // the program; empty: the store is a plain directory of this machine
	Meta     string // URL of its metadata; empty: Badger's, in DataDir. Its password is META_PASSWORD
	Bucket   string // URL of an S3 bucket; empty: a directory in DataDir. Its keys are ACCESS_KEY and SECRET_KEY
	KeyFile  string // RSA key that encrypts what is stored, with JFS_RSA_PASSPHRASE; empty: none does
	CacheMiB int    // of the store's data on this machine

	// CredentialKeys is a directory of the keys that open buckets' credentials; empty: no
	// bucket is a volume here. BucketsPrivate has them on loopback and private networks, too.
	CredentialKeys string
	BucketsPrivate bool

	// FilesCommand runs FilesMain, with the arguments that follow, BucketCommand BucketMain.
	FilesCommand, BucketCommand []string

	Version string
	Log     *slog.Logger
	Ready   func() // called once, when the socket answers
}

// FilesMain is the process that serves the files of one volume, which volumed starts.
func FilesMain(args []string) int { return jail.Main(args) }

// BucketMain is the process that shows one bucket, which volumed starts.
func BucketMain(args []string) int { return bucket.Main(args) }

// Default is where every default is.
func Default() Config {
	return Config{
		Node: "local", DataDir: "/var/lib/s0/volumed", RunDir: "/run/s0/volumed", Socket: "/run/s0/volumed.sock",
		FilesCommand: []string{"/proc/self/exe", "volume-files"}, BucketCommand: []string{"/proc/self/exe", "volume-bucket"},
		CacheMiB: 4096, Version: "dev", Log: slog.Default(),
	}
}

// secrets are the words of JuiceFS for what must not be on a command line.
var secrets = []string{"META_PASSWORD", "ACCESS_KEY", "SECRET_KEY", "SESSION_TOKEN", "JFS_RSA_PASSPHRASE"}

func (c Config) tier() string {
	if c.JuiceFS == "" {
		return filepath.Join(c.DataDir, "store")
	}
	return filepath.Join(c.RunDir, "jfs")
}

// store is told from an empty mount point by its file system, and from another store by
// its name.
func (c Config) store() store.Config {
	cfg := store.Config{Dir: c.tier(), Known: c.data("store-id")}
	if c.JuiceFS != "" {
		cfg.Magic = jfs.Magic
	}
	return cfg
}

func (c Config) buckets() string { return filepath.Join(c.RunDir, "buckets") }

func (c Config) data(name string) string { return filepath.Join(c.DataDir, name) }

func (c Config) juicefs() jfs.Config {
	j := jfs.Config{
		Binary: c.JuiceFS, Meta: c.Meta, Storage: "s3", Bucket: c.Bucket, MountDir: c.tier(),
		CacheDir: c.data("cache"), CacheMiB: c.CacheMiB, KeyFile: c.KeyFile, LogFile: c.data("juicefs.log"), Log: c.Log,
	}
	if j.Meta == "" {
		j.Meta = "badger://" + c.data("meta")
	}
	if j.Bucket == "" {
		j.Storage, j.Bucket = "file", c.data("objects")+"/"
		j.CacheMiB = 0 // the page cache is nearer
	}
	for _, name := range secrets {
		if value, ok := os.LookupEnv(name); ok {
			j.Secrets = append(j.Secrets, name+"="+value)
		}
	}
	return j
}

// sync makes durable what the store has written to this machine.
func (c Config) sync() error {
	f, err := os.Open(c.DataDir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// Run runs a volumed until ctx ends. Mounts stay.
func Run(ctx context.Context, cfg Config) error {
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return err
	}
	stack := daemon.NewStack()
	defer stack.Stop()
	if cfg.JuiceFS != "" {
		if err := jfs.Ensure(ctx, cfg.juicefs()); err != nil {
			return fmt.Errorf("volumed: %w", err)
		}
		// From now on whatever waits for it is freed when it hangs, what follows as well.
		stack.Start("juicefs", func(ctx context.Context) error { return watch(ctx, cfg) })
	}
	s, err := store.Open(cfg.store())
	if err != nil {
		return fmt.Errorf("volumed: opening the store: %w", err)
	}
	manager := work.New(work.Config{
		Store: s, Node: cfg.Node, DataDir: cfg.data("work"), RunDir: cfg.RunDir, Sync: cfg.sync, Log: cfg.Log,
	})
	if err := manager.Recover(ctx); err != nil {
		return fmt.Errorf("volumed: %w", err)
	}
	buckets := bucket.New(bucket.Config{
		Dir: cfg.buckets(), Command: cfg.BucketCommand, Keys: cfg.CredentialKeys, AllowPrivate: cfg.BucketsPrivate, Log: cfg.Log,
	})
	stack.Push(buckets.Close)
	if err := buckets.Recover(); err != nil {
		return fmt.Errorf("volumed: %w", err)
	}
	files := calls.New(calls.Config{Manager: shares{manager, buckets}, Command: cfg.FilesCommand, Log: cfg.Log})
	stack.Start("files", files.Run)
	if err := serve(cfg, stack, &withBuckets{&server{manager: manager, store: s, cfg: cfg}, buckets}, files); err != nil {
		return fmt.Errorf("volumed: %w", err)
	}
	stack.Start("volumes", manager.Run)
	if cfg.Ready != nil {
		cfg.Ready()
	}
	if err := stack.Wait(ctx); err != nil {
		return fmt.Errorf("volumed: %w", err)
	}
	return nil
}

// watch mounts the file system again when it has died. What lay on the dead one answers
// EIO until it is mounted anew; what was written above it is on this machine's disk.
func watch(ctx context.Context, cfg Config) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if jfs.Works(cfg.tier()) {
			continue
		}
		cfg.Log.Error("the volumes' file system does not answer, and is mounted again if it goes on so")
		if err := jfs.Ensure(ctx, cfg.juicefs()); err != nil && ctx.Err() == nil {
			cfg.Log.Error("mounting the volumes' file system will be tried again", "error", err)
		}
	}
}

func serve(cfg Config, stack *daemon.Stack, s volumeapi.Server, files http.Handler) error {
	listener, err := daemon.ListenUnix(cfg.Socket)
	if err != nil {
		return err
	}
	api := volumeapi.Handler(s, func(path string, err error) {
		cfg.Log.Warn("a call failed", "path", path, "error", err)
	})
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, volumeapi.PathCalls+"/") {
				files.ServeHTTP(w, r)
				return
			}
			api.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout,
	}
	stack.Start("socket", func(ctx context.Context) error { return daemon.Serve(ctx, srv, listener, stopGrace) })
	return nil
}

// Unmount takes everything away that a volumed has mounted, for a machine that stops: no
// sandbox runs any more. What was not committed is taken up by the next one.
func Unmount(runDir string) error {
	mounts, err := layers.Mounts(runDir)
	if err != nil {
		return err
	}
	slices.Reverse(mounts)
	for _, at := range mounts {
		if err := layers.Unmount(at, true); err != nil {
			return fmt.Errorf("unmounting %s: %w", at, err)
		}
	}
	return nil
}
