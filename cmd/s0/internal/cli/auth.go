package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

func (a *app) auth() *cobra.Command {
	return group("auth", "Sign in and out", "  s0 auth login", a.authLogin(), a.authLogout())
}

func (a *app) authLogout() *cobra.Command {
	return &cobra.Command{
		Use:     "logout",
		Short:   "Revoke the profile's tokens and forget them",
		Example: "  s0 auth logout",
		Args:    want(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.session.SignOut(cmd.Context()); err != nil {
				return err
			}
			return a.done("Signed out (profile %s).", a.session.ProfileName())
		},
	}
}

func (a *app) user() *cobra.Command {
	get := &cobra.Command{
		Use:     "get",
		Short:   "Show who you are",
		Example: "  s0 user get",
		Args:    want(),
		RunE: a.runUser(func(ctx context.Context, c *client.Client, _ []string) error {
			u, err := c.CurrentUser(ctx)
			if err != nil {
				return err
			}
			return a.printer.Print(u, output.Fields{
				{"ID", u.ID}, {"Email", u.Email}, {"Name", u.Name}, {"Admin", yesNo(u.IsAdmin)},
				{"Default team", deref(u.DefaultTeamID)}, {"Created", since(u.CreatedAt)},
			})
		}),
	}
	return group("user", "Your own account", "  s0 user get", get)
}

func (a *app) team() *cobra.Command {
	list := &cobra.Command{
		Use:     "list",
		Short:   "List your teams; * marks the current one",
		Example: "  s0 team list",
		Args:    want(),
		RunE: a.runUser(func(ctx context.Context, c *client.Client, _ []string) error {
			teams, err := c.ListTeams(ctx)
			if err != nil {
				return err
			}
			rows := output.Rows{Columns: []string{"", "ID", "NAME~", "SLUG~", "CREATED"}}
			for _, t := range teams.Teams {
				mark := ""
				if t.ID == a.session.TeamID() {
					mark = "*"
				}
				rows.Rows = append(rows.Rows, []string{mark, t.ID, t.Name, t.Slug, since(t.CreatedAt)})
			}
			return a.printer.Print(teams, rows)
		}),
	}
	use := &cobra.Command{
		Use:     "use <id>",
		Short:   "Make a team the current one",
		Example: "  s0 team use 6f1c…",
		Args:    want("the team's id"),
		RunE:    a.runUser(a.useTeam),
	}
	return group("team", "The teams that you belong to", "  s0 team list\n  s0 team use 6f1c…", list, use)
}

// useTeam takes an id, or a slug for those who remember it better.
func (a *app) useTeam(ctx context.Context, c *client.Client, args []string) error {
	teams, err := c.ListTeams(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(teams.Teams, func(t client.Team) bool { return t.ID == args[0] || strings.EqualFold(t.Slug, args[0]) })
	if i < 0 {
		return fmt.Errorf("you belong to no team %q: `s0 team list` shows yours", args[0])
	}
	team := teams.Teams[i]
	if err := a.session.UseTeam(ctx, team.ID); err != nil {
		return err
	}
	return a.printer.Print(team, output.Text(fmt.Sprintf("Using team %s (%s).", team.Name, team.ID)))
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
