package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
	"s0.run/cmd/s0/internal/tty"
)

// inputChunk is what one request writes to a session: the server takes 1 MiB.
const inputChunk = 512 << 10

// sessionEventPage is how many events one question asks for.
const sessionEventPage = 500

func (a *app) sessionInput(sandbox *string) *cobra.Command {
	var in sessionInput
	cmd := &cobra.Command{
		Use:   "input <session>",
		Short: "Write to what a session's command reads",
		Example: `  s0 sandbox session -s ID input SESSION --data 'print(6 * 7)
'
  s0 sandbox session -s ID input SESSION --stdin --eof < data.csv`,
		Args:              want("the session's id"),
		ValidArgsFunction: a.completeFirst(sessionWords(sandbox)),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			if !in.stdin && in.data == "" && !in.eof {
				return errors.New("say what to write: --data, --stdin or --eof")
			}
			var r io.Reader = strings.NewReader(in.data)
			if in.stdin {
				r = os.Stdin
			}
			if err := in.send(ctx, c, place{*sandbox, args[0]}, r); err != nil {
				return err
			}
			return a.done("Written to %s.", args[0])
		}),
	}
	flags := cmd.Flags()
	flags.StringVar(&in.data, "data", "", "what to write; an end of line is part of it")
	flags.BoolVar(&in.stdin, "stdin", false, "write what stdin holds")
	flags.BoolVar(&in.eof, "eof", false, "no more follows: the command reads an end of file")
	flags.StringVar(&in.attempt, "attempt", "", "write to this attempt alone")
	cmd.MarkFlagsMutuallyExclusive("data", "stdin")
	return cmd
}

// sessionInput are the flags of `session input`.
type sessionInput struct {
	data, attempt string
	stdin, eof    bool
}

// send writes all of r to one attempt: one that takes the place of the first must
// not get the middle of it.
func (in *sessionInput) send(ctx context.Context, c *client.Client, at place, r io.Reader) error {
	id, buf := rand.Text(), make([]byte, inputChunk)
	attempt := in.attempt
	for n := 0; ; n++ {
		got, err := io.ReadFull(r, buf)
		end := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !end {
			return err
		}
		if got == 0 && (!in.eof || n > 0 && !end) {
			return nil
		}
		req := client.ExecutionSessionInputRequest{InputID: fmt.Sprintf("%s-%d", id, n), DataBase64: buf[:got]}
		if end && in.eof {
			req.EOF = &in.eof
		}
		if attempt != "" {
			req.ExpectedAttemptID = &attempt
		}
		answer, err := c.WriteSessionInput(ctx, at.sandbox, at.context, req)
		if err != nil {
			return err
		}
		attempt = answer.AttemptID
		if end {
			return nil
		}
	}
}

func (a *app) sessionEvents(sandbox *string) *cobra.Command {
	var after uint64
	var limit int
	var watch bool
	cmd := &cobra.Command{
		Use:   "events <session>",
		Short: "Show what happened to a session and what its command printed",
		Long: `Show what happened to a session and what its command printed, oldest first. Every
event has a number; --after goes on behind one.`,
		Example:           "  s0 sandbox session -s ID events SESSION\n  s0 sandbox session -s ID events --watch --after 120 SESSION",
		Args:              want("the session's id"),
		ValidArgsFunction: a.completeFirst(sessionWords(sandbox)),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			at := place{*sandbox, args[0]}
			if watch {
				return a.watchSession(ctx, c, at, after)
			}
			return a.listSessionEvents(ctx, c, at, after, limit)
		}),
	}
	flags := cmd.Flags()
	flags.Uint64Var(&after, "after", 0, "events behind this number")
	flags.IntVar(&limit, "limit", 0, "how many at most (default all)")
	flags.BoolVarP(&watch, "watch", "w", false, "go on with what happens, until interrupted or the session's end")
	cmd.MarkFlagsMutuallyExclusive("watch", "limit")
	return cmd
}

