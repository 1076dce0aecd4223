package cli

import (
	"context"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

func (a *app) adminRegion() *cobra.Command {
	return group("region", "The regions that the server tells of", "  s0 admin region list\n  s0 admin region create --id aws-us-east-1 --regional-gateway-url https://us-east-1.example.com",
		a.regionList(), a.regionGet(), a.regionCreate(), a.regionUpdate(), a.regionDelete())
}

func (a *app) regionList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the regions, the server's own among them",
		Example: "  s0 admin region list",
		Args:    want(),
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			list, err := c.ListRegions(ctx)
			if err != nil {
				return err
			}
			rows := output.Rows{Columns: []string{"ID", "NAME~", "GATEWAY?~", "ENABLED"}}
			for _, r := range list.Regions {
				rows.Rows = append(rows.Rows, []string{r.ID, r.DisplayName, gatewayText(r), yesNo(r.Enabled)})
			}
			return a.printer.Print(list, rows)
		}),
	}
}

func (a *app) regionGet() *cobra.Command {
	return &cobra.Command{
		Use:               "get <region>",
		Short:             "Show a region",
		Example:           "  s0 admin region get aws-us-east-1",
		Args:              want("the region's id"),
		ValidArgsFunction: a.completeFirst(regionWords),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			r, err := c.GetRegion(ctx, args[0])
			if err != nil {
				return err
			}
			return a.printRegion(r)
		}),
	}
}

// gatewayText shows what nobody has said as a dash.
func gatewayText(r client.Region) string {
	if r.RegionalGatewayURL == "" {
		return "-"
	}
	return r.RegionalGatewayURL
}

func (a *app) printRegion(r *client.Region) error {
	return a.printer.Print(r, output.Fields{
		{"ID", r.ID}, {"Name", r.DisplayName}, {"Gateway", gatewayText(*r)}, {"Metering", deref(r.MeteringExportURL)}, {"Enabled", yesNo(r.Enabled)},
	})
}

func regionWords(ctx context.Context, c *client.Client) (found []cobra.Completion, _ error) {
	list, err := c.ListRegions(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range list.Regions {
		found = append(found, describeWord(r.ID, r.DisplayName))
	}
	return found, nil
}

// regionFlags are what can be said of a region.
type regionFlags struct {
	name, gateway, metering string
	enabled                 bool
}

func (f *regionFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.name, "display-name", "", "how the region is called (default its id)")
	flags.StringVar(&f.gateway, "regional-gateway-url", "", "where its API is")
	flags.StringVar(&f.metering, "metering-export-url", "", `where it gives what is metered; "" takes that away`)
	flags.BoolVar(&f.enabled, "enabled", true, "whether clients shall use it")
}

func (a *app) regionCreate() *cobra.Command {
	var id string
	var f regionFlags
	cmd := &cobra.Command{
		Use:   "create --id <region> --regional-gateway-url <url>",
		Short: "Add a region",
		Long: `Add a region: another server, with users and teams of its own. It is listed for
clients to read. This server calls none of its addresses, and its own teams stay
in its own region.`,
		Example: "  s0 admin region create --id aws-us-east-1 --regional-gateway-url https://us-east-1.example.com",
		Args:    want(),
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			r, err := c.CreateRegion(ctx, client.CreateRegionRequest{
				ID: id, DisplayName: unlessEmpty(f.name), RegionalGatewayURL: f.gateway, MeteringExportURL: unlessEmpty(f.metering), Enabled: &f.enabled,
			})
			if err != nil {
				return err
			}
			return a.printRegion(r)
		}),
	}
	cmd.Flags().StringVar(&id, "id", "", "its id, <provider>-<region>")
	f.add(cmd.Flags())
	cmd.MarkFlagRequired("id")
	cmd.MarkFlagRequired("regional-gateway-url")
	return cmd
}

func (a *app) regionUpdate() *cobra.Command {
	var f regionFlags
	cmd := &cobra.Command{
		Use:               "update <region>",
		Short:             "Change what is said of a region",
		Example:           "  s0 admin region update aws-us-east-1 --enabled=false\n  s0 admin region update local --regional-gateway-url https://s0.example.com",
		Args:              want("the region's id"),
		ValidArgsFunction: a.completeFirst(regionWords),
	}
	flags := cmd.Flags()
	f.add(flags)
	cmd.MarkFlagsOneRequired("display-name", "regional-gateway-url", "metering-export-url", "enabled")
	cmd.RunE = a.run(func(ctx context.Context, c *client.Client, args []string) error {
		var req client.UpdateRegionRequest
		for name, set := range map[string]func(){
			"display-name": func() { req.DisplayName = &f.name }, "regional-gateway-url": func() { req.RegionalGatewayURL = &f.gateway },
			"metering-export-url": func() { req.MeteringExportURL = &f.metering }, "enabled": func() { req.Enabled = &f.enabled },
		} {
			if flags.Changed(name) {
				set()
			}
		}
		r, err := c.UpdateRegion(ctx, args[0], req)
		if err != nil {
			return err
		}
		return a.printRegion(r)
	})
	return cmd
}

func (a *app) regionDelete() *cobra.Command {
	return &cobra.Command{
		Use:               "delete <region>",
		Short:             "Delete a region",
		Example:           "  s0 admin region delete aws-us-east-1",
		Args:              want("the region's id"),
		ValidArgsFunction: a.completeFirst(regionWords),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			if err := c.DeleteRegion(ctx, args[0]); err != nil {
				return err
			}
			return a.done("Region %s is deleted.", args[0])
		}),
	}
}
