// Package cli is s0's command tree: it reads arguments, calls the API through
// one client and prints what a person or a program wants to see.
//
// Results go to stdout, everything else to stderr. Secrets are printed when
// asked for and never otherwise. State between two commands lives on the server
// and, for tokens, in package session's file.
package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
	"s0.run/cmd/s0/internal/session"
	"s0.run/cmd/s0/internal/tty"
)

// app is what all commands share.
type app struct {
	version string
	options session.Options
	format  string // what -o said

	// Set before a command runs.
	session *session.Session
	printer output.Printer
}

// Main runs s0 and returns its exit code.
func Main(args []string, version string) int {
	signal.Ignore(syscall.SIGPIPE) // a reader that has gone is an error like others: we tidy up
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{version: version}
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var remote exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &remote):
		return int(remote)
	case errors.Is(err, syscall.EPIPE): // whoever reads us has seen enough
		return 1
	}
	fmt.Fprint(os.Stderr, explain(err, a.session))
	return 1
}

// exitError ends s0 with the exit code of a command in a sandbox; that command
// has said itself what went wrong.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "s0",
		Short: "Sandboxes for AI agents",
		Long: `s0 claims sandboxes from a server and works in them.

Flags go before environment variables, those before the profile in the
configuration file:

  server  --api-url, ` + session.EnvURL + `, the profile's, ` + session.DefaultURL + `
  token   --token, ` + session.EnvToken + `, the profile's`,
		Example: `  s0 auth login
  s0 sandbox create
  s0 sandbox run ID 'print(6 * 7)'
  s0 sandbox exec ID -- uname -a`,
		Version:           a.version,
		Args:              cobra.ArbitraryArgs,
		RunE:              groupRun,
		SilenceUsage:      true,
		SilenceErrors:     true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return a.prepare(cmd) },
	}
	flags := root.PersistentFlags()
	flags.StringVar(&a.options.APIURL, "api-url", "", "the server, such as "+session.DefaultURL)
	flags.StringVarP(&a.options.ConfigPath, "config", "c", "", "configuration file (default ~/.s0/config.yaml)")
	flags.StringVarP(&a.format, "output", "o", "", "how to print results: table, json or yaml (default table)")
	flags.StringVarP(&a.options.Profile, "profile", "p", "", "profile in the configuration file")
	flags.StringVar(&a.options.Token, "token", "", "API key or access token")
	complete(root, "output", "table", "json", "yaml")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError(cmd, err) })
	root.AddCommand(a.auth(), a.user(), a.team(), a.apikey(), a.template(), a.sandbox(), a.volume(), a.sync(), a.credential(), a.quota(), a.usage(), a.audit(), a.admin(), completion(), a.versionCommand())
	return root
}

// prepare is done before a command runs. Groups only show their help.
func (a *app) prepare(cmd *cobra.Command) error {
	if cmd.HasSubCommands() {
		return nil
	}
	// cobra would check these later, and say no more than what is wrong.
	if err := errors.Join(cmd.ValidateRequiredFlags(), cmd.ValidateFlagGroups()); err != nil {
		return usageError(cmd, err)
	}
	return a.open()
}

// open resolves the configuration.
func (a *app) open() error {
	a.options.Getenv = os.Getenv
	a.options.UserAgent = "s0-cli/" + a.version
	s, err := session.Open(a.options)
	if err != nil {
		return err
	}
	a.session = s
	format := a.format
	if format == "" {
		format = s.Format()
	}
	f, err := output.ParseFormat(format)
	if err != nil {
		return err
	}
	a.printer = output.Printer{W: os.Stdout, Notes: os.Stderr, Format: f, Width: tty.Width(os.Stdout)}
	return nil
}

// A runner does a command's work with a client that is signed in.
type runner func(ctx context.Context, c *client.Client, args []string) error

// run makes a command of a runner.
func (a *app) run(do runner) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.session.Client(cmd.Context())
		if err != nil {
			return err
		}
		return do(cmd.Context(), c, args)
	}
}

// runUser is run for what needs a user and not an API key.
func (a *app) runUser(do runner) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.session.UserClient(cmd.Context())
		if err != nil {
			return err
		}
		return do(cmd.Context(), c, args)
	}
}

// done confirms something that has no result of its own.
func (a *app) done(format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	return a.printer.Print(client.Message{Message: text}, output.Text(text))
}

// note tells something beside the result, in one line.
func note(format string, args ...any) {
	fmt.Fprintln(os.Stderr, output.Plain(fmt.Sprintf(format, args...)))
}

// group makes a command that only holds others.
func group(use, short, example string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Example: example, Args: cobra.ArbitraryArgs, RunE: groupRun}
	cmd.AddCommand(commands...)
	return cmd
}

// groupRun shows a group's help, or says which command of it there is not.
func groupRun(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	err := fmt.Errorf("there is no command %q", cmd.CommandPath()+" "+args[0])
	cmd.SuggestionsMinimumDistance = max(1, len(args[0])/3)
	if alike := cmd.SuggestionsFor(args[0]); len(alike) > 0 {
		err = fmt.Errorf("%w; did you mean %s?", err, strings.Join(alike, " or "))
	}
	return usageError(cmd, err)
}

func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

func since(t time.Time) string { return output.Since(t, time.Now()) }
func until(t time.Time) string { return output.Until(t, time.Now()) }
