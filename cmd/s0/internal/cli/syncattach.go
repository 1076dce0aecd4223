package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"s0.run/cmd/s0/internal/session"
	"s0.run/cmd/s0/internal/sync/engine"
	syncstate "s0.run/cmd/s0/internal/sync/state"
	"s0.run/cmd/s0/internal/sync/tree"
	"s0.run/cmd/s0/internal/sync/worker"
)

var initSides = []string{engine.FromAuto, engine.FromVolume, engine.FromLocal}

func (a *app) syncAttach() *cobra.Command {
	var from, name string
	var foreground bool
	cmd := &cobra.Command{
		Use:   "attach <volume> [path]",
		Short: "Keep a directory and a volume alike from now on",
		Long: `Keep a directory (default the one you are in) and a volume alike from now on, by a
worker in the background. What .gitignore names is not synced, nor is .git, nor are links.

At the beginning one side may be empty, or both the same. If they differ say which is
right: --init-from volume keeps your files beside the volume's as conflicts, --init-from
local puts yours into the volume, of which a snapshot is kept.

Where both sides change a file the volume's stays, and yours is kept beside it; sending
stops until ` + "`s0 sync conflicts mark`" + `. After a restart of this machine attach again.`,
		Example:           "  s0 sync attach VOLUME ./project\n  s0 sync attach VOLUME --init-from local\n  s0 sync attach VOLUME ./project --foreground",
		Args:              wantUpTo(1, "the volume's id"),
		ValidArgsFunction: a.completeFirst(volumeWords),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(initSides, from) {
				return usageError(cmd, fmt.Errorf("--init-from %q: want %s", from, strings.Join(initSides, ", ")))
			}
			r, fresh, err := a.replicaFor(cmd.Context(), args[0], first(args[1:]))
			if err != nil {
				return err
			}
			r.InitFrom = from
			if name != "" {
				r.Name = name
			}
			err = a.attachReplica(cmd.Context(), r, foreground)
			if fresh && errors.As(err, new(*engine.BothError)) {
				return errors.Join(fmt.Errorf("%w; say which is right with --init-from volume or --init-from local", err), forgetReplica(r))
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&from, "init-from", engine.FromAuto, "what is right where both have something: auto, volume or local")
	flags.BoolVar(&foreground, "foreground", false, "sync here until interrupted, rather than in the background")
	flags.StringVar(&name, "name", "", "what to call this replica (default the host's and the directory's name)")
	complete(cmd, "init-from", initSides...)
	return cmd
}

// replicaFor is the replica of a volume at a path: a fresh one unless it was attached
// before.
func (a *app) replicaFor(ctx context.Context, volume, path string) (r *worker.Replica, fresh bool, err error) {
	c, err := a.session.Client(ctx)
	if err != nil {
		return nil, false, err
	}
	if _, err := c.GetVolume(ctx, volume); err != nil {
		return nil, false, err
	}
	if path == "" {
		path = "."
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, false, err
	}
	root, err := resolve(path)
	if err != nil {
		return nil, false, err
	}
	all, err := worker.List()
	if err != nil {
		return nil, false, err
	}
	home, err := worker.Home()
	if err != nil {
		return nil, false, err
	}
	if within(home, root) || within(root, home) {
		return nil, false, fmt.Errorf("%s holds what s0 keeps for itself", root)
	}
	var before *worker.Replica
	for _, r := range all {
		switch {
		case r.Root == root && r.VolumeID == volume:
			before = &r
		case !r.Detached && (within(root, r.Root) || within(r.Root, root)):
			return nil, false, fmt.Errorf("%s is attached to the volume %s: `s0 sync detach` ends that", r.Root, r.VolumeID)
		}
	}
	if before != nil {
		return before, false, nil
	}
	id := strings.ToLower(rand.Text()[:16])
	host, _ := os.Hostname() // a name is as good without
	return &worker.Replica{Dir: filepath.Join(home, id), Attachment: syncstate.Attachment{
		ID: id, VolumeID: volume, Root: root, Name: strings.Trim(host+":"+filepath.Base(root), ":"), CreatedAt: time.Now().UTC(),
	}}, true, nil
}

// attachReplica syncs once, so that what is wrong is said at once, and goes on here or in the
// background.
func (a *app) attachReplica(ctx context.Context, r *worker.Replica, foreground bool) error {
	if err := os.MkdirAll(r.Dir, 0o700); err != nil {
		return err
	}
	unlock, err := r.Lock()
	if err != nil {
		return fmt.Errorf("%s: %w", r.Root, err)
	}
	r.Detached = false
	log := lineLog(os.Stderr)
	err = saveAttachment(ctx, r)
	if err == nil {
		err = a.working(r, log, func(e *engine.Engine) error {
			if err := e.Cycle(ctx); err != nil || !foreground {
				return err
			}
			return (&worker.Worker{Engine: e, Root: r.Root, Log: log}).Run(ctx)
		})
	}
	unlock()
	if err != nil || foreground {
		return err
	}
	if err := r.Spawn(ctx, a.workerArgs(r), a.workerEnv()); err != nil {
		return err
	}
	v, err := viewOf(r)
	if err != nil {
		return err
	}
	return a.printer.Print(v, replicaFields(v))
}

// workerArgs are those of s0 for a worker. A token is not among them.
func (a *app) workerArgs(r *worker.Replica) []string {
	args := []string{"sync", "worker", r.ID}
	if path := a.options.ConfigPath; path != "" {
		if abs, err := filepath.Abs(path); err == nil {
			path = abs
		}
		args = append(args, "--config="+path)
	}
	if a.options.APIURL != "" {
		args = append(args, "--api-url="+a.options.APIURL)
	}
	return append(args, "--profile="+a.session.ProfileName())
}

func (a *app) workerEnv() []string {
	if a.options.Token == "" {
		return nil
	}
	return []string{session.EnvToken + "=" + a.options.Token}
}

// working calls do with a replica's engine, whose lock is held.
func (a *app) working(r *worker.Replica, log *slog.Logger, do func(*engine.Engine) error) error {
	store, err := syncstate.Open(r.Dir, true)
	if err != nil {
		return err
	}
	defer store.Close()
	files, err := tree.Open(r.Root)
	if err != nil {
		return err
	}
	defer files.Close()
	if p, err := store.Progress(); err != nil {
		return err
	} else if !p.Seeded {
		if err := files.Mark(r.ID); err != nil {
			return err
		}
	}
	sensitive, err := files.CaseSensitive()
	if err != nil {
		return err
	}
	is := engine.Replica{
		Name: r.Name, Platform: runtime.GOOS, Root: r.Root,
		Capabilities: engine.Capabilities{CaseSensitive: sensitive, Windows: runtime.GOOS == "windows"},
	}
	return do(engine.New(engine.Config{
		Store: store, Tree: files, ID: r.ID, From: r.InitFrom, Replica: is, Log: log,
		Server: &engine.Remote{Client: a.syncClient(), VolumeID: r.VolumeID, Replica: r.ID},
	}))
}

// lineLog is a log for people.
func lineLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(_ []string, at slog.Attr) slog.Attr {
		if at.Key == slog.TimeKey {
			at.Value = slog.StringValue(at.Value.Time().Format(time.DateTime))
		}
		return at
	}}))
}

// syncWorker is what attach starts.
func (a *app) syncWorker() *cobra.Command {
	return &cobra.Command{
		Use:     "worker <replica>",
		Short:   "Sync a replica until told to end; attach starts it",
		Example: "  s0 sync worker REPLICA",
		Hidden:  true,
		Args:    want("the replica's id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			home, err := worker.Home()
			if err != nil {
				return err
			}
			r, err := worker.Load(filepath.Join(home, filepath.Base(args[0])))
			if err != nil {
				return err
			}
			unlock, err := r.Lock()
			if err != nil {
				return err
			}
			defer unlock()
			file, err := r.OpenLog()
			if err != nil {
				return err
			}
			defer file.Close()
			log := lineLog(file)
			log.Info("the worker runs", "volume", r.VolumeID, "path", r.Root)
			defer log.Info("the worker has ended")
			return a.working(r, log, func(e *engine.Engine) error {
				return (&worker.Worker{Engine: e, Root: r.Root, Log: log}).Run(cmd.Context())
			})
		},
	}
}
