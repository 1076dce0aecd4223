package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
	"s0.run/cmd/s0/internal/tty"
)

// forgetTimeout bounds tidying up behind a command that has ended.
const forgetTimeout = 5 * time.Second

// execution is one command in a sandbox.
type execution struct {
	interactive, terminal, noWait, stream bool
	cwd                                   string
	env                                   []string
	ttl                                   seconds
}

func (a *app) sandboxExec() *cobra.Command {
	var e execution
	cmd := &cobra.Command{
		Use:   "exec <id> [flags] -- <command> [args...]",
		Short: "Run a command in a sandbox and exit with its exit code",
		Long: `Run a command in a sandbox, show what it prints as it comes, and exit with its
exit code. No shell reads the command: use sh -c for one.

Interrupting s0 interrupts the command; interrupting it again ends s0. With -it every
key goes to the command. Where the connection breaks s0 attaches again, for a
minute, and goes on where it was; Ctrl-C gives that up. Input from a file or another
command can't be gone on with: nobody knows how much of it has arrived.`,
		Example: `  s0 sandbox exec ID -- uname -a
  s0 sandbox exec ID -- sh -c 'echo $HOME; ls | wc -l'
  s0 sandbox exec -it ID -- bash
  tar c src | s0 sandbox exec -i ID -- tar x
  s0 sandbox exec --no-wait ID -- python3 server.py`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usageError(cmd, errors.New("want a sandbox's id and, after --, a command"))
			}
			return nil
		},
		ValidArgsFunction: a.completeSandboxes,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			return a.exec(ctx, c, args[0], args[1:], e)
		}),
	}
	flags := cmd.Flags()
	flags.SetInterspersed(true)
	flags.BoolVarP(&e.interactive, "interactive", "i", false, "pass stdin on to the command")
	flags.BoolVarP(&e.terminal, "tty", "t", false, "give the command a terminal")
	flags.BoolVar(&e.stream, "stream", true, "show output as it comes; --stream=false shows it at the end, within 30 s")
	flags.BoolVar(&e.noWait, "no-wait", false, "start the command and print its context's id")
	flags.StringVar(&e.cwd, "cwd", "", "directory to run in (default /workspace)")
	flags.StringArrayVar(&e.env, "env", nil, "NAME=VALUE, or NAME to pass on our own; may be repeated")
	flags.Var(&e.ttl, "ttl", "end the command after this time, such as 10m")
	return cmd
}

func (e *execution) request(command []string) (client.CreateContextRequest, error) {
	env, err := parseEnv(e.env)
	if err != nil {
		return client.CreateContextRequest{}, err
	}
	req := client.CreateContextRequest{
		Type: client.ContextTypeCMD, CMD: &client.CMDRequest{Command: command}, EnvVars: env, TTLSec: e.ttl.value,
	}
	if e.cwd != "" {
		req.Cwd = &e.cwd
	}
	if e.terminal {
		size := client.PTYSize(tty.GetSize(os.Stdout))
		req.PTYSize = &size
	}
	return req, nil
}

func (a *app) exec(ctx context.Context, c *client.Client, sandbox string, command []string, e execution) error {
	req, err := e.request(command)
	if err != nil {
		return err
	}
	switch {
	case e.noWait:
		started, err := c.CreateContext(ctx, sandbox, req)
		if err != nil {
			return err
		}
		return a.printer.Print(started, output.Text(started.ID))
	case !e.stream || a.printer.Format != output.Table:
		return a.execAtOnce(ctx, c, sandbox, req)
	}
	started, err := c.CreateContext(ctx, sandbox, req)
	if err != nil {
		return err
	}
	return a.attach(ctx, c, place{sandbox, started.ID}, e)
}

// execAtOnce runs a command in one request.
func (a *app) execAtOnce(ctx context.Context, c *client.Client, sandbox string, req client.CreateContextRequest) error {
	wait := true
	req.WaitUntilDone = &wait
	result, err := c.CreateContext(ctx, sandbox, req)
	if err != nil {
		return err
	}
	defer forget(ctx, c, place{sandbox, result.ID})
	if a.printer.Format != output.Table {
		err = a.printer.Print(result, nil)
	} else {
		err = printResult(result)
	}
	if err != nil {
		return err
	}
	return exitCode(deref(result.ExitCode))
}

// printResult prints what a command printed. A terminal has no stdout of its own.
func printResult(r *client.ContextResponse) error {
	printed := deref(r.Stdout)
	if r.Stdout == nil {
		printed = deref(r.OutputRaw)
	}
	_, err := io.WriteString(os.Stdout, printed)
	_, err2 := io.WriteString(os.Stderr, deref(r.Stderr))
	if missing := deref(r.TruncatedBytes); missing > 0 && deref(r.ExitCode) == 0 {
		return &client.OutputLostError{Bytes: missing}
	}
	return errors.Join(err, err2)
}

// forget deletes a context that nobody will ask for again. The sandbox's end
// does the same, so that failing is no news.
func forget(ctx context.Context, c *client.Client, at place) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), forgetTimeout)
	defer cancel()
	c.DeleteContext(ctx, at.sandbox, at.context)
}

func exitCode(code int) error {
	if code == 0 {
		return nil
	}
	return exitError(code)
}
