package cli

import "github.com/spf13/cobra"

func (a *app) admin() *cobra.Command {
	return group("admin", "What only an operator of the server may do", "  s0 admin quota set TEAM active_sandboxes 100", a.adminQuota(), a.adminUser(), a.adminRegion())
}
