package cli

import "github.com/spf13/cobra"

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

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
