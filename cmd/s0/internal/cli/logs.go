package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

// period is the flags for a range of time.
type period struct {
	since      seconds
	start, end moment
}

func (s *period) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.Var(&s.since, "since", "from this long ago, such as 15m")
	flags.Var(&s.start, "start-time", "from this time on, such as 2026-01-31T12:00:00Z")
	flags.Var(&s.end, "end-time", "before this time")
	cmd.MarkFlagsMutuallyExclusive("since", "start-time")
}

func (s *period) from() time.Time {
	if s.since.value != nil {
		return time.Now().Add(-time.Duration(*s.since.value) * time.Second)
	}
	return s.start.Time
}

// moment is a flag for a time.
type moment struct{ time.Time }

func (m *moment) String() string {
	if m.IsZero() {
		return ""
	}
	return m.Format(time.RFC3339Nano)
}

func (m *moment) Type() string { return "time" }

func (m *moment) Set(text string) (err error) {
	if m.Time, err = time.Parse(time.RFC3339Nano, text); err != nil {
		return errors.New("want a time such as 2026-01-31T12:00:00Z")
	}
	return nil
}

func (a *app) sandboxLogs() *cobra.Command {
	var opts client.SandboxLogsOptions
	var stream string
	var when period
	var watch bool
	cmd := &cobra.Command{
		Use:   "logs <id>",
		Short: "Show what a sandbox's processes printed",
		Long: `Show what a sandbox's processes printed, oldest first. A sandbox keeps the newest
4 MiB of it, for as long as it lives; where lines are missing, a note says so.`,
		Example:           "  s0 sandbox logs ID\n  s0 sandbox logs ID --since 5m --stream stderr\n  s0 sandbox logs ID --watch",
		Args:              want("the sandbox's id"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			opts.Start, opts.End, opts.Stream = when.from(), when.end.Time, client.SandboxLogStream(stream)
			if watch {
				return a.watchLogs(ctx, c, args[0], opts)
			}
			return a.listLogs(ctx, c, args[0], opts)
		}),
	}
	when.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&opts.ContextID, "context-id", "", "lines of one context alone")
	flags.StringVar(&stream, "stream", "", "lines of stdout, stderr or pty alone")
	flags.StringVar(&opts.Cursor, "cursor", "", "lines behind a cursor")
	flags.IntVar(&opts.Limit, "limit", 0, "how many at most (default all)")
	flags.BoolVarP(&watch, "watch", "w", false, "go on with what is printed, until interrupted")
	complete(cmd, "stream", "stdout", "stderr", "pty")
	a.completeContextFlag(cmd)
	cmd.MarkFlagsMutuallyExclusive("watch", "end-time")
	cmd.MarkFlagsMutuallyExclusive("watch", "limit")
	return cmd
}

func (a *app) listLogs(ctx context.Context, c *client.Client, id string, opts client.SandboxLogsOptions) error {
	all := client.SandboxLogList{Logs: []client.SandboxLogEntry{}}
	err := paged(opts.Limit, logPage, func(limit int) (int, bool, error) {
		opts.Limit = limit
		page, err := c.ListSandboxLogs(ctx, id, opts)
		if err != nil {
			return 0, false, err
		}
		all.NextCursor, all.Watermark, opts.Cursor = page.NextCursor, page.Watermark, deref(page.NextCursor)
		all.Logs = append(all.Logs, page.Logs...)
		return len(page.Logs), page.NextCursor != nil, nil
	})
	if err != nil {
		return err
	}
	return printAll(a, all, all.Logs, a.printLog)
}

func (a *app) watchLogs(ctx context.Context, c *client.Client, id string, opts client.SandboxLogsOptions) error {
	return rewatch(ctx, func(alive func()) error {
		return c.FollowSandboxLogs(ctx, id, opts, func(e client.SandboxLogEntry) error {
			alive()
			opts.Cursor = e.Cursor
			return a.printLog(e)
		})
	})
}

func (a *app) printLog(e client.SandboxLogEntry) error {
	for _, lack := range [...][2]string{{"dropped_lines", "lines"}, {"lost_bytes", "bytes"}} {
		if n, ok := e.Attributes[lack[0]].(float64); ok && a.printer.Format == output.Table {
			note("%.0f %s are missing here.", n, lack[1])
		}
	}
	stream := ""
	if e.Stream != nil {
		stream = string(*e.Stream)
	}
	text := fmt.Sprintf("%s %-6s %s", e.OccurredAt.Local().Format(stamp), stream, output.Plain(trimLine(e.Message)))
	return a.printer.PrintLine(e, output.Text(text))
}
