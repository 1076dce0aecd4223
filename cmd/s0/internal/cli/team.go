package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

func (a *app) team() *cobra.Command {
	return group("team", "The teams that you belong to", "  s0 team list\n  s0 team use 6f1c…\n  s0 team member add --email ada@example.com --role developer",
		a.teamList(), a.teamGet(), a.teamCreate(), a.teamUpdate(), a.teamTransfer(), a.teamDelete(), a.teamUse(), a.teamMember())
}

func (a *app) teamList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List your teams; * marks the current one",
		Example: "  s0 team list",
		Args:    want(),
		RunE: a.runUser(func(ctx context.Context, c *client.Client, _ []string) error {
			teams, err := c.ListTeams(ctx)
			if err != nil {
				return err
			}
			rows := output.Rows{Columns: []string{"", "ID", "NAME~", "SLUG~", "CREATED?"}, None: "You are in no team."}
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
}

func (a *app) teamGet() *cobra.Command {
	return &cobra.Command{
		Use:               "get [team]",
		Short:             "Show a team, by default the current one",
		Example:           "  s0 team get\n  s0 team get research",
		Args:              wantUpTo(1),
		ValidArgsFunction: a.completeFirst(teamWords),
		RunE: a.runUser(func(ctx context.Context, c *client.Client, args []string) error {
			t, err := a.findTeam(ctx, c, strings.Join(args, ""))
			if err != nil {
				return err
			}
			return a.printTeam(&t)
		}),
	}
}

func (a *app) printTeam(t *client.Team) error {
	return a.printer.Print(t, output.Fields{
		{"ID", t.ID}, {"Name", t.Name}, {"Slug", t.Slug}, {"Owner", deref(t.OwnerID)}, {"Region", deref(t.HomeRegionID)}, {"Created", since(t.CreatedAt)},
	})
}

// findTeam takes an id, or a slug for those who remember it better, or nothing for
// the current team.
func (a *app) findTeam(ctx context.Context, c *client.Client, name string) (client.Team, error) {
	teams, err := c.ListTeams(ctx)
	if err != nil {
		return client.Team{}, err
	}
	if name == "" {
		name = a.session.TeamID()
	}
	if name == "" && len(teams.Teams) == 1 {
		return teams.Teams[0], nil
	}
	i := slices.IndexFunc(teams.Teams, func(t client.Team) bool { return t.ID == name || strings.EqualFold(t.Slug, name) })
	switch {
	case name == "":
		return client.Team{}, errors.New("you have no current team: choose one with `s0 team use`")
	case i < 0:
		return client.Team{}, fmt.Errorf("you belong to no team %q: `s0 team list` shows yours", name)
	}
	return teams.Teams[i], nil
}

func teamWords(ctx context.Context, c *client.Client) (found []cobra.Completion, _ error) {
	teams, err := c.ListTeams(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range teams.Teams {
		found = append(found, describeWord(t.ID, t.Name, t.Slug))
	}
	return found, nil
}

func (a *app) teamCreate() *cobra.Command {
	var name, slug, region string
	cmd := &cobra.Command{
		Use:     "create --name <name>",
		Short:   "Create a team that you own",
		Example: "  s0 team create --name Research --slug research\n  s0 team use research",
		Args:    want(),
		RunE: a.runUser(func(ctx context.Context, c *client.Client, _ []string) error {
			t, err := c.CreateTeam(ctx, client.CreateTeamRequest{Name: name, Slug: unlessEmpty(slug), HomeRegionID: unlessEmpty(region)})
			if err != nil {
				return err
			}
			return a.printTeam(t)
		}),
	}
	flags := cmd.Flags()
	flags.StringVar(&name, "name", "", "how the team is called")
	flags.StringVar(&slug, "slug", "", "its short name, which no other team has (default made from the name)")
	flags.StringVar(&region, "home-region", "", "where its sandboxes are (default the server's)")
	cmd.MarkFlagRequired("name")
	return cmd
}

func unlessEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func (a *app) teamUpdate() *cobra.Command {
	var name, slug string
	cmd := &cobra.Command{
		Use:               "update [team]",
		Short:             "Rename a team, by default the current one",
		Example:           "  s0 team update --name Research\n  s0 team update research --slug lab",
		Args:              wantUpTo(1),
		ValidArgsFunction: a.completeFirst(teamWords),
	}
	flags := cmd.Flags()
	flags.StringVar(&name, "name", "", "how the team is called")
	flags.StringVar(&slug, "slug", "", "its short name, which no other team has")
	cmd.MarkFlagsOneRequired("name", "slug")
	cmd.RunE = a.runUser(func(ctx context.Context, c *client.Client, args []string) error {
		t, err := a.findTeam(ctx, c, strings.Join(args, ""))
		if err != nil {
			return err
		}
		renamed, err := c.UpdateTeam(ctx, t.ID, client.UpdateTeamRequest{Name: changed(cmd, "name", name), Slug: changed(cmd, "slug", slug)})
		if err != nil {
			return err
		}
		return a.printTeam(renamed)
	})
	return cmd
}

func (a *app) teamTransfer() *cobra.Command {
	return &cobra.Command{
		Use:               "transfer <team> <user>",
		Short:             "Make another member the owner of your team",
		Example:           "  s0 team transfer research 1b2c…",
		Args:              want("the team", "the new owner's user id"),
		ValidArgsFunction: a.completeFirst(teamWords),
		RunE: a.runUser(func(ctx context.Context, c *client.Client, args []string) error {
			t, err := a.findTeam(ctx, c, args[0])
			if err != nil {
				return err
			}
			moved, err := c.TransferTeam(ctx, t.ID, args[1])
			if err != nil {
				return err
			}
			return a.printTeam(moved)
		}),
	}
}

func (a *app) teamDelete() *cobra.Command {
	return &cobra.Command{
		Use:               "delete <team>",
		Short:             "Delete a team that you own",
		Long:              "Delete a team that you own, with its members and API keys. It must have no\nsandboxes and no templates any more.",
		Example:           "  s0 team delete research",
		Args:              want("the team"),
		ValidArgsFunction: a.completeFirst(teamWords),
		RunE: a.runUser(func(ctx context.Context, c *client.Client, args []string) error {
			t, err := a.findTeam(ctx, c, args[0])
			if err != nil {
				return err
			}
			if err := c.DeleteTeam(ctx, t.ID); err != nil {
				return err
			}
			if err := a.leftTeam(ctx, t.ID); err != nil {
				return err
			}
			return a.done("Team %s is deleted.", t.Name)
		}),
	}
}

// leftTeam gives up a current team that is none of ours any more.
func (a *app) leftTeam(ctx context.Context, id string) error {
	if id != a.session.TeamID() {
		return nil
	}
	note("That was your current team: choose another with `s0 team use`.")
	return a.session.UseTeam(ctx, "")
}

func (a *app) teamUse() *cobra.Command {
	return &cobra.Command{
		Use:               "use <team>",
		Short:             "Make a team the current one",
		Example:           "  s0 team use 6f1c…",
		Args:              want("the team's id"),
		ValidArgsFunction: a.completeFirst(teamWords),
		RunE: a.runUser(func(ctx context.Context, c *client.Client, args []string) error {
			t, err := a.findTeam(ctx, c, args[0])
			if err != nil {
				return err
			}
			if err := a.session.UseTeam(ctx, t.ID); err != nil {
				return err
			}
			return a.printer.Print(t, output.Text(fmt.Sprintf("Using team %s (%s).", t.Name, t.ID)))
		}),
	}
}
