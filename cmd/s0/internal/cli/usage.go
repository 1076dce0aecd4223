package cli

import (
	"context"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

func (a *app) usage() *cobra.Command {
	var q client.UsageQuery
	cmd := &cobra.Command{
		Use:   "usage",
		Short: "What the team has used",
		Long: `What the team has used, sandbox by sandbox and hour by hour, in the order in
which the hours were closed. An hour is closed when it is over, and never changes.`,
		Example: `  s0 usage
  s0 usage --type sandbox.runtime_mib_milliseconds --limit 1000 -o json`,
		Args: want(),
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			page, err := c.ListUsageWindows(ctx, q)
			if err != nil {
				return err
			}
			rows := output.Rows{Columns: []string{"HOUR", "SANDBOX", "TYPE~", "VALUE", "UNIT"}}
			for _, w := range page.Windows {
				rows.Rows = append(rows.Rows, []string{
					w.WindowStart.UTC().Format(time.RFC3339), w.SubjectID, w.WindowType, strconv.FormatInt(w.Value, 10), w.Unit,
				})
			}
			if err := a.printer.Print(page, rows); err != nil {
				return err
			}
			if a.printer.Format == output.Table && len(page.Windows) == q.Limit {
				note("There may be more: --cursor %s", page.NextCursor)
			}
			return nil
		}),
	}
	flags := cmd.Flags()
	flags.StringVar(&q.Type, "type", "", "only this type of window")
	flags.IntVar(&q.Limit, "limit", 100, "how many windows, 1 to 1000")
	flags.StringVar(&q.Cursor, "cursor", "", "where the last page ended")
	complete(cmd, "type", "sandbox.runtime_mib_milliseconds", "sandbox.ingress_bytes", "sandbox.egress_bytes", "sandbox.rootfs_byte_hours")
	return cmd
}
