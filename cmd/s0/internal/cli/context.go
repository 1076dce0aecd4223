package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

// inSandbox makes a group of commands about things in one sandbox, which -s names.
func (a *app) inSandbox(sandbox *string, cmd *cobra.Command) *cobra.Command {
	cmd.PersistentFlags().StringVarP(sandbox, "sandbox", "s", "", "the sandbox's id (required)")
	completeFlag(cmd, "sandbox", func(cmd *cobra.Command, _ []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return a.completeSandboxes(cmd, nil, word)
	})
	for _, sub := range cmd.Commands() {
		run := sub.RunE
		sub.RunE = func(cmd *cobra.Command, args []string) error {
			if *sandbox == "" {
				return usageError(cmd, errors.New("the sandbox is missing: name it with -s"))
			}
			return run(cmd, args)
		}
	}
	return cmd
}

func (a *app) context() *cobra.Command {
	var sandbox string
	return a.inSandbox(&sandbox, group("context", "Processes in a sandbox: REPLs and commands",
		"  s0 sandbox context -s ID list\n  s0 sandbox context -s ID create --type repl --alias node",
		a.contextList(&sandbox), a.contextGet(&sandbox), a.contextCreate(&sandbox), a.contextExec(&sandbox),
		a.contextSignal(&sandbox), a.contextRestart(&sandbox), a.contextStats(&sandbox), a.contextDelete(&sandbox)))
}

func (a *app) contextList(sandbox *string) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List a sandbox's contexts",
		Example: "  s0 sandbox context -s ID list",
		Args:    want(),
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			list, err := c.ListContexts(ctx, *sandbox)
			if err != nil {
				return err
			}
			rows := output.Rows{
				Columns: []string{"ID", "TYPE", "WHAT~", "STATE", "EXIT", "CREATED?"},
				None:    "No contexts: nothing was started in this sandbox.",
			}
			for _, x := range list.Contexts {
				rows.Rows = append(rows.Rows, []string{x.ID, string(x.Type), contextWhat(x), contextState(x), contextExit(x), since(x.CreatedAt)})
			}
			return a.printer.Print(list, rows)
		}),
	}
}

func (a *app) contextGet(sandbox *string) *cobra.Command {
	return &cobra.Command{
		Use:               "get <context>",
		Short:             "Show a context; `s0 sandbox logs` shows what it printed",
		Example:           "  s0 sandbox context -s ID get ctx-1a2b3c4d",
		Args:              want("the context's id"),
		ValidArgsFunction: a.completeFirst(contextWords(sandbox)),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			x, err := c.GetContext(ctx, *sandbox, args[0])
			if err != nil {
				return err
			}
			return a.printer.Print(x, contextFields(*x))
		}),
	}
}

// newContext are the flags of `context create`.
type newContext struct {
	kind, alias, cwd, input string
	command, env            []string
	wait                    bool
	idle, ttl               seconds
}

func (a *app) contextCreate(sandbox *string) *cobra.Command {
	var n newContext
	cmd := &cobra.Command{
		Use:   "create [-- <command> [args...]]",
		Short: "Start a REPL or a command",
		Example: `  s0 sandbox context -s ID create --type repl --alias python
  s0 sandbox context -s ID create --type cmd -- python3 server.py
  s0 sandbox context -s ID create --type cmd --command sleep --command 60 --wait`,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			n.command = append(n.command, args...)
			req, err := n.request()
			if err != nil {
				return err
			}
			x, err := c.CreateContext(ctx, *sandbox, req)
			if err != nil {
				return err
			}
			return a.printer.Print(x, contextFields(*x))
		}),
	}
	flags := cmd.Flags()
	flags.StringVar(&n.kind, "type", "", "repl or cmd (default cmd if there is a command)")
	flags.StringVar(&n.alias, "alias", "", "the REPL: python, node, bash, sqlite, … (default python)")
	flags.StringVar(&n.input, "input", "", "what the REPL reads first")
	flags.StringArrayVar(&n.command, "command", nil, "the command, a word each time; or write it after --")
	flags.StringVar(&n.cwd, "cwd", "", "directory to run in (default /workspace)")
	flags.StringArrayVar(&n.env, "env", nil, "NAME=VALUE, or NAME to pass on our own; may be repeated")
	flags.BoolVar(&n.wait, "wait", false, "wait until the command has ended, at most 30 s")
	flags.Var(&n.idle, "idle-timeout", "end it when nobody used it for this time")
	flags.Var(&n.ttl, "ttl", "end it after this time")
	complete(cmd, "type", "repl", "cmd")
	complete(cmd, "alias", "python", "node", "bash", "zsh", "ruby", "lua", "php", "r", "perl", "redis-cli", "sqlite")
	return cmd
}

