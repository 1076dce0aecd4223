package cli

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

func (a *app) quota() *cobra.Command {
	return group("quota", "What the team may use", "  s0 quota list", a.quotaList(), a.quotaGet())
}

func (a *app) quotaList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List what the team may use and uses",
		Example: "  s0 quota list\n  s0 quota list -o json",
		Args:    want(),
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			list, err := c.ListQuotas(ctx)
			if err != nil {
				return err
			}
			rows := output.Rows{Columns: []string{"DIMENSION", "LIMIT", "USED", "LEFT", "UNIT", "FROM~"}}
			for _, q := range list {
				rows.Rows = append(rows.Rows, []string{q.Dimension, limitText(q), numberText(q.Current), numberText(q.Remaining), q.Unit, sourceText(q.Source)})
			}
			return a.printer.Print(list, rows)
		}),
	}
}

func (a *app) quotaGet() *cobra.Command {
	return &cobra.Command{
		Use:     "get <dimension>",
		Short:   "Show what the team may use of one dimension",
		Example: "  s0 quota get active_sandboxes",
		Args:    want("the dimension"),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			q, err := c.GetQuota(ctx, args[0])
			if err != nil {
				return err
			}
			return a.printQuota(q)
		}),
	}
}

func (a *app) printQuota(q *client.TeamQuota) error {
	return a.printer.Print(q, output.Fields{
		{"Team", q.TeamID}, {"Dimension", q.Dimension}, {"Limit", limitText(*q)}, {"Burst", optionalText(q.BurstValue)},
		{"Used", numberText(q.Current)}, {"Left", optionalText(q.Remaining)}, {"Unit", q.Unit}, {"From", sourceText(q.Source)},
	})
}

// limitText says of a rate in which time, too.
func limitText(q client.TeamQuota) string {
	switch {
	case q.LimitValue == nil:
		return "none"
	case q.Kind != client.TeamQuotaKindRate:
		return numberText(q.LimitValue)
	case q.IntervalMs == nil:
		return numberText(q.LimitValue) + "/month"
	}
	return numberText(q.LimitValue) + "/" + (time.Duration(*q.IntervalMs) * time.Millisecond).String()
}

// numberText shows what is not known as a dash.
func numberText(n *int64) string {
	if n == nil {
		return "-"
	}
	return strconv.FormatInt(*n, 10)
}

func optionalText(n *int64) string {
	if n == nil {
		return ""
	}
	return numberText(n)
}

func sourceText(s client.TeamQuotaSource) string {
	switch s {
	case client.TeamQuotaSourceTeamOverride:
		return "team"
	case client.TeamQuotaSourceRegionDefault:
		return "default"
	}
	return "-"
}

func (a *app) adminQuota() *cobra.Command {
	return group("quota", "What teams may use", "  s0 admin quota set TEAM active_sandboxes 100", a.quotaSet(), a.quotaUnset())
}

func (a *app) quotaSet() *cobra.Command {
	var every time.Duration
	var burst int64
	cmd := &cobra.Command{
		Use:   "set <team> <dimension> <limit>|none",
		Short: "Limit a team",
		Long: `Limit a team. "none" lifts the limit, whatever the default is.

Traffic is a rate: bytes in a month, or in the time that --every says.`,
		Example: `  s0 admin quota set TEAM active_sandboxes 100
  s0 admin quota set TEAM memory_mib none
  s0 admin quota set TEAM egress 1000000 --every 1s`,
		Args: want("the team's id", "the dimension", "the limit"),
		RunE: func(cmd *cobra.Command, args []string) error {
			limit, err := quotaRequest(args[2], every, burst, cmd.Flags().Changed("burst"))
			if err != nil {
				return usageError(cmd, err)
			}
			return a.run(func(ctx context.Context, c *client.Client, args []string) error {
				q, err := c.SetTeamQuota(ctx, args[0], args[1], limit)
				if err != nil {
					return err
				}
				return a.printQuota(q)
			})(cmd, args)
		},
	}
	cmd.Flags().DurationVar(&every, "every", 0, "the time in which a rate counts (default a month)")
	cmd.Flags().Int64Var(&burst, "burst", 0, "how much of a rate may come at once")
	return cmd
}

func quotaRequest(limit string, every time.Duration, burst int64, withBurst bool) (client.SetQuotaRequest, error) {
	var req client.SetQuotaRequest
	if limit == "none" {
		req.Unlimited = new(true)
	} else {
		n, err := strconv.ParseInt(limit, 10, 64)
		if err != nil || n < 0 {
			return req, fmt.Errorf("limit %q: want a whole number or none", limit)
		}
		req.LimitValue = &n
	}
	if every != 0 {
		req.IntervalMs = new(every.Milliseconds())
	}
	if withBurst {
		req.BurstValue = &burst
	}
	return req, nil
}

func (a *app) quotaUnset() *cobra.Command {
	return &cobra.Command{
		Use:     "unset <team> <dimension>",
		Short:   "Let the default limit a team again",
		Example: "  s0 admin quota unset TEAM active_sandboxes",
		Args:    want("the team's id", "the dimension"),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			q, err := c.UnsetTeamQuota(ctx, args[0], args[1])
			if err != nil {
				return err
			}
			return a.printQuota(q)
		}),
	}
}
