package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

func (a *app) execSession() *cobra.Command {
	var sandbox string
	return a.inSandbox(&sandbox, group("session", "Supervised commands in a sandbox, which are started again when they end",
		"  s0 sandbox session -s ID create --name web --restart always -- python3 -m http.server\n  s0 sandbox session -s ID list\n  s0 sandbox session -s ID events --watch SESSION",
		a.sessionList(&sandbox), a.sessionGet(&sandbox), a.sessionCreate(&sandbox), a.sessionUpdate(&sandbox), a.sessionDelete(&sandbox),
		a.sessionState(&sandbox, "start", "Run a session's command", client.ExecutionSessionDesiredStateRunning),
		a.sessionState(&sandbox, "stop", "End a session's command; it stays ended until it is started", client.ExecutionSessionDesiredStateStopped),
		a.sessionAttempt(&sandbox), a.sessionInput(&sandbox), a.sessionEvents(&sandbox), a.sessionResize(&sandbox), a.sessionSignal(&sandbox)))
}

func (a *app) sessionList(sandbox *string) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List a sandbox's sessions",
		Example: "  s0 sandbox session -s ID list",
		Args:    want(),
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			list, err := c.ListSessions(ctx, *sandbox)
			if err != nil {
				return err
			}
			rows := output.Rows{
				Columns: []string{"ID", "NAME~", "COMMAND~", "PHASE", "EXIT", "RESTARTS?", "CREATED?"},
				None:    "No sessions. `s0 sandbox session create` starts one.",
			}
			for _, x := range list.Sessions {
				rows.Rows = append(rows.Rows, []string{
					x.ID, deref(x.Spec.Name), strings.Join(x.Spec.Command, " "), string(x.Phase), number(deref(x.Attempt).ExitCode),
					fmt.Sprint(x.RestartCount), since(x.CreatedAt),
				})
			}
			return a.printer.Print(list, rows)
		}),
	}
}

// printSession prints what a command made of a session.
func (a *app) printSession(x *client.ExecutionSession, err error) error {
	if err != nil {
		return err
	}
	attempt, lifecycle := deref(x.Attempt), deref(x.Spec.Lifecycle)
	return a.printer.Print(x, output.Fields{
		{"ID", x.ID}, {"Name", deref(x.Spec.Name)}, {"Command", strings.Join(x.Spec.Command, " ")}, {"Directory", deref(x.Spec.Cwd)},
		{"Phase", string(x.Phase)}, {"Wanted", string(deref(lifecycle.DesiredState))},
		{"Restart", string(deref(deref(lifecycle.Restart).Policy))}, {"Restarts", fmt.Sprint(x.RestartCount)},
		{"Attempt", attempt.ID}, {"PID", number(attempt.Pid)}, {"Exit code", number(attempt.ExitCode)}, {"Reason", deref(attempt.Reason)},
		{"Events", fmt.Sprintf("%d to %d", x.Cursor.Earliest, x.Cursor.Latest)}, {"Created", since(x.CreatedAt)}, {"Updated", since(x.UpdatedAt)},
	})
}

func (a *app) sessionGet(sandbox *string) *cobra.Command {
	return &cobra.Command{
		Use:               "get <session>",
		Short:             "Show a session",
		Example:           "  s0 sandbox session -s ID get SESSION\n  s0 sandbox session -s ID get SESSION -o yaml",
		Args:              want("the session's id"),
		ValidArgsFunction: a.completeFirst(sessionWords(sandbox)),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			return a.printSession(c.GetSession(ctx, *sandbox, args[0]))
		}),
	}
}

