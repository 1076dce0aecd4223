package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
	"s0.run/cmd/s0/internal/sync/engine"
	syncstate "s0.run/cmd/s0/internal/sync/state"
	"s0.run/cmd/s0/internal/sync/tree"
	"s0.run/cmd/s0/internal/sync/worker"
)

func (a *app) sync() *cobra.Command {
	return group("sync", "Keep a directory and a volume alike",
		"  s0 sync attach VOLUME ./project\n  s0 sync status ./project\n  s0 sync detach ./project",
		a.syncAttach(), a.syncDetach(), a.syncList(), a.syncStatus(), a.syncLogs(), a.syncConflicts(), a.syncWorker())
}

// replicaView is a replica as it is printed.
type replicaView struct {
	syncstate.Attachment
	syncstate.Status
	Running   bool  `json:"running"`
	CursorSeq int64 `json:"last_applied_seq"`
}

func viewOf(r *worker.Replica) (*replicaView, error) {
	s, err := syncstate.Open(r.Dir, false)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	v := &replicaView{Attachment: r.Attachment, Running: r.Running()}
	if v.Status, err = s.Status(); err != nil {
		return nil, err
	}
	p, err := s.Progress()
	if err != nil {
		return nil, err
	}
	v.CursorSeq = p.Cursor
	switch {
	case v.Detached:
		v.State = "detached"
	case !v.Running:
		v.State = engine.StateStopped
	}
	if v.Skipped == nil {
		v.Skipped = []tree.Skip{}
	}
	return v, nil
}

// findReplica is the replica at a path, or around it; without a path the one around the
// current directory, or the only one.
func findReplica(path string) (*worker.Replica, error) {
	all, err := worker.List()
	if err != nil {
		return nil, err
	}
	var attached []worker.Replica
	for _, r := range all {
		if r.ID == path {
			return &r, nil
		}
		if !r.Detached {
			attached = append(attached, r)
		}
	}
	at, err := resolve(path)
	if err != nil {
		return nil, err
	}
	for _, r := range attached {
		if within(at, r.Root) {
			return &r, nil
		}
	}
	if path == "" && len(attached) == 1 {
		return &attached[0], nil
	}
	return nil, fmt.Errorf("%s is not attached to a volume: `s0 sync list` shows what is", at)
}

// resolve is a directory's path without links; one that does not exist is as it is.
func resolve(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		return real, nil
	}
	return abs, nil
}

// within reports whether a path is a directory or in it.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

func (a *app) syncList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the directories here that are kept alike with volumes",
		Example: "  s0 sync list",
		Args:    want(),
		RunE: func(*cobra.Command, []string) error {
			all, err := worker.List()
			if err != nil {
				return err
			}
			views := []*replicaView{}
			rows := output.Rows{Columns: []string{"VOLUME", "PATH~", "STATE", "PENDING", "CONFLICTS", "NAME?"}, None: "No directories. `s0 sync attach` attaches one."}
			for _, r := range all {
				v, err := viewOf(&r)
				if err != nil {
					return err
				}
				views = append(views, v)
				rows.Rows = append(rows.Rows, []string{v.VolumeID, v.Root, v.State, strconv.Itoa(v.Pending), strconv.Itoa(v.Conflicts), v.Name})
			}
			return a.printer.Print(views, rows)
		},
	}
}

func (a *app) syncStatus() *cobra.Command {
	return &cobra.Command{
		Use:   "status [path]",
		Short: "Show how a directory and its volume fare",
		Long: `Show how a directory and its volume fare, and what of the directory is not synced:
links, pipes, sockets, files with several names, what is too large, and names of the
volume that can't be here. What .gitignore names is not synced and not shown.`,
		Example: "  s0 sync status\n  s0 sync status ./project",
		Args:    wantUpTo(1),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := findReplica(first(args))
			if err != nil {
				return err
			}
			v, err := viewOf(r)
			if err != nil {
				return err
			}
			return a.printer.Print(v, replicaFields(v))
		},
	}
}

// shownSkips bounds what a table shows of what is not synced.
const shownSkips = 20

