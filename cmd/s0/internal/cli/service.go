package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

func (a *app) service() *cobra.Command {
	var sandbox string
	return a.inSandbox(&sandbox, group("service", "What a sandbox offers to the outside",
		"  s0 sandbox service -s ID get\n  s0 sandbox service -s ID update -f services.yaml",
		a.serviceGet(&sandbox), a.serviceUpdate(&sandbox), a.serviceDelete(&sandbox), a.serviceClear(&sandbox)))
}

func (a *app) serviceGet(sandbox *string) *cobra.Command {
	return &cobra.Command{
		Use:     "get",
		Short:   "Show a sandbox's services; -o json also shows their routes",
		Example: "  s0 sandbox service -s ID get\n  s0 sandbox service -s ID get -o yaml > services.yaml",
		Args:    want(),
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			list, err := c.SandboxServices(ctx, *sandbox)
			if err != nil {
				return err
			}
			return a.printServices(list)
		}),
	}
}

func (a *app) printServices(list *client.SandboxServices) error {
	rows := output.Rows{Columns: []string{"ID", "PORT", "RUNTIME?", "PUBLIC", "ROUTES?", "URL"}, None: "No services."}
	for _, s := range list.Services {
		runtime := "manual"
		if s.Runtime != nil {
			runtime = string(s.Runtime.Type)
		}
		rows.Rows = append(rows.Rows, []string{
			s.ID, fmt.Sprint(deref(s.Port)), runtime, yesNo(s.Ingress.Public), fmt.Sprint(len(s.Ingress.Routes)), deref(s.PublicURL),
		})
	}
	return a.printer.Print(list, rows)
}

func (a *app) serviceUpdate(sandbox *string) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "update -f <services>",
		Short: "Replace a sandbox's services",
		Long: `Replace a sandbox's services with those of a file in YAML or JSON, such as

  services:
    - id: web
      port: 8080
      runtime: {type: cmd, command: [python3, -m, http.server, "8080"]}
      ingress: {public: true}`,
		Example: "  s0 sandbox service -s ID update -f services.yaml",
		Args:    want(),
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			services, err := readServices(file)
			if err != nil {
				return err
			}
			list, err := c.UpdateSandboxServices(ctx, *sandbox, services)
			if err != nil {
				return err
			}
			return a.printServices(list)
		}),
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "services in YAML or JSON, - for stdin")
	cmd.MarkFlagRequired("file")
	return cmd
}

// readServices also takes what `service get` has printed.
func readServices(file string) ([]client.SandboxAppService, error) {
	doc, err := readDocument(file)
	if err != nil {
		return nil, err
	}
	delete(doc, "sandbox_id")
	delete(doc, "exposure_domain")
	list, _ := doc["services"].([]any)
	for _, s := range list {
		if shown, ok := s.(map[string]any); ok {
			for _, field := range []string{"publishable", "publish_blockers", "public_url"} {
				delete(shown, field)
			}
		}
	}
	req, err := decodeDocument[client.UpdateSandboxServicesRequest](file, doc)
	if err == nil && req.Services == nil {
		err = fmt.Errorf("%s: services are missing", file)
	}
	return req.Services, err
}

func (a *app) serviceDelete(sandbox *string) *cobra.Command {
	return &cobra.Command{
		Use:               "delete <service>",
		Short:             "Remove one service",
		Example:           "  s0 sandbox service -s ID delete web",
		Args:              want("the service's id"),
		ValidArgsFunction: a.completeFirst(serviceWords(sandbox)),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			list, err := c.SandboxServices(ctx, *sandbox)
			if err != nil {
				return err
			}
			left := []client.SandboxAppService{}
			for _, s := range list.Services {
				if s.ID != strings.ToLower(args[0]) {
					left = append(left, client.SandboxAppService{
						ID: s.ID, DisplayName: s.DisplayName, Port: s.Port, Runtime: s.Runtime, Ingress: s.Ingress, HealthCheck: s.HealthCheck,
					})
				}
			}
			if len(left) == len(list.Services) {
				return fmt.Errorf("the sandbox has no service %q", args[0])
			}
			if _, err := c.UpdateSandboxServices(ctx, *sandbox, left); err != nil {
				return err
			}
			return a.done("Removed %s.", args[0])
		}),
	}
}

