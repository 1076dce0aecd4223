package cli

import (
	"context"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

func (a *app) sandboxPause() *cobra.Command {
	var filesOnly bool
	cmd := &cobra.Command{
		Use:   "pause <id>",
		Short: "Save a sandbox with everything in it and free its compute",
		Long: `Save a sandbox with its processes, memory and files, and free its compute. The
state is durable when the command returns. Any request for the sandbox wakes it
again, unless its auto_resume is off.

With --files-only processes and memory are dropped: contexts are there again, REPLs
with a new interpreter, and commands have ended.`,
		Example:           "  s0 sandbox pause ID\n  s0 sandbox pause ID --files-only",
		Args:              want("the sandbox's id"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			pause := c.PauseSandbox
			if filesOnly {
				pause = c.PauseSandboxFiles
			}
			p, err := pause(ctx, args[0])
			if err != nil {
				return err
			}
			return a.printer.Print(p, output.Fields{{"ID", p.SandboxID}, {"Status", string(p.Status)}})
		}),
	}
	cmd.Flags().BoolVar(&filesOnly, "files-only", false, "without processes and memory")
	return cmd
}

func (a *app) sandboxResume() *cobra.Command {
	return &cobra.Command{
		Use:               "resume <id>",
		Short:             "Let a paused sandbox run again where it was",
		Example:           "  s0 sandbox resume ID",
		Args:              want("the sandbox's id"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			r, err := c.ResumeSandbox(ctx, args[0])
			if err != nil {
				return err
			}
			return a.printer.Print(r, output.Fields{{"ID", r.SandboxID}, {"Status", string(r.Status)}})
		}),
	}
}
