package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

func (a *app) filesWatch(at filesOf) *cobra.Command {
	var recursive bool
	cmd := &cobra.Command{
		Use:   "watch [path]",
		Short: "Tell what changes in a directory, until interrupted",
		Long: `Watch tells what changes in a directory, a line for each event, until it is
interrupted. A directory that does not exist is made. After an "invalidate" look
again: events below its path are missing.`,
		Example:           "  s0 sandbox files -s ID watch\n  s0 sandbox files -s ID watch --recursive src",
		Args:              wantUpTo(1),
		ValidArgsFunction: a.completeRemote(at, 0, 0),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			dir := "."
			if len(args) == 1 {
				dir = args[0]
			}
			w, err := at(c).Watch(ctx)
			if err != nil {
				return err
			}
			defer w.Close()
			if err := w.Subscribe(dir, recursive); err != nil {
				return err
			}
			return a.follow(ctx, w)
		}),
	}
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "everything below, too")
	return cmd
}

// follow prints the events of the one watch until it ends.
func (a *app) follow(ctx context.Context, w *client.FileWatch) error {
	for {
		m, err := w.Next()
		if ctx.Err() != nil || errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch m.Type {
		case client.FileWatchServerMessageTypeSubscribed:
			note("Watching %s.", output.Plain(deref(m.Path)))
		case client.FileWatchServerMessageTypeEvent:
			if err := a.printer.PrintLine(m, output.Text(eventText(m))); err != nil {
				return err
			}
		case client.FileWatchServerMessageTypeUnsubscribed:
			return errors.New("the directory has gone")
		case client.FileWatchServerMessageTypeError:
			return errors.New(deref(m.Error))
		}
	}
}

func eventText(m client.FileWatchServerMessage) string {
	text := fmt.Sprintf("%-10s %s", deref(m.Event), output.Plain(deref(m.Path)))
	switch {
	case m.OldPath != nil:
		text += " (was " + output.Plain(*m.OldPath) + ")"
	case m.Reason != nil:
		text += " (" + string(*m.Reason) + ")"
	}
	return text
}
