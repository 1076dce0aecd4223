package cli

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

func (a *app) apikey() *cobra.Command {
	return group("apikey", "API keys for programs", "  s0 apikey create --name ci --role developer --expires-in 90d --raw",
		a.apikeyList(), a.apikeyCreate(), a.apikeyDeactivate(), a.apikeyDelete())
}

func (a *app) apikeyList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the team's API keys",
		Example: "  s0 apikey list",
		Args:    want(),
		RunE: a.runUser(func(ctx context.Context, c *client.Client, _ []string) error {
			keys, err := c.ListAPIKeys(ctx)
			if err != nil {
				return err
			}
			rows := output.Rows{Columns: []string{"ID", "NAME~", "SCOPE?", "ROLES~", "ACTIVE", "USED?", "EXPIRES?"}}
			for _, k := range keys.APIKeys {
				rows.Rows = append(rows.Rows, []string{k.ID, k.Name, string(k.Scope), joinRoles(k.Roles), yesNo(k.IsActive), since(deref(k.LastUsedAt)), until(k.ExpiresAt)})
			}
			return a.printer.Print(keys, rows)
		}),
	}
}

func (a *app) apikeyCreate() *cobra.Command {
	var name, scope, expiresIn string
	var roles []string
	var raw bool
	cmd := &cobra.Command{
		Use:   "create --name <name>",
		Short: "Create an API key",
		Long: `Create an API key.

The server shows the key this once. It is printed when asked for: alone with
--raw, among the rest with -o json or -o yaml.`,
		Example: `  export SANDBOX0_TOKEN="$(s0 apikey create --name laptop --role admin --expires-in 30d --raw)"
  s0 apikey create --name ci --role developer -o json`,
		Args: want(),
		RunE: a.runUser(func(ctx context.Context, c *client.Client, _ []string) error {
			if !raw && a.printer.Format == output.Table {
				return errors.New("the key is shown only once: say how with --raw (the key alone) or -o json")
			}
			key, err := c.CreateAPIKey(ctx, apikeyRequest(name, scope, expiresIn, roles))
			if err != nil {
				return err
			}
			if raw {
				return output.Printer{W: a.printer.W, Format: output.Table}.Print(nil, output.Text(key.Key))
			}
			return a.printer.Print(key, nil)
		}),
	}
	flags := cmd.Flags()
	flags.StringVar(&name, "name", "", "what the key is for")
	flags.StringVar(&scope, "scope", "", "team or platform (default team)")
	flags.StringArrayVar(&roles, "role", nil, "a role that the key has; may be repeated: admin, developer, builder, viewer (default developer)")
	flags.StringVar(&expiresIn, "expires-in", "", "30d, 90d, 180d, 365d or never (default 90d)")
	flags.BoolVar(&raw, "raw", false, "print only the key")
	cmd.MarkFlagRequired("name")
	complete(cmd, "scope", "team", "platform")
	complete(cmd, "role", "admin", "developer", "builder", "viewer")
	complete(cmd, "expires-in", "30d", "90d", "180d", "365d", "never")
	return cmd
}

func apikeyRequest(name, scope, expiresIn string, roles []string) client.CreateAPIKeyRequest {
	req := client.CreateAPIKeyRequest{Name: name}
	for _, r := range roles {
		req.Roles = append(req.Roles, client.Role(r))
	}
	if scope != "" {
		s := client.APIKeyScope(scope)
		req.Scope = &s
	}
	if expiresIn != "" {
		e := client.CreateAPIKeyRequestExpiresIn(expiresIn)
		req.ExpiresIn = &e
	}
	return req
}

func (a *app) apikeyDeactivate() *cobra.Command {
	return &cobra.Command{
		Use:               "deactivate <id>",
		Short:             "Make an API key useless but keep its record",
		Example:           "  s0 apikey deactivate 1b2c…",
		Args:              want("the key's id"),
		ValidArgsFunction: a.completeFirst(apikeyWords),
		RunE: a.runUser(func(ctx context.Context, c *client.Client, args []string) error {
			if err := c.DeactivateAPIKey(ctx, args[0]); err != nil {
				return err
			}
			return a.done("API key %s no longer works.", args[0])
		}),
	}
}

func (a *app) apikeyDelete() *cobra.Command {
	return &cobra.Command{
		Use:               "delete <id>",
		Short:             "Delete an API key",
		Example:           "  s0 apikey delete 1b2c…",
		Args:              want("the key's id"),
		ValidArgsFunction: a.completeFirst(apikeyWords),
		RunE: a.runUser(func(ctx context.Context, c *client.Client, args []string) error {
			if err := c.DeleteAPIKey(ctx, args[0]); err != nil {
				return err
			}
			return a.done("API key %s is deleted.", args[0])
		}),
	}
}

func apikeyWords(ctx context.Context, c *client.Client) (found []cobra.Completion, _ error) {
	keys, err := c.ListAPIKeys(ctx)
	if err != nil {
		return nil, err
	}
	for _, k := range keys.APIKeys {
		found = append(found, describeWord(k.ID, k.Name, joinRoles(k.Roles)))
	}
	return found, nil
}

func joinRoles(roles []client.Role) string {
	words := make([]string, len(roles))
	for i, r := range roles {
		words[i] = string(r)
	}
	return strings.Join(words, ",")
}
