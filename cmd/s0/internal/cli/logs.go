package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

const (
	// rewatchPause is what passes before a watch that broke off is begun again, and
	// rewatchTime for how long that is tried.
	rewatchPause = time.Second
	rewatchTime  = time.Minute

	logPage = 1000 // lines that one question asks for
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
	cmd.MarkFlagsMutuallyExclusive("watch", "end-time")
	cmd.MarkFlagsMutuallyExclusive("watch", "limit")
	return cmd
}

// listLogs prints page after page, up to the limit if there is one.
func (a *app) listLogs(ctx context.Context, c *client.Client, id string, opts client.SandboxLogsOptions) error {
	for left := opts.Limit; ; {
		opts.Limit = logPage
		if left > 0 {
			opts.Limit = min(left, logPage)
		}
		page, err := c.ListSandboxLogs(ctx, id, opts)
		if err != nil {
			return err
		}
		for _, e := range page.Logs {
			if err := a.printLog(e); err != nil {
				return err
			}
		}
		if left -= len(page.Logs); page.NextCursor == nil || left == 0 {
			return nil
		}
		opts.Cursor = *page.NextCursor
	}
}

// watchLogs follows until it is interrupted or the sandbox has ended. A watch
// that breaks off is begun again behind its last line.
func (a *app) watchLogs(ctx context.Context, c *client.Client, id string, opts client.SandboxLogsOptions) error {
	for alive := time.Now(); ; {
		err := c.FollowSandboxLogs(ctx, id, opts, func(e client.SandboxLogEntry) error {
			opts.Cursor, alive = e.Cursor, time.Now()
			return a.printLog(e)
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case !passes(err) || time.Since(alive) > rewatchTime:
			return err
		}
		select {
		case <-time.After(rewatchPause):
		case <-ctx.Done():
			return nil
		}
	}
}

// passes tells a server that restarts from one that says no.
func passes(err error) bool {
	var answer *client.APIError
	if errors.As(err, &answer) {
		return answer.StatusCode == 502 || answer.RetryAfter > 0
	}
	return !errors.Is(err, client.ErrWatchEnded) && !errors.Is(err, syscall.EPIPE)
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
	text := fmt.Sprintf("%s %-6s %s", e.OccurredAt.Local().Format("2006-01-02T15:04:05.000"), stream, output.Plain(strings.ReplaceAll(e.Message, "\t", "    ")))
	return a.printer.PrintLine(e, output.Text(text))
}
