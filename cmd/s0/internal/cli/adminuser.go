package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

func (a *app) adminUser() *cobra.Command {
	return group("user", "The users of the server", "  s0 admin user list --query ada\n  s0 admin user update 1b2c… --disabled", a.adminUserList(), a.adminUserUpdate())
}

func (a *app) adminUserList() *cobra.Command {
	var options client.ListUsersOptions
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List users, newest first",
		Example: "  s0 admin user list --query @example.com",
		Args:    want(),
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			list, err := c.ListUsers(ctx, options)
			if err != nil {
				return err
			}
			rows := output.Rows{Columns: []string{"ID", "EMAIL~", "NAME?~", "ADMIN", "DISABLED", "CREATED?"}}
			for _, u := range list.Users {
				rows.Rows = append(rows.Rows, []string{u.ID, u.Email, u.Name, yesNo(u.IsAdmin), yesNo(u.Disabled), since(u.CreatedAt)})
			}
			return a.printer.Print(list, rows)
		}),
	}
	flags := cmd.Flags()
	flags.StringVar(&options.Query, "query", "", "only whose email address or name has this in it")
	flags.IntVar(&options.Limit, "limit", 0, "how many at most, up to 200 (default 50)")
	flags.IntVar(&options.Offset, "offset", 0, "how many to skip")
	return cmd
}

func (a *app) adminUserUpdate() *cobra.Command {
	var disabled, admin bool
	cmd := &cobra.Command{
		Use:   "update <user>",
		Short: "Disable a user, or make one an admin of the server",
		Long: `Disable a user, or make one an admin of the server; --disabled=false and
--admin=false undo that. A disabled user is signed out everywhere, and API keys
that he made do not work.`,
		Example: "  s0 admin user update 1b2c… --disabled\n  s0 admin user update 1b2c… --admin=false",
		Args:    want("the user's id"),
	}
	flags := cmd.Flags()
	flags.BoolVar(&disabled, "disabled", false, "whether the user is kept out")
	flags.BoolVar(&admin, "admin", false, "whether the user is an admin of the server")
	cmd.MarkFlagsOneRequired("disabled", "admin")
	cmd.RunE = a.run(func(ctx context.Context, c *client.Client, args []string) error {
		var req client.UserRightsRequest
		if flags.Changed("disabled") {
			req.Disabled = &disabled
		}
		if flags.Changed("admin") {
			req.IsAdmin = &admin
		}
		u, err := c.UpdateUserRights(ctx, args[0], req)
		if err != nil {
			return err
		}
		return a.printer.Print(u, output.Fields{{"ID", u.ID}, {"Email", u.Email}, {"Name", u.Name}, {"Admin", yesNo(u.IsAdmin)}, {"Disabled", yesNo(u.Disabled)}})
	})
	return cmd
}

func unixTime(seconds int64) time.Time { return time.Unix(seconds, 0) }
