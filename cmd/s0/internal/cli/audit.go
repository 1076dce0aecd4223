package cli

import (
	"context"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

// auditPage is how many records are asked for at once.
const auditPage = 500

func (a *app) audit() *cobra.Command {
	return group("audit", "Who changed what", "  s0 audit list --since 1h", a.auditList())
}

func (a *app) auditList() *cobra.Command {
	var opts client.AuditOptions
	var outcome string
	var when period
	var everywhere bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List what was changed in the team, newest first",
		Long: `List the calls that changed the team's sandboxes, templates, keys and members, or
were refused: who called, from where, and how it ended. It needs a team admin.`,
		Example: "  s0 audit list --since 24h\n  s0 audit list --resource ID\n  s0 audit list --operation deleteAPIKey --outcome refused\n  s0 audit list --all-teams",
		Args:    want(),
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			opts.Start, opts.End, opts.Outcome = when.from(), when.end.Time, client.AuditRecordOutcome(outcome)
			list := c.ListAuditRecords
			if everywhere {
				list = c.ListAllAuditRecords
			}
			return a.printAudit(ctx, list, opts)
		}),
	}
	when.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&opts.UserID, "user", "", "records of one user alone")
	flags.StringVar(&opts.Operation, "operation", "", "records of one operation alone, such as createSandbox")
	flags.StringVar(&opts.Resource, "resource", "", "records of one resource alone, such as a sandbox's id")
	flags.StringVar(&outcome, "outcome", "", "records that succeeded, were refused or failed alone")
	flags.IntVar(&opts.Limit, "limit", 100, "how many at most; 0 is all")
	flags.BoolVar(&everywhere, "all-teams", false, "records of every team, and of none; for system admins")
	complete(cmd, "outcome", "succeeded", "refused", "failed", "begun")
	return cmd
}

func (a *app) printAudit(ctx context.Context, list func(context.Context, client.AuditOptions) (*client.AuditRecordList, error), opts client.AuditOptions) error {
	all := client.AuditRecordList{Records: []client.AuditRecord{}}
	err := paged(opts.Limit, auditPage, func(limit int) (int, bool, error) {
		opts.Limit = limit
		page, err := list(ctx, opts)
		if err != nil {
			return 0, false, err
		}
		all.NextCursor, opts.Cursor = page.NextCursor, deref(page.NextCursor)
		all.Records = append(all.Records, page.Records...)
		return len(page.Records), page.NextCursor != nil, nil
	})
	if err != nil {
		return err
	}
	rows := output.Rows{Columns: []string{"AGE", "OPERATION", "RESOURCE", "OUTCOME", "USER", "FROM"}}
	for _, r := range all.Records {
		ended := string(r.Outcome)
		if r.Code != "" {
			ended += " (" + r.Code + ")"
		}
		rows.Rows = append(rows.Rows, []string{since(r.At), r.Operation, r.Resource, ended, deref(r.UserID), r.Address})
	}
	return a.printer.Print(all, rows)
}
