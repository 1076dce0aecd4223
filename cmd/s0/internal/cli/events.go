package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

func (a *app) sandboxEvents() *cobra.Command {
	var opts client.SandboxEventsOptions
	var source, eventType, outcome string
	var when period
	var watch bool
	cmd := &cobra.Command{
		Use:   "events <id>",
		Short: "Show what happened to a sandbox and in it",
		Long: `Show what happened to a sandbox, oldest first, what it sent where, and what happened
in it if it was claimed with a webhook. Events outlive their sandbox.

What a network policy would deny is seen before it does: have it enforced
audit-only for a while, and ask for network.would_deny.`,
		Example: `  s0 sandbox events ID
  s0 sandbox events ID --action process.crashed --since 1h
  s0 sandbox network -s ID update --enforcement audit-only
  s0 sandbox events ID --type network_audit --watch`,
		Args:              want("the sandbox's id"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			opts.Start, opts.End = when.from(), when.end.Time
			opts.Source, opts.EventType, opts.Outcome = client.SandboxEventSource(source), client.SandboxEventType(eventType), client.SandboxEventOutcome(outcome)
			if watch {
				return a.watchEvents(ctx, c, args[0], opts)
			}
			return a.listEvents(ctx, c, args[0], opts)
		}),
	}
	when.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&source, "source", "", "events of manager, netd or procd alone")
	flags.StringVar(&eventType, "type", "", "events of lifecycle, process, file or network_audit alone")
	flags.StringVar(&outcome, "outcome", "", "events that completed, succeeded, failed, were denied or ended in an error alone")
	flags.StringVar(&opts.Action, "action", "", "events of one kind alone, such as process.exited or network.denied")
	flags.StringVar(&opts.Cursor, "cursor", "", "events behind a cursor")
	flags.IntVar(&opts.Limit, "limit", 0, "how many at most (default all)")
	flags.BoolVarP(&watch, "watch", "w", false, "go on with what happens, until interrupted or the sandbox's end")
	complete(cmd, "source", "manager", "netd", "procd")
	complete(cmd, "type", "lifecycle", "process", "file", "network_audit")
	complete(cmd, "outcome", "completed", "succeeded", "failed", "denied", "error")
	cmd.MarkFlagsMutuallyExclusive("watch", "end-time")
	cmd.MarkFlagsMutuallyExclusive("watch", "limit")
	return cmd
}

func (a *app) listEvents(ctx context.Context, c *client.Client, id string, opts client.SandboxEventsOptions) error {
	all := client.SandboxEventList{Events: []client.SandboxEvent{}}
	err := paged(opts.Limit, logPage, func(limit int) (int, bool, error) {
		opts.Limit = limit
		page, err := c.ListSandboxEvents(ctx, id, opts)
		if err != nil {
			return 0, false, err
		}
		all.NextCursor, all.Watermark, opts.Cursor = page.NextCursor, page.Watermark, deref(page.NextCursor)
		all.Events = append(all.Events, page.Events...)
		return len(page.Events), page.NextCursor != nil, nil
	})
	if err != nil {
		return err
	}
	return printAll(a, all, all.Events, a.printEvent)
}

func (a *app) watchEvents(ctx context.Context, c *client.Client, id string, opts client.SandboxEventsOptions) error {
	return rewatch(ctx, func(alive func()) error {
		return c.FollowSandboxEvents(ctx, id, opts, func(e client.SandboxEvent) error {
			alive()
			opts.Cursor = e.Cursor
			if err := a.printEvent(e); err != nil || e.Action != "sandbox.deleted" {
				return err
			}
			return errEnded
		})
	})
}

// eventDetails are the attributes that say most of an event.
var eventDetails = []string{"command", "alias", "exit_code", "state", "event_type", "path", "old_path", "transport", "protocol", "reason", "error", "egress_bytes", "ingress_bytes", "more", "count"}

func (a *app) printEvent(e client.SandboxEvent) error {
	text := fmt.Sprintf("%s %-16s", e.OccurredAt.Local().Format(stamp), e.Action)
	if e.Resource.Type == "network" {
		text += fmt.Sprintf(" %s:%v", e.Resource.ID, e.Attributes["dest_port"])
	}
	if e.Resource.Type == "process" {
		text += " " + e.Resource.ID
	}
	for _, name := range eventDetails {
		if v, ok := e.Attributes[name]; ok {
			text += fmt.Sprintf(" %s=%v", name, v)
		}
	}
	return a.printer.PrintLine(e, output.Text(output.Plain(text)))
}
