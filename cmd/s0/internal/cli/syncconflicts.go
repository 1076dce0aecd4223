package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

// shownConflicts bounds how many conflicts are listed.
const shownConflicts = 500

func (a *app) syncConflicts() *cobra.Command {
	var path string
	cmd := group("conflicts", "Files that both sides have changed",
		"  s0 sync conflicts list\n  s0 sync conflicts show CONFLICT\n  s0 sync conflicts mark CONFLICT",
		a.conflictsList(&path), a.conflictsShow(&path), a.conflictsMark(&path))
	cmd.PersistentFlags().StringVar(&path, "path", "", "the attached directory (default the one you are in, or the only one)")
	return cmd
}

// openConflicts are those of the volume that a directory is attached to.
func openConflicts(ctx context.Context, c *client.Client, path string, status client.VolumeSyncConflictStatus) (volume string, _ []client.VolumeSyncConflict, _ error) {
	r, err := findReplica(path)
	if err != nil {
		return "", nil, err
	}
	list, err := c.ListVolumeSyncConflicts(ctx, r.VolumeID, status, shownConflicts)
	if err != nil {
		return "", nil, err
	}
	return r.VolumeID, list.Conflicts, nil
}

func (a *app) conflictsList(path *string) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the conflicts that are open, newest first",
		Example: "  s0 sync conflicts list\n  s0 sync conflicts list --all",
		Args:    want(),
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			status := client.VolumeSyncConflictStatus("open")
			if all {
				status = ""
			}
			_, list, err := openConflicts(ctx, c, *path, status)
			if err != nil {
				return err
			}
			rows := output.Rows{Columns: []string{"ID", "PATH~", "YOURS IS AT~", "REASON?", "STATUS", "CREATED"}, None: "No conflicts."}
			for _, k := range list {
				rows.Rows = append(rows.Rows, []string{k.ID, k.Path, deref(k.ArtifactPath), k.Reason, string(k.Status), since(k.CreatedAt)})
			}
			return a.printer.Print(list, rows)
		}),
	}
	cmd.Flags().BoolVar(&all, "all", false, "also those that are marked")
	return cmd
}

// chosen is the conflict with an id; without one the only one that is open.
func chosen(list []client.VolumeSyncConflict, id string) (*client.VolumeSyncConflict, error) {
	open := 0
	var only *client.VolumeSyncConflict
	for i, k := range list {
		if k.ID == id {
			return &list[i], nil
		}
		if k.Status == "open" {
			open++
			only = &list[i]
		}
	}
	switch {
	case id != "":
		return nil, fmt.Errorf("there is no conflict %s", id)
	case open == 0:
		return nil, fmt.Errorf("there are no open conflicts")
	case open > 1:
		return nil, fmt.Errorf("which one? `s0 sync conflicts list` shows %d", open)
	}
	return only, nil
}

func conflictFields(k *client.VolumeSyncConflict) output.Fields {
	return output.Fields{
		{"ID", k.ID}, {"Path", k.Path}, {"Change", string(k.EventType)}, {"Reason", k.Reason}, {"Yours is at", deref(k.ArtifactPath)},
		{"Replica", k.ReplicaID}, {"Status", string(k.Status)}, {"Note", deref(k.Note)}, {"Created", since(k.CreatedAt)},
	}
}

func (a *app) conflictsShow(path *string) *cobra.Command {
	return &cobra.Command{
		Use:     "show [conflict]",
		Short:   "Show a conflict; without an id the only one",
		Example: "  s0 sync conflicts show\n  s0 sync conflicts show CONFLICT",
		Args:    wantUpTo(1),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			_, list, err := openConflicts(ctx, c, *path, "")
			if err != nil {
				return err
			}
			k, err := chosen(list, first(args))
			if err != nil {
				return err
			}
			return a.printer.Print(k, conflictFields(k))
		}),
	}
}

func (a *app) conflictsMark(path *string) *cobra.Command {
	var ignore bool
	var text string
	cmd := &cobra.Command{
		Use:   "mark [conflict]",
		Short: "Mark a conflict as resolved; without an id the only one",
		Long: `Mark a conflict as resolved, once the file is what it is to be: both contents are in
the directory, yours under the conflict's name. When no conflict is open any more, what
changed here is sent again.`,
		Example: "  s0 sync conflicts mark\n  s0 sync conflicts mark CONFLICT --ignore",
		Args:    wantUpTo(1),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			volume, list, err := openConflicts(ctx, c, *path, "open")
			if err != nil {
				return err
			}
			k, err := chosen(list, first(args))
			if err != nil {
				return err
			}
			k, err = c.UpdateVolumeSyncConflict(ctx, volume, k.ID, client.UpdateVolumeSyncConflictRequest{Status: conflictStatus(ignore), Note: given(text)})
			if err != nil {
				return err
			}
			return a.printer.Print(k, conflictFields(k))
		}),
	}
	cmd.Flags().BoolVar(&ignore, "ignore", false, "as one that nobody will resolve")
	cmd.Flags().StringVar(&text, "note", "", "what to remember of it")
	return cmd
}

// conflictStatus is what a conflict is marked as.
func conflictStatus(ignore bool) client.UpdateVolumeSyncConflictRequestStatus {
	if ignore {
		return "ignored"
	}
	return "resolved"
}