func (a *app) serviceClear(sandbox *string) *cobra.Command {
	return &cobra.Command{
		Use:     "clear",
		Short:   "Remove all services",
		Example: "  s0 sandbox service -s ID clear",
		Args:    want(),
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			if _, err := c.UpdateSandboxServices(ctx, *sandbox, nil); err != nil {
				return err
			}
			return a.done("Removed all services.")
		}),
	}
}

func (a *app) ports() *cobra.Command {
	var sandbox string
	return a.inSandbox(&sandbox, group("ports", "Ports that a sandbox exposes as they are",
		"  s0 sandbox ports -s ID expose 8080\n  s0 sandbox ports -s ID list",
		a.portsList(&sandbox), a.portsExpose(&sandbox), a.portsUnexpose(&sandbox), a.portsClear(&sandbox)))
}

func (a *app) portsList(sandbox *string) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List a sandbox's exposed ports",
		Example: "  s0 sandbox ports -s ID list",
		Args:    want(),
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			list, err := c.ExposedPorts(ctx, *sandbox)
			if err != nil {
				return err
			}
			return a.printPorts(list)
		}),
	}
}

func (a *app) printPorts(list *client.ExposedPorts) error {
	rows := output.Rows{Columns: []string{"PORT", "RESUME", "URL"}, None: "No port is exposed."}
	for _, p := range list.ExposedPorts {
		rows.Rows = append(rows.Rows, []string{fmt.Sprint(p.Port), yesNo(p.Resume), deref(p.PublicURL)})
	}
	return a.printer.Print(list, rows)
}

func (a *app) portsExpose(sandbox *string) *cobra.Command {
	var resume bool
	cmd := &cobra.Command{
		Use:     "expose <port>",
		Short:   "Let everybody reach a port",
		Example: "  s0 sandbox ports -s ID expose 8080",
		Args:    want("the port"),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			port, err := parsePort(args[0])
			if err != nil {
				return err
			}
			list, err := c.ExposedPorts(ctx, *sandbox)
			if err != nil {
				return err
			}
			ports := []client.ExposedPort{}
			for _, p := range list.ExposedPorts {
				ports = append(ports, client.ExposedPort{Port: p.Port, Resume: p.Resume})
			}
			ports = slices.DeleteFunc(ports, func(p client.ExposedPort) bool { return p.Port == port })
			list, err = c.UpdateExposedPorts(ctx, *sandbox, append(ports, client.ExposedPort{Port: port, Resume: resume}))
			if err != nil {
				return err
			}
			return a.printPorts(list)
		}),
	}
	cmd.Flags().BoolVar(&resume, "resume", false, "a request wakes the sandbox when it is paused")
	return cmd
}

func parsePort(s string) (int32, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is no port", s)
	}
	return int32(n), nil
}

func (a *app) portsUnexpose(sandbox *string) *cobra.Command {
	return &cobra.Command{
		Use:               "unexpose <port>",
		Short:             "Let nobody reach a port any more",
		Example:           "  s0 sandbox ports -s ID unexpose 8080",
		Args:              want("the port"),
		ValidArgsFunction: a.completeFirst(portWords(sandbox)),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			port, err := parsePort(args[0])
			if err != nil {
				return err
			}
			list, err := c.RemoveExposedPort(ctx, *sandbox, port)
			if err != nil {
				return err
			}
			return a.printPorts(list)
		}),
	}
}

func (a *app) portsClear(sandbox *string) *cobra.Command {
	return &cobra.Command{
		Use:     "clear",
		Short:   "Expose no port any more",
		Example: "  s0 sandbox ports -s ID clear",
		Args:    want(),
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			if _, err := c.ClearExposedPorts(ctx, *sandbox); err != nil {
				return err
			}
			return a.done("No port is exposed any more.")
		}),
	}
}
