package cli

import (
	"context"
	"io"
	"os"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
	"s0.run/cmd/s0/internal/transcript"
)

func (a *app) sandboxRun() *cobra.Command {
	var alias, contextID string
	cmd := &cobra.Command{
		Use:   "run <id> <input>",
		Short: "Run code in a sandbox's REPL, which remembers what came before",
		Long: `Run code in a sandbox's REPL and show what it prints.

The first run starts the REPL of the alias, later ones use it: variables stay.
The input - is read from stdin.`,
		Example: `  s0 sandbox run ID 'x = 41'
  s0 sandbox run ID 'print(x + 1)'
  s0 sandbox run ID --alias node '[1, 2, 3].map(n => n * n)'
  s0 sandbox run ID - < script.py`,
		Args:              want("the sandbox's id", "the input"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			input := args[1]
			if input == "-" {
				b, err := readAll("-")
				if err != nil {
					return err
				}
				input = string(b)
			}
			repl, err := findREPL(ctx, c, args[0], alias, contextID)
			if err != nil {
				return err
			}
			return a.execContext(ctx, c, args[0], repl.ID, transcript.Program(deref(repl.Alias), input))
		}),
	}
	cmd.Flags().StringVar(&alias, "alias", "python", "the REPL: python, node, bash, sqlite, …")
	cmd.Flags().StringVar(&contextID, "context-id", "", "a context to run it in, instead of the alias's")
	a.completeContextFlag(cmd)
	complete(cmd, "alias", "python", "node", "bash", "zsh", "ruby", "lua", "php", "r", "perl", "redis-cli", "sqlite")
	return cmd
}

// findREPL returns the context with an id or, without one, the oldest that runs
// the alias. It starts a REPL if there is none.
func findREPL(ctx context.Context, c *client.Client, sandbox, alias, id string) (*client.ContextResponse, error) {
	if id != "" {
		return c.GetContext(ctx, sandbox, id)
	}
	list, err := c.ListContexts(ctx, sandbox)
	if err != nil {
		return nil, err
	}
	var found *client.ContextResponse
	for _, x := range list.Contexts {
		usable := x.Type == client.ContextTypeREPL && deref(x.Alias) == canonical(alias) && (x.Running || x.Paused)
		if usable && (found == nil || x.CreatedAt.Before(found.CreatedAt)) {
			found = &x
		}
	}
	if found != nil {
		return found, nil
	}
	return c.CreateContext(ctx, sandbox, client.CreateContextRequest{Type: client.ContextTypeREPL, REPL: replRequest(alias)})
}

// canonical is the name under which the server lists an alias.
func canonical(alias string) string {
	switch alias {
	case "":
		return "python"
	case "python3":
		return "python"
	case "javascript", "nodejs":
		return "node"
	case "rb":
		return "ruby"
	case "R":
		return "r"
	case "pl":
		return "perl"
	}
	return alias
}

// execContext runs input in a context and shows what it printed.
func (a *app) execContext(ctx context.Context, c *client.Client, sandbox, contextID, input string) error {
	result, err := c.ExecContext(ctx, sandbox, contextID, input)
	if err != nil {
		return err
	}
	if a.printer.Format != output.Table {
		return a.printer.Print(result, nil)
	}
	noteTruncated(result.TruncatedBytes)
	_, err = io.WriteString(os.Stdout, transcript.Clean(result.OutputRaw, input))
	return err
}

func noteTruncated(n *int64) {
	if deref(n) > 0 {
		note("[%d bytes at the beginning of the output are missing]", *n)
	}
}