func (a *app) sessionCreate(sandbox *string) *cobra.Command {
	var f sessionFlags
	cmd := &cobra.Command{
		Use:   "create [-f <spec>] [-- <command> [args...]]",
		Short: "Start a session",
		Long: `Start a session: a command that is supervised, and started again as --restart says.

A spec file holds what the flags can't say; flags go before it:

  command: [python3, -m, http.server]
  lifecycle: {restart: {policy: always, max_restarts: 5}, stop_grace_period_seconds: 30}
  readiness: {type: output, output: "Serving HTTP"}`,
		Example: `  s0 sandbox session -s ID create --name web --restart always -- python3 -m http.server
  s0 sandbox session -s ID create --tty -- bash
  s0 sandbox session -s ID create -f session.yaml`,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			spec, err := readConfig[client.ExecutionSessionSpec](f.file)
			if err == nil {
				err = f.overlay(&spec, args)
			}
			if err != nil {
				return err
			}
			if len(spec.Command) == 0 {
				return errors.New("say what to run: a command after --, or in a file with -f")
			}
			return a.printSession(c.CreateSession(ctx, *sandbox, "", spec))
		}),
	}
	f.register(cmd)
	return cmd
}

func (a *app) sessionUpdate(sandbox *string) *cobra.Command {
	var f sessionFlags
	cmd := &cobra.Command{
		Use:   "update <session> [-f <spec>] [-- <command> [args...]]",
		Short: "Change a session; without a file, what no flag names stays",
		Long: `Change a session. A file replaces its spec, flags change what they name. The command
is started again if that is what it takes.`,
		Example:           "  s0 sandbox session -s ID update SESSION --restart never\n  s0 sandbox session -s ID update SESSION -f session.yaml",
		ValidArgsFunction: a.completeFirst(sessionWords(sandbox)),
		Args:              wantSome("the session's id"),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			spec, err := readConfig[client.ExecutionSessionSpec](f.file)
			if err == nil && f.file == "" {
				var now *client.ExecutionSession
				if now, err = c.GetSession(ctx, *sandbox, args[0]); err == nil {
					spec = now.Spec
				}
			}
			if err == nil {
				err = f.overlay(&spec, args[1:])
			}
			if err != nil {
				return err
			}
			return a.printSession(c.UpdateSession(ctx, *sandbox, args[0], spec))
		}),
	}
	f.register(cmd)
	return cmd
}

// sessionFlags are what create and update share.
type sessionFlags struct {
	file, name, cwd, restart      string
	env                           []string
	terminal, stopped             optionalBool
	maxRestarts                   optionalInt
	grace, idleTimeout, lifeLimit seconds
}

func (f *sessionFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVarP(&f.file, "file", "f", "", "spec in YAML or JSON, - for stdin; flags go before it")
	flags.StringVar(&f.name, "name", "", "name for people")
	flags.StringVar(&f.cwd, "cwd", "", "directory to run in (default /workspace)")
	flags.StringArrayVar(&f.env, "env", nil, "NAME=VALUE, or NAME to pass on our own; may be repeated")
	flags.VarP(&f.terminal, "tty", "t", "give the command a terminal")
	flags.Lookup("tty").NoOptDefVal = "true"
	flags.StringVar(&f.restart, "restart", "", "when to start it again: never, on_failure or always")
	flags.Var(&f.maxRestarts, "max-restarts", "give up after so many restarts; 0 is never")
	flags.Var(&f.grace, "stop-grace", "time between TERM and KILL")
	flags.Var(&f.idleTimeout, "idle-timeout", "stop it when nothing went in or came out for this time; 0 is never")
	flags.Var(&f.lifeLimit, "max-lifetime", "stop it after this time, restarts included; 0 is never")
	flags.Var(&f.stopped, "stopped", "do not run it before `s0 sandbox session start`")
	flags.Lookup("stopped").NoOptDefVal = "true"
	complete(cmd, "restart", "never", "on_failure", "always")
}

// overlay puts the flags over a spec.
func (f *sessionFlags) overlay(spec *client.ExecutionSessionSpec, command []string) error {
	env, err := parseEnv(f.env)
	if err != nil {
		return err
	}
	if len(command) > 0 {
		spec.Command = command
	}
	for name, value := range env {
		if spec.Env == nil {
			spec.Env = map[string]string{}
		}
		spec.Env[name] = value
	}
	if f.name != "" {
		spec.Name = &f.name
	}
	if f.cwd != "" {
		spec.Cwd = &f.cwd
	}
	if f.terminal.value != nil {
		f.overlayIO(made(&spec.Io))
	}
	f.overlayLifecycle(&spec.Lifecycle)
	return nil
}

