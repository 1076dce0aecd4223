package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

func (a *app) sandboxSnapshot() *cobra.Command {
	return group("snapshot", "Keep what sandboxes have written, begin with it, go back to it",
		"  s0 sandbox snapshot create ID -n before\n  s0 sandbox create --snapshot-id SNAPSHOT\n  s0 sandbox pause ID && s0 sandbox snapshot restore ID SNAPSHOT",
		a.snapshotCreate(), a.snapshotList(), a.snapshotGet(), a.snapshotDelete(), a.snapshotRestore())
}

// expiry is a flag for a time to come.
type expiry struct{ at *time.Time }

func (e *expiry) String() string {
	if e.at == nil {
		return ""
	}
	return e.at.Format(time.RFC3339)
}

func (e *expiry) Type() string { return "time" }

// Set implements pflag.Value.
func (e *expiry) Set(text string) error {
	at, err := time.Parse(time.RFC3339, text)
	if d, bad := time.ParseDuration(text); bad == nil {
		at, err = time.Now().Add(d), nil
	}
	if err != nil {
		return fmt.Errorf("%q: want a time such as 2026-12-31T23:59:59Z or 24h", text)
	}
	e.at = &at
	return nil
}

func (a *app) snapshotCreate() *cobra.Command {
	var name, description string
	var expires expiry
	cmd := &cobra.Command{
		Use:   "create <id>",
		Short: "Keep what a running or paused sandbox has written",
		Long: `Keep what a running or paused sandbox has written to its root filesystem, /tmp
included; processes and memory are not kept. A sandbox that runs goes on. The
snapshot is durable when the command returns, and may outlive its sandbox.`,
		Example:           "  s0 sandbox snapshot create ID\n  s0 sandbox snapshot create ID -n before --expires-at 24h",
		Args:              want("the sandbox's id"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			req := client.CreateSandboxRootFSSnapshotRequest{ExpiresAt: expires.at}
			if name != "" {
				req.Name = &name
			}
			if description != "" {
				req.Description = &description
			}
			s, err := c.CreateSandboxSnapshot(ctx, args[0], req)
			if err != nil {
				return err
			}
			return a.printer.Print(s, snapshotFields(s))
		}),
	}
	flags := cmd.Flags()
	flags.StringVarP(&name, "name", "n", "", "what to call it")
	flags.StringVarP(&description, "description", "d", "", "what it is")
	flags.Var(&expires, "expires-at", "when it is deleted: a time, or how long from now")
	return cmd
}

func (a *app) snapshotList() *cobra.Command {
	return &cobra.Command{
		Use:               "list <id>",
		Short:             "List a sandbox's snapshots, newest first",
		Example:           "  s0 sandbox snapshot list ID",
		Args:              want("the sandbox's id"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			list, err := c.ListSandboxSnapshots(ctx, args[0])
			if err != nil {
				return err
			}
			rows := output.Rows{Columns: []string{"ID", "NAME~", "SIZE", "CREATED", "EXPIRES?"}, None: "No snapshots."}
			for _, s := range list.Snapshots {
				rows.Rows = append(rows.Rows, []string{s.ID, deref(s.Name), size(&s.SizeBytes), since(s.CreatedAt), until(deref(s.ExpiresAt))})
			}
			return a.printer.Print(list, rows)
		}),
	}
}

func (a *app) snapshotGet() *cobra.Command {
	return &cobra.Command{
		Use:     "get <snapshot>",
		Short:   "Show a snapshot",
		Example: "  s0 sandbox snapshot get SNAPSHOT",
		Args:    want("the snapshot's id"),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			s, err := c.GetSandboxSnapshot(ctx, args[0])
			if err != nil {
				return err
			}
			return a.printer.Print(s, snapshotFields(s))
		}),
	}
}

func snapshotFields(s *client.SandboxRootFSSnapshot) output.Fields {
	return output.Fields{
		{"ID", s.ID}, {"Sandbox", s.SandboxID}, {"Template", s.TemplateID}, {"Parent", deref(s.ParentID)}, {"Name", deref(s.Name)},
		{"Description", deref(s.Description)}, {"Size", size(&s.SizeBytes)}, {"Created", since(s.CreatedAt)}, {"Expires", until(deref(s.ExpiresAt))},
	}
}

func (a *app) snapshotDelete() *cobra.Command {
	return &cobra.Command{
		Use:     "delete <snapshot>",
		Short:   "Delete a snapshot; sandboxes that began with it go on",
		Example: "  s0 sandbox snapshot delete SNAPSHOT",
		Args:    want("the snapshot's id"),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			if err := c.DeleteSandboxSnapshot(ctx, args[0]); err != nil {
				return err
			}
			return a.done("Deleted %s.", args[0])
		}),
	}
}

func (a *app) snapshotRestore() *cobra.Command {
	return &cobra.Command{
		Use:   "restore <id> <snapshot>",
		Short: "Make a paused sandbox's files what a snapshot has kept",
		Long: `Make a paused sandbox's files what a snapshot has kept. What it has written since,
its processes and its memory are gone; its contexts are there when it is resumed.`,
		Example:           "  s0 sandbox pause ID\n  s0 sandbox snapshot restore ID SNAPSHOT\n  s0 sandbox resume ID",
		Args:              want("the sandbox's id", "the snapshot's id"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			r, err := c.RestoreSandboxRootFS(ctx, args[0], args[1])
			if err != nil {
				return err
			}
			return a.printer.Print(r, output.Fields{{"ID", r.SandboxID}, {"Snapshot", r.SnapshotID}, {"Status", string(r.Status)}})
		}),
	}
}