func (n *newContext) request() (client.CreateContextRequest, error) {
	env, err := parseEnv(n.env)
	if err != nil {
		return client.CreateContextRequest{}, err
	}
	req := client.CreateContextRequest{EnvVars: env, IdleTimeoutSec: n.idle.value, TTLSec: n.ttl.value}
	if n.cwd != "" {
		req.Cwd = &n.cwd
	}
	if n.wait {
		req.WaitUntilDone = &n.wait
	}
	switch kind := n.kind; {
	case kind == "cmd" || (kind == "" && len(n.command) > 0):
		req.Type, req.CMD = client.ContextTypeCMD, &client.CMDRequest{Command: n.command}
		if len(n.command) == 0 {
			return req, errors.New("a context of type cmd needs a command, after --")
		}
	case kind == "repl":
		req.Type, req.REPL = client.ContextTypeREPL, replRequest(n.alias)
		if n.input != "" {
			req.REPL.Input = &n.input
		}
		if len(n.command) > 0 {
			return req, errors.New("a context of type repl takes no command: choose the interpreter with --alias")
		}
	case kind == "":
		return req, errors.New("say what to start: --type repl, or a command after --")
	default:
		return req, fmt.Errorf("context type %q: want --type repl or --type cmd", kind)
	}
	return req, nil
}

func replRequest(alias string) *client.REPLRequest {
	if alias == "" {
		return &client.REPLRequest{}
	}
	return &client.REPLRequest{Alias: &alias}
}

func (a *app) contextExec(sandbox *string) *cobra.Command {
	return &cobra.Command{
		Use:               "exec <context> <input>",
		Short:             "Write a line to a context and show what it prints",
		Example:           "  s0 sandbox context -s ID exec ctx-1a2b3c4d 'print(6 * 7)'",
		Args:              want("the context's id", "the input"),
		ValidArgsFunction: a.completeFirst(contextWords(sandbox)),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			return a.execContext(ctx, c, *sandbox, args[0], args[1])
		}),
	}
}

func (a *app) contextSignal(sandbox *string) *cobra.Command {
	return &cobra.Command{
		Use:               "signal <context> <signal>",
		Short:             "Signal a context's process",
		Example:           "  s0 sandbox context -s ID signal ctx-1a2b3c4d INT",
		Args:              want("the context's id", "the signal"),
		ValidArgsFunction: a.completeSignal(contextWords(sandbox)),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			if err := c.SignalContext(ctx, *sandbox, args[0], args[1]); err != nil {
				return err
			}
			return a.done("Sent %s to %s.", args[1], args[0])
		}),
	}
}

func (a *app) contextRestart(sandbox *string) *cobra.Command {
	return &cobra.Command{
		Use:               "restart <context>",
		Short:             "Start a context's process anew, under the same id",
		Example:           "  s0 sandbox context -s ID restart ctx-1a2b3c4d",
		Args:              want("the context's id"),
		ValidArgsFunction: a.completeFirst(contextWords(sandbox)),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			x, err := c.RestartContext(ctx, *sandbox, args[0])
			if err != nil {
				return err
			}
			return a.printer.Print(x, contextFields(*x))
		}),
	}
}

func (a *app) contextStats(sandbox *string) *cobra.Command {
	return &cobra.Command{
		Use:               "stats <context>",
		Short:             "Show what a context's processes use",
		Example:           "  s0 sandbox context -s ID stats ctx-1a2b3c4d",
		Args:              want("the context's id"),
		ValidArgsFunction: a.completeFirst(contextWords(sandbox)),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			stats, err := c.ContextStats(ctx, *sandbox, args[0])
			if err != nil {
				return err
			}
			u := deref(stats.Usage)
			return a.printer.Print(stats, output.Fields{
				{"Context", args[0]}, {"Processes", number(u.Processes)}, {"Memory", size(u.MemoryRss)}, {"CPU time", span(u.CPUNanos)},
			})
		}),
	}
}

func (a *app) contextDelete(sandbox *string) *cobra.Command {
	return &cobra.Command{
		Use:               "delete <context>",
		Short:             "End a context's processes and forget it",
		Example:           "  s0 sandbox context -s ID delete ctx-1a2b3c4d",
		Args:              want("the context's id"),
		ValidArgsFunction: a.completeFirst(contextWords(sandbox)),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			if err := c.DeleteContext(ctx, *sandbox, args[0]); err != nil {
				return err
			}
			return a.done("Deleted %s.", args[0])
		}),
	}
}

func contextFields(x client.ContextResponse) output.Fields {
	return output.Fields{
		{"ID", x.ID}, {"Type", string(x.Type)}, {"Runs", contextWhat(x)}, {"Directory", deref(x.Cwd)},
		{"State", contextState(x)}, {"Exit code", contextExit(x)}, {"Created", since(x.CreatedAt)},
	}
}

func contextWhat(x client.ContextResponse) string {
	if x.Type == client.ContextTypeREPL {
		return deref(x.Alias)
	}
	return strings.Join(x.Command, " ")
}

func contextState(x client.ContextResponse) string {
	switch {
	case x.State != nil:
		return string(*x.State)
	case x.Paused:
		return string(client.ContextStatePaused)
	case x.Running:
		return string(client.ContextStateRunning)
	}
	return string(client.ContextStateStopped)
}

func contextExit(x client.ContextResponse) string { return number(x.ExitCode) }

func number(n *int) string {
	if n == nil {
		return ""
	}
	return fmt.Sprint(*n)
}

func size(n *int64) string {
	if n == nil {
		return ""
	}
	return output.Bytes(*n)
}

func span(nanos *int64) string {
	if nanos == nil {
		return ""
	}
	return time.Duration(*nanos).Round(time.Millisecond).String()
}