func (f *sessionFlags) overlayIO(io *client.ExecutionSessionIOSpec) {
	mode := client.ExecutionSessionIOModePipes
	if *f.terminal.value {
		mode = client.ExecutionSessionIOModePTY
	} else {
		io.Terminal = nil // which pipes have not
	}
	io.Mode = &mode
}

func (f *sessionFlags) overlayLifecycle(l **client.ExecutionSessionLifecycleSpec) {
	if f.restart != "" {
		policy := client.ExecutionSessionRestartPolicy(f.restart)
		made(&made(l).Restart).Policy = &policy
	}
	if f.maxRestarts.value != nil {
		made(&made(l).Restart).MaxRestarts = f.maxRestarts.value
	}
	if f.stopped.value != nil {
		state := client.ExecutionSessionDesiredStateRunning
		if *f.stopped.value {
			state = client.ExecutionSessionDesiredStateStopped
		}
		made(l).DesiredState = &state
	}
	if f.grace.value != nil {
		made(l).StopGracePeriodSeconds = new(int64(*f.grace.value))
	}
	if f.idleTimeout.value != nil {
		made(l).IdleTimeoutSeconds = new(int64(*f.idleTimeout.value))
	}
	if f.lifeLimit.value != nil {
		made(l).MaxLifetimeSeconds = new(int64(*f.lifeLimit.value))
	}
}

// made is what p points to, made if there is none.
func made[T any](p **T) *T {
	if *p == nil {
		*p = new(T)
	}
	return *p
}

func (a *app) sessionDelete(sandbox *string) *cobra.Command {
	return &cobra.Command{
		Use:               "delete <session>",
		Short:             "End a session with everything that it runs, and forget it",
		Example:           "  s0 sandbox session -s ID delete SESSION",
		Args:              want("the session's id"),
		ValidArgsFunction: a.completeFirst(sessionWords(sandbox)),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			if err := c.DeleteSession(ctx, *sandbox, args[0]); err != nil {
				return err
			}
			return a.done("Deleted %s.", args[0])
		}),
	}
}

func (a *app) sessionState(sandbox *string, verb, short string, state client.ExecutionSessionDesiredState) *cobra.Command {
	return &cobra.Command{
		Use:               verb + " <session>",
		Short:             short,
		Example:           "  s0 sandbox session -s ID " + verb + " SESSION",
		Args:              want("the session's id"),
		ValidArgsFunction: a.completeFirst(sessionWords(sandbox)),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			return a.printSession(c.SetSessionState(ctx, *sandbox, args[0], state))
		}),
	}
}

func (a *app) sessionAttempt(sandbox *string) *cobra.Command {
	var replace bool
	cmd := &cobra.Command{
		Use:               "attempt <session>",
		Short:             "Run a session's command anew, now",
		Example:           "  s0 sandbox session -s ID attempt SESSION\n  s0 sandbox session -s ID attempt --replace SESSION",
		Args:              want("the session's id"),
		ValidArgsFunction: a.completeFirst(sessionWords(sandbox)),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			return a.printSession(c.CreateSessionAttempt(ctx, *sandbox, args[0], replace))
		}),
	}
	cmd.Flags().BoolVar(&replace, "replace", false, "end the one that runs first; without it that is a conflict")
	return cmd
}

// optionalInt is a flag for a number from 0 on, or not given.
type optionalInt struct{ value *int64 }

func (n *optionalInt) String() string {
	if n.value == nil {
		return ""
	}
	return fmt.Sprint(*n.value)
}

func (n *optionalInt) Type() string { return "int" }

func (n *optionalInt) Set(text string) error {
	v, err := parseCount(text, math.MaxInt32)
	if err == nil {
		n.value = &v
	}
	return err
}
