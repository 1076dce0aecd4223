package cli

import (
	"context"
	"crypto/rand"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

func (a *app) sandboxFork() *cobra.Command {
	var ttl, hardTTL seconds
	var memory optionalBool
	count := 1
	cmd := &cobra.Command{
		Use:   "fork <id>",
		Short: "Make paused sandboxes that are what this one is now",
		Long: `Make paused sandboxes that are what this one is now: with its files and its
config, and an id of their own. They run when they are resumed, by a request or by
"s0 sandbox resume".

A running sandbox goes on. With --memory its processes are in the children, too:
it stands still for a moment, and what was attached to it attaches again.`,
		Example: `  s0 sandbox fork ID
  s0 sandbox fork ID --memory --count 4
  CHILD=$(s0 sandbox fork ID -o json | jq -r .sandbox.id)`,
		Args:              want("the sandbox's id"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			req := client.ForkRequest{Config: &client.ForkConfig{TTL: ttl.value, HardTTL: hardTTL.value, Memory: memory.value}, Count: &count}
			f, err := c.ForkSandboxOnce(ctx, args[0], rand.Text(), req)
			if err != nil {
				return err
			}
			rows := output.Rows{Columns: []string{"ID", "TEMPLATE~", "STATUS", "CREATED"}}
			children := f.Sandboxes
			if len(children) == 0 {
				children = []client.Sandbox{f.Sandbox}
			}
			for _, sb := range children {
				rows.Rows = append(rows.Rows, []string{sb.ID, sb.TemplateID, string(sb.Status), since(sb.CreatedAt)})
			}
			return a.printer.Print(f, rows)
		}),
	}
	flags := cmd.Flags()
	flags.Var(&ttl, "ttl", "pause the children so long after they are resumed, such as 15m; 0 is never")
	flags.Var(&hardTTL, "hard-ttl", "delete the children so long after they are resumed first, such as 24h; 0 is never")
	flags.Var(&memory, "memory", "with processes and memory (true) or the files alone (false); by default what a paused sandbox was saved with, of a running one the files")
	flags.Lookup("memory").NoOptDefVal = "true"
	flags.IntVar(&count, "count", 1, "how many children, 1 to 16")
	return cmd
}
