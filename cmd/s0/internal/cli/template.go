package cli

import (
	"context"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

func (a *app) template() *cobra.Command {
	return group("template", "What sandboxes are made from", "  s0 template list\n  s0 template create --id mine -f spec.yaml",
		a.templateList(), a.templateGet(), a.templateCreate(), a.templateUpdate(), a.templateDelete(), a.templateImage())
}

func (a *app) templateList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the templates that your team can use",
		Long: `List the templates that your team can use. STATE is ready when as many sandboxes
are warm as POOL says, warming or failing until then (` + "`s0 template get`" + ` says why),
unavailable when nothing can be made from the template.`,
		Example: "  s0 template list\n  s0 template list -o json | jq '.templates[].status'",
		Args:    want(),
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			list, err := c.ListTemplates(ctx)
			if err != nil {
				return err
			}
			rows := output.Rows{Columns: []string{"ID", "SCOPE?", "IMAGE~", "MEMORY?", "STATE", "POOL?", "IDLE", "ACTIVE", "UPDATED?"}}
			for _, t := range list.Templates {
				status := deref(t.Status)
				rows.Rows = append(rows.Rows, []string{
					t.TemplateID, string(t.Scope), t.Spec.MainContainer.Image, deref(t.Spec.MainContainer.Resources.Memory),
					state(&t), pool(t.Spec.Pool), count(status.IdleCount), count(status.ActiveCount), since(t.UpdatedAt),
				})
			}
			return a.printer.Print(list, rows)
		}),
	}
}

func (a *app) templateGet() *cobra.Command {
	return &cobra.Command{
		Use:               "get <id>",
		Short:             "Show a template",
		Example:           "  s0 template get default\n  s0 template get default -o yaml > spec.yaml",
		Args:              want("the template's id"),
		ValidArgsFunction: a.completeTemplates,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			t, err := c.GetTemplate(ctx, args[0])
			if err != nil {
				return err
			}
			return a.printer.Print(t, templateFields(t))
		}),
	}
}

func (a *app) templateUpdate() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:               "update <id> -f <spec>",
		Short:             "Replace a template's spec",
		Example:           "  s0 template get mine -o yaml > mine.yaml   # edit it, then\n  s0 template update mine -f mine.yaml",
		Args:              want("the template's id"),
		ValidArgsFunction: a.completeTemplates,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			spec, err := readSpec(file)
			if err != nil {
				return err
			}
			t, err := c.UpdateTemplate(ctx, args[0], spec)
			if err != nil {
				return err
			}
			return a.printer.Print(t, templateFields(t))
		}),
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "spec in YAML or JSON, - for stdin")
	cmd.MarkFlagRequired("file")
	return cmd
}

func (a *app) templateDelete() *cobra.Command {
	return &cobra.Command{
		Use:               "delete <id>",
		Short:             "Delete a template; its sandboxes keep running",
		Example:           "  s0 template delete mine",
		Args:              want("the template's id"),
		ValidArgsFunction: a.completeTemplates,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			deleted, err := c.DeleteTemplate(ctx, args[0])
			if err != nil {
				return err
			}
			for _, w := range deleted.CleanupWarnings {
				note("warning: %s", w)
			}
			return a.printer.Print(deleted, output.Text("Template "+args[0]+" is deleted."))
		}),
	}
}

// readSpec reads a spec, also out of a whole template as `template get` prints it.
func readSpec(path string) (client.TemplateSpec, error) {
	doc, err := readDocument(path)
	if err != nil {
		return client.TemplateSpec{}, err
	}
	if spec, whole := doc["spec"].(map[string]any); whole {
		doc = spec
	}
	return decodeDocument[client.TemplateSpec](path, doc)
}

func templateFields(t *client.Template) output.Fields {
	main, status := t.Spec.MainContainer, deref(t.Status)
	fields := output.Fields{
		{"ID", t.TemplateID}, {"Name", deref(t.Spec.DisplayName)}, {"Description", deref(t.Spec.Description)},
		{"Scope", string(t.Scope)}, {"Tags", strings.Join(t.Spec.Tags, ", ")}, {"Image", main.Image},
		{"Memory", deref(main.Resources.Memory)}, {"CPU", deref(main.Resources.CPU)},
		{"Runtime", string(deref(t.Spec.RuntimeClassName))}, {"Pool", pool(t.Spec.Pool)}, {"State", state(t)},
		{"Reason", why(t)}, {"Idle", count(status.IdleCount)}, {"Active", count(status.ActiveCount)},
		{"Created", since(t.CreatedAt)}, {"Updated", since(t.UpdatedAt)},
	}
	return fields
}

// state says in a word what can be made from a template now.
func state(t *client.Template) string {
	status := deref(t.Status)
	if c := status.Creation; c != nil && c.State != client.TemplateCreationStateReady {
		return string(c.State)
	}
	switch c := poolReady(t); {
	case c == nil:
		return ""
	case c.Status == "True":
		return "ready"
	case c.Status == "Unknown":
		return "unknown"
	case deref(c.Reason) == "Warming":
		return "warming"
	case deref(c.Reason) == "Unavailable":
		return "unavailable"
	}
	return "failing"
}

// why says why a template is not ready.
func why(t *client.Template) string {
	if c := deref(t.Status).Creation; c != nil && c.State == client.TemplateCreationStateFailed {
		return deref(c.Message)
	}
	if c := poolReady(t); c != nil && c.Status != "True" {
		return deref(c.Message)
	}
	return ""
}

func poolReady(t *client.Template) *client.TemplateCondition {
	conditions := deref(t.Status).Conditions
	for i := range conditions {
		if conditions[i].Type == "PoolReady" {
			return &conditions[i]
		}
	}
	return nil
}

func pool(p *client.PoolSpec) string {
	if p == nil {
		return ""
	}
	return strconv.Itoa(int(p.MinIdle)) + "–" + strconv.Itoa(int(p.MaxIdle))
}

func count(n *int32) string {
	if n == nil {
		return ""
	}
	return strconv.Itoa(int(*n))
}

func (a *app) completeTemplates(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completeFrom(cmd.Context(), func(ctx context.Context, c *client.Client) (words []cobra.Completion, _ error) {
		list, err := c.ListTemplates(ctx)
		if err != nil {
			return nil, err
		}
		for _, t := range list.Templates {
			words = append(words, cobra.CompletionWithDesc(t.TemplateID, deref(t.Spec.Description)))
		}
		return words, nil
	})
}
