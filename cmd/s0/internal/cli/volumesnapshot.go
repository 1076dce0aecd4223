package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

func (a *app) volumeSnapshot() *cobra.Command {
	return group("snapshot", "Keep what volumes are, go back to it",
		"  s0 volume snapshot create VOLUME -n before\n  s0 volume snapshot list VOLUME\n  s0 volume snapshot restore VOLUME SNAPSHOT",
		a.volumeSnapshotCreate(), a.volumeSnapshotList(), a.volumeSnapshotGet(), a.volumeSnapshotDelete(), a.volumeSnapshotRestore())
}

func (a *app) volumeSnapshotCreate() *cobra.Command {
	var name, description string
	var expires expiry
	cmd := &cobra.Command{
		Use:               "create <volume>",
		Short:             "Keep what a volume is now",
		Example:           "  s0 volume snapshot create VOLUME -n before -d 'before the migration'",
		Args:              want("the volume's id"),
		ValidArgsFunction: a.completeFirst(volumeWords),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			req := client.CreateVolumeSnapshotRequest{Name: name, Description: given(description), ExpiresAt: expires.at}
			s, err := c.CreateVolumeSnapshot(ctx, args[0], req)
			if err != nil {
				return err
			}
			return a.printer.Print(s, volumeSnapshotFields(s))
		}),
	}
	flags := cmd.Flags()
	flags.StringVarP(&name, "name", "n", "", "what to call it (required)")
	flags.StringVarP(&description, "description", "d", "", "what it is")
	flags.Var(&expires, "expires-at", "when it is deleted: a time, or how long from now")
	if err := cmd.MarkFlagRequired("name"); err != nil {
		panic(err) // the flag was made above
	}
	return cmd
}

func volumeSnapshotFields(s *client.VolumeSnapshot) output.Fields {
	return output.Fields{
		{"ID", s.ID}, {"Volume", s.VolumeID}, {"Name", s.Name}, {"Description", deref(s.Description)},
		{"Size", size(&s.SizeBytes)}, {"Created", since(s.CreatedAt)}, {"Expires", until(deref(s.ExpiresAt))},
	}
}

func (a *app) volumeSnapshotList() *cobra.Command {
	return &cobra.Command{
		Use:               "list <volume>",
		Short:             "List a volume's snapshots, newest first",
		Example:           "  s0 volume snapshot list VOLUME",
		Args:              want("the volume's id"),
		ValidArgsFunction: a.completeFirst(volumeWords),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			list, err := c.ListVolumeSnapshots(ctx, args[0])
			if err != nil {
				return err
			}
			rows := output.Rows{Columns: []string{"ID", "NAME~", "SIZE", "CREATED", "EXPIRES?"}, None: "No snapshots."}
			for _, s := range list {
				rows.Rows = append(rows.Rows, []string{s.ID, s.Name, size(&s.SizeBytes), since(s.CreatedAt), until(deref(s.ExpiresAt))})
			}
			return a.printer.Print(list, rows)
		}),
	}
}

func (a *app) volumeSnapshotGet() *cobra.Command {
	return &cobra.Command{
		Use:               "get <volume> <snapshot>",
		Short:             "Show a snapshot of a volume",
		Example:           "  s0 volume snapshot get VOLUME SNAPSHOT",
		Args:              want("the volume's id", "the snapshot's id"),
		ValidArgsFunction: a.completeVolumeSnapshots,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			s, err := c.GetVolumeSnapshot(ctx, args[0], args[1])
			if err != nil {
				return err
			}
			return a.printer.Print(s, volumeSnapshotFields(s))
		}),
	}
}

func (a *app) volumeSnapshotDelete() *cobra.Command {
	return &cobra.Command{
		Use:               "delete <volume> <snapshot>",
		Short:             "Delete a snapshot; volumes that began as it keep what they have",
		Example:           "  s0 volume snapshot delete VOLUME SNAPSHOT",
		Args:              want("the volume's id", "the snapshot's id"),
		ValidArgsFunction: a.completeVolumeSnapshots,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			if err := c.DeleteVolumeSnapshot(ctx, args[0], args[1]); err != nil {
				return err
			}
			return a.done("Deleted %s.", args[1])
		}),
	}
}

func (a *app) volumeSnapshotRestore() *cobra.Command {
	return &cobra.Command{
		Use:               "restore <volume> <snapshot>",
		Short:             "Make a volume what one of its snapshots is; what was written since is gone",
		Example:           "  s0 volume snapshot restore VOLUME SNAPSHOT",
		Args:              want("the volume's id", "the snapshot's id"),
		ValidArgsFunction: a.completeVolumeSnapshots,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			if err := c.RestoreVolumeSnapshot(ctx, args[0], args[1]); err != nil {
				return err
			}
			return a.done("Restored %s to %s.", args[0], args[1])
		}),
	}
}

