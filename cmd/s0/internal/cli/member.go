package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

var roles = []string{"admin", "developer", "builder", "viewer"}

func (a *app) teamMember() *cobra.Command {
	var team string
	cmd := group("member", "The members of a team", "  s0 team member list\n  s0 team member -t research add --email ada@example.com --role developer",
		a.memberList(&team), a.memberAdd(&team), a.memberUpdate(&team), a.memberRemove(&team))
	cmd.PersistentFlags().StringVarP(&team, "team", "t", "", "the team (default the current one)")
	completeFlag(cmd, "team", func(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return a.completeFrom(cmd.Context(), teamWords)
	})
	return cmd
}

// runInTeam is runUser for a command about the team that a flag names.
func (a *app) runInTeam(team *string, do func(ctx context.Context, c *client.Client, t client.Team, args []string) error) func(*cobra.Command, []string) error {
	return a.runUser(func(ctx context.Context, c *client.Client, args []string) error {
		t, err := a.findTeam(ctx, c, *team)
		if err != nil {
			return err
		}
		return do(ctx, c, t, args)
	})
}

func (a *app) memberWords(team *string) words {
	return func(ctx context.Context, c *client.Client) (found []cobra.Completion, _ error) {
		t, err := a.findTeam(ctx, c, *team)
		if err != nil {
			return nil, err
		}
		list, err := c.ListTeamMembers(ctx, t.ID, "")
		if err != nil {
			return nil, err
		}
		for _, m := range list.Members {
			found = append(found, describeWord(m.UserID, deref(m.Email), string(m.Role)))
		}
		return found, nil
	}
}

func (a *app) memberList(team *string) *cobra.Command {
	var query string
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the members",
		Example: "  s0 team member list\n  s0 team member -t research list --query ada",
		Args:    want(),
		RunE: a.runInTeam(team, func(ctx context.Context, c *client.Client, t client.Team, _ []string) error {
			list, err := c.ListTeamMembers(ctx, t.ID, query)
			if err != nil {
				return err
			}
			rows := output.Rows{Columns: []string{"USER", "EMAIL~", "NAME?~", "ROLE", "JOINED?"}, None: "There is no such member."}
			for _, m := range list.Members {
				role := string(m.Role)
				if m.UserID == deref(t.OwnerID) {
					role = "owner"
				}
				rows.Rows = append(rows.Rows, []string{m.UserID, deref(m.Email), deref(m.Name), role, since(m.JoinedAt)})
			}
			return a.printer.Print(list, rows)
		}),
	}
	cmd.Flags().StringVar(&query, "query", "", "only whose email address or name has this in it")
	return cmd
}

func (a *app) memberAdd(team *string) *cobra.Command {
	var email, role string
	cmd := &cobra.Command{
		Use:     "add --email <address>",
		Short:   "Make a user a member",
		Example: "  s0 team member add --email ada@example.com\n  s0 team member -t research add --email ada@example.com --role admin",
		Args:    want(),
		RunE: a.runInTeam(team, func(ctx context.Context, c *client.Client, t client.Team, _ []string) error {
			m, err := c.AddTeamMember(ctx, t.ID, email, client.Role(role))
			if err != nil {
				return err
			}
			return a.printer.Print(m, output.Fields{{"User", m.UserID}, {"Email", deref(m.Email)}, {"Name", deref(m.Name)}, {"Role", string(m.Role)}, {"Team", t.Name}})
		}),
	}
	cmd.Flags().StringVar(&email, "email", "", "email address of somebody who has an account")
	cmd.Flags().StringVar(&role, "role", "developer", "what the member may do: "+strings.Join(roles, ", "))
	cmd.MarkFlagRequired("email")
	complete(cmd, "role", roles...)
	return cmd
}

func (a *app) memberUpdate(team *string) *cobra.Command {
	var role string
	cmd := &cobra.Command{
		Use:               "update <user> --role <role>",
		Short:             "Change what a member may do",
		Example:           "  s0 team member update 1b2c… --role viewer",
		Args:              want("the member's user id"),
		ValidArgsFunction: a.completeFirst(a.memberWords(team)),
		RunE: a.runInTeam(team, func(ctx context.Context, c *client.Client, t client.Team, args []string) error {
			if err := c.UpdateTeamMember(ctx, t.ID, args[0], client.Role(role)); err != nil {
				return err
			}
			return a.done("User %s has the role %s in %s.", args[0], role, t.Name)
		}),
	}
	cmd.Flags().StringVar(&role, "role", "", strings.Join(roles, ", "))
	cmd.MarkFlagRequired("role")
	complete(cmd, "role", roles...)
	return cmd
}

func (a *app) memberRemove(team *string) *cobra.Command {
	return &cobra.Command{
		Use:   "remove <user>",
		Short: "Remove a member, or leave",
		Long: `Remove a member, or leave the team with your own user id.

The member's SSH keys in the team are deleted, and API keys of the team that the
member made stop working. The owner can't be removed.`,
		Example:           "  s0 team member remove 1b2c…",
		Args:              want("the member's user id"),
		ValidArgsFunction: a.completeFirst(a.memberWords(team)),
		RunE: a.runInTeam(team, func(ctx context.Context, c *client.Client, t client.Team, args []string) error {
			me, err := c.CurrentUser(ctx)
			if err != nil {
				return err
			}
			if err := c.RemoveTeamMember(ctx, t.ID, args[0]); err != nil {
				return err
			}
			if args[0] == me.ID {
				if err := a.leftTeam(ctx, t.ID); err != nil {
					return err
				}
			}
			return a.done("User %s is no longer a member of %s.", args[0], t.Name)
		}),
	}
}