func (a *app) listSessionEvents(ctx context.Context, c *client.Client, at place, after uint64, limit int) error {
	all := client.ExecutionSessionEventPage{Events: []client.ExecutionSessionEvent{}}
	err := paged(limit, sessionEventPage, func(limit int) (got int, more bool, _ error) {
		page, err := c.ListSessionEvents(ctx, at.sandbox, at.context, after, limit)
		if err != nil {
			return 0, false, err
		}
		all.Cursor, all.Events = page.Cursor, append(all.Events, page.Events...)
		if got = len(page.Events); got > 0 {
			after = uint64(page.Events[got-1].Seq)
		}
		return got, got > 0 && int64(after) < page.Cursor.Latest, nil
	})
	if err != nil {
		return err
	}
	return printAll(a, all, all.Events, a.printSessionEvent)
}

func (a *app) watchSession(ctx context.Context, c *client.Client, at place, after uint64) error {
	return rewatch(ctx, func(alive func()) error {
		err := c.FollowSessionEvents(ctx, at.sandbox, at.context, after, func(e client.ExecutionSessionEvent) error {
			alive()
			after = uint64(e.Seq)
			if err := a.printSessionEvent(e); err != nil || e.Type != "session.deleted" {
				return err
			}
			return errEnded
		})
		if err == nil {
			return io.ErrUnexpectedEOF // a server that restarts says no more either
		}
		return err
	})
}

func (a *app) printSessionEvent(e client.ExecutionSessionEvent) error {
	head := fmt.Sprintf("%s %6d %-16s", e.OccurredAt.Local().Format(stamp), e.Seq, e.Type)
	var lines []string
	switch {
	case len(e.DataBase64) > 0:
		for line := range strings.Lines(string(e.DataBase64)) {
			lines = append(lines, head+" "+string(deref(e.Stream))+"  "+output.Plain(trimLine(line)))
		}
	case e.ExitCode != nil:
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s exit_code=%d %s", head, *e.ExitCode, output.Plain(deref(e.Reason)))))
	default:
		lines = append(lines, strings.TrimSpace(head+" "+output.Plain(deref(e.Reason))))
	}
	return a.printer.PrintLine(e, output.Text(strings.Join(lines, "\n")))
}

// trimLine is a printed line without what ends it.
func trimLine(line string) string {
	return strings.ReplaceAll(strings.TrimRight(line, "\r\n"), "\t", "    ")
}

func (a *app) sessionResize(sandbox *string) *cobra.Command {
	var cols, rows uint16
	cmd := &cobra.Command{
		Use:               "resize <session>",
		Short:             "Tell a session's terminal its size",
		Example:           "  s0 sandbox session -s ID resize SESSION --cols 120 --rows 40",
		Args:              want("the session's id"),
		ValidArgsFunction: a.completeFirst(sessionWords(sandbox)),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			size := tty.GetSize(os.Stdout)
			if cols > 0 {
				size.Cols = cols
			}
			if rows > 0 {
				size.Rows = rows
			}
			req := client.ExecutionSessionTerminalResizeRequest{Cols: size.Cols, Rows: size.Rows}
			if err := c.ResizeSession(ctx, *sandbox, args[0], req); err != nil {
				return err
			}
			return a.done("The terminal has %d columns and %d rows.", size.Cols, size.Rows)
		}),
	}
	cmd.Flags().Uint16Var(&cols, "cols", 0, "columns (default your terminal's)")
	cmd.Flags().Uint16Var(&rows, "rows", 0, "rows (default your terminal's)")
	return cmd
}

func (a *app) sessionSignal(sandbox *string) *cobra.Command {
	return &cobra.Command{
		Use:               "signal <session> <signal>",
		Short:             "Signal a session's command",
		Example:           "  s0 sandbox session -s ID signal SESSION HUP",
		Args:              want("the session's id", "the signal"),
		ValidArgsFunction: a.completeSignal(sessionWords(sandbox)),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			if err := c.SignalSession(ctx, *sandbox, args[0], client.ExecutionSessionSignalRequest{Signal: args[1]}); err != nil {
				return err
			}
			return a.done("Sent %s to %s.", args[1], args[0])
		}),
	}
}

// parseCount reads a number from 0 on.
func parseCount(text string, most int64) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > most {
		return 0, fmt.Errorf("want a number from 0 to %d", most)
	}
	return n, nil
}