// sandboxVolume are the mounts of a running sandbox.
func (a *app) sandboxVolume() *cobra.Command {
	return group("volume", "Volumes in a running sandbox",
		"  s0 sandbox volume mount ID VOLUME:/data\n  s0 sandbox volume status ID\n  s0 sandbox volume unmount ID VOLUME",
		a.mountVolume(), a.unmountVolume(), a.mountStatus())
}

func (a *app) mountVolume() *cobra.Command {
	return &cobra.Command{
		Use:               "mount <id> <volume>:<path>",
		Short:             "Mount a volume into a running sandbox",
		Example:           "  s0 sandbox volume mount ID VOLUME:/data",
		Args:              wantUpTo(1, "the sandbox's id"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			what := ""
			if len(args) == 2 {
				what = args[1]
			}
			volume, point, found := strings.Cut(what, ":")
			if !found || volume == "" || !strings.HasPrefix(point, "/") {
				return fmt.Errorf("%q: want VOLUME:/absolute/path", what)
			}
			m, err := c.MountVolume(ctx, args[0], volume, point)
			if err != nil {
				return err
			}
			return a.printer.Print(m, output.Fields{
				{"Sandbox", m.SandboxID}, {"Volume", m.SandboxvolumeID}, {"Path", m.MountPoint}, {"Read only", yesNo(deref(m.ReadOnly))}, {"Mount", m.MountSessionID},
			})
		}),
	}
}

func (a *app) unmountVolume() *cobra.Command {
	return &cobra.Command{
		Use:               "unmount <id> <volume>",
		Short:             "Take a volume away from a sandbox; what was written is in it",
		Example:           "  s0 sandbox volume unmount ID VOLUME",
		Args:              wantUpTo(1, "the sandbox's id"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			list, err := c.ListMounts(ctx, args[0])
			if err != nil {
				return err
			}
			for _, m := range list.Mounts {
				if len(args) == 2 && m.SandboxvolumeID != args[1] || len(args) == 1 && len(list.Mounts) != 1 {
					continue
				}
				if err := c.UnmountVolume(ctx, args[0], m.SandboxvolumeID, m.MountSessionID); err != nil {
					return err
				}
				return a.done("Unmounted %s.", m.SandboxvolumeID)
			}
			return fmt.Errorf("which one? `s0 sandbox volume status %s` lists what the sandbox has", args[0])
		}),
	}
}

func (a *app) mountStatus() *cobra.Command {
	return &cobra.Command{
		Use:               "status <id>",
		Short:             "List what a sandbox has mounted",
		Example:           "  s0 sandbox volume status ID",
		Args:              want("the sandbox's id"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			list, err := c.ListMounts(ctx, args[0])
			if err != nil {
				return err
			}
			rows := output.Rows{Columns: []string{"VOLUME", "PATH~", "STATE", "READ ONLY", "MOUNTED"}, None: "No volumes."}
			for _, m := range list.Mounts {
				rows.Rows = append(rows.Rows, []string{m.SandboxvolumeID, m.MountPoint, string(m.State), yesNo(deref(m.ReadOnly)), since(m.MountedAt)})
			}
			return a.printer.Print(list, rows)
		}),
	}
}

// volumeWords are the team's volumes.
func volumeWords(ctx context.Context, c *client.Client) (found []cobra.Completion, _ error) {
	list, err := c.ListVolumes(ctx)
	if err != nil {
		return nil, err
	}
	for _, v := range list {
		found = append(found, describeWord(v.ID, string(v.AccessMode), string(v.Backend), since(v.CreatedAt)))
	}
	return found, nil
}

// completeVolumeSnapshots completes a volume and one of its snapshots.
func (a *app) completeVolumeSnapshots(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return a.completeFrom(cmd.Context(), volumeWords)
	case 1:
		return a.completeFrom(cmd.Context(), func(ctx context.Context, c *client.Client) (found []cobra.Completion, _ error) {
			list, err := c.ListVolumeSnapshots(ctx, args[0])
			for _, s := range list {
				found = append(found, describeWord(s.ID, s.Name, since(s.CreatedAt)))
			}
			return found, err
		})
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// completeMount completes the volume of VOLUME:/path.
func (a *app) completeMount(cmd *cobra.Command, _ []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if strings.Contains(word, ":") {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	found, directive := a.completeFrom(cmd.Context(), func(ctx context.Context, c *client.Client) (found []cobra.Completion, _ error) {
		list, err := c.ListVolumes(ctx)
		for _, v := range list {
			found = append(found, describeWord(v.ID+":", string(v.AccessMode), string(v.Backend)))
		}
		return found, err
	})
	return found, directive | cobra.ShellCompDirectiveNoSpace
}

func fmtOwner(uid, gid int64) string { return fmt.Sprintf("%d:%d", uid, gid) }