func replicaFields(v *replicaView) output.Fields {
	fields := output.Fields{
		{"Volume", v.VolumeID}, {"Path", v.Root}, {"Name", v.Name}, {"Replica", v.ID}, {"State", v.State},
		{"Journal", fmt.Sprintf("%d of %d", v.CursorSeq, v.Head)}, {"Pending", strconv.Itoa(v.Pending)}, {"Conflicts", strconv.Itoa(v.Conflicts)},
	}
	if !v.SyncedAt.IsZero() {
		fields = append(fields, [2]string{"Synced", since(v.SyncedAt)})
	}
	if v.Error != "" {
		fields = append(fields, [2]string{"Error", v.Error + " (" + since(v.ErrorAt) + ")"})
	}
	for _, s := range v.Skipped[:min(len(v.Skipped), shownSkips)] {
		fields = append(fields, [2]string{"Not synced", s.Path + ": " + s.Reason})
	}
	if more := len(v.Skipped) - shownSkips; more > 0 {
		fields = append(fields, [2]string{"Not synced", strconv.Itoa(more) + " more"})
	}
	return fields
}

func (a *app) syncDetach() *cobra.Command {
	var purge, force bool
	cmd := &cobra.Command{
		Use:   "detach [path]",
		Short: "Stop keeping a directory and its volume alike; the files stay",
		Long: `Stop keeping a directory and its volume alike. The files stay on both sides, and so
does what s0 knows of them, for an attach later on; --purge-state forgets that, which it
refuses while something has not been sent.`,
		Example: "  s0 sync detach\n  s0 sync detach --purge-state ./project",
		Args:    wantUpTo(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := findReplica(first(args))
			if err != nil {
				return err
			}
			if err := r.Stop(cmd.Context(), force); err != nil {
				return err
			}
			unlock, err := r.Lock()
			if err != nil {
				return err
			}
			if purge {
				return a.purge(r, force, unlock)
			}
			defer unlock()
			r.Detached = true
			if err := saveAttachment(cmd.Context(), r); err != nil {
				return err
			}
			return a.done("Detached %s.", r.Root)
		},
	}
	cmd.Flags().BoolVar(&purge, "purge-state", false, "forget what both sides had, too")
	cmd.Flags().BoolVar(&force, "force", false, "also while something has not been sent, or the worker does not end")
	return cmd
}

func saveAttachment(ctx context.Context, r *worker.Replica) error {
	s, err := syncstate.Open(r.Dir, true)
	if err != nil {
		return err
	}
	defer s.Close()
	return s.Update(ctx, func(tx *syncstate.Tx) { tx.SetAttachment(r.Attachment) })
}

// purge forgets a replica, whose lock is let go of before its file is removed.
func (a *app) purge(r *worker.Replica, force bool, unlock func()) error {
	v, err := viewOf(r)
	unlock()
	if err != nil {
		return err
	}
	if (v.Pending > 0 || v.Conflicts > 0) && !force {
		return fmt.Errorf("%d changes of %s have not been sent and %d conflicts are open: --force forgets them", v.Pending, r.Root, v.Conflicts)
	}
	if err := forgetReplica(r); err != nil {
		return err
	}
	return a.done("Detached %s and forgot it.", r.Root)
}

// forgetReplica removes what is s0's of a replica.
func forgetReplica(r *worker.Replica) error {
	var unmarked error
	if t, err := tree.Open(r.Root); err == nil {
		if t.Check(r.ID) == nil {
			unmarked = t.Unmark()
		}
		t.Close()
	}
	return errors.Join(unmarked, os.RemoveAll(r.Dir))
}

// logPoll is how often a log is looked at that is followed.
const logPoll = 500 * time.Millisecond

func (a *app) syncLogs() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:     "logs [path]",
		Short:   "Show what a directory's worker has done",
		Example: "  s0 sync logs\n  s0 sync logs -f ./project",
		Args:    wantUpTo(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := findReplica(first(args))
			if err != nil {
				return err
			}
			f, err := os.Open(r.LogFile())
			if errors.Is(err, os.ErrNotExist) {
				note("Nothing has been logged yet.")
				return nil
			}
			if err != nil {
				return err
			}
			defer f.Close()
			for {
				if _, err := io.Copy(os.Stdout, f); err != nil || !follow {
					return err
				}
				select {
				case <-cmd.Context().Done():
					return nil
				case <-time.After(logPoll):
				}
			}
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is logged, until interrupted")
	return cmd
}

// syncClient asks for a client that is signed in, and keeps it for a moment.
func (a *app) syncClient() func(context.Context) (*client.Client, error) {
	const fresh = 20 * time.Second // shorter than a token is renewed before its end
	var kept *client.Client
	var at time.Time
	return func(ctx context.Context) (*client.Client, error) {
		if kept != nil && time.Since(at) < fresh {
			return kept, nil
		}
		c, err := a.session.Client(ctx)
		if err != nil {
			return nil, err
		}
		kept, at = c, time.Now()
		return c, nil
	}
}
