package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"s0.run/api/client"
)

// templatePoll is how often a template that is being made or warmed is looked at.
const templatePoll = time.Second

func (a *app) templateCreate() *cobra.Command {
	var o templateOptions
	cmd := &cobra.Command{
		Use:   "create --id <id> (-f <spec> | --from-sandbox <sandbox-id>)",
		Short: "Create a template of your team's",
		Long: `Create a template of your team's from a spec in YAML or JSON, such as

  mainContainer:
    image: docker.io/library/python:3.13
    resources: {memory: 1Gi}
  pool: {minIdle: 1, maxIdle: 4}

or from a running sandbox: what it has changed in its files becomes a layer over
its image, the rest is as in its template. Leave its files alone meanwhile. Such a
template keeps no warm sandboxes unless a spec with a pool comes with -f, of which
description, displayName, tags and pool are read.`,
		Example: `  s0 template create --id mine -f spec.yaml --wait
  s0 template get default -o yaml | s0 template create --id mine -f -
  s0 template create --id prepared --from-sandbox local-… --wait`,
		Args: want(),
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			t, err := o.create(ctx, c)
			if err == nil && o.wait {
				t, err = o.await(ctx, c, t)
			}
			if err != nil {
				return err
			}
			return a.printer.Print(t, templateFields(t))
		}),
	}
	f := cmd.Flags()
	f.StringVar(&o.id, "id", "", "the template's id: a DNS label")
	f.StringVarP(&o.file, "file", "f", "", "spec in YAML or JSON, - for stdin")
	f.StringVar(&o.sandbox, "from-sandbox", "", "make it from this running sandbox")
	f.BoolVar(&o.wait, "wait", false, "wait until sandboxes can be made from it and its pool is warm")
	f.DurationVar(&o.timeout, "wait-timeout", 15*time.Minute, "how long --wait waits")
	cmd.MarkFlagRequired("id")
	cmd.MarkFlagsOneRequired("file", "from-sandbox")
	return cmd
}

type templateOptions struct {
	id, file, sandbox string
	wait              bool
	timeout           time.Duration
}

func (o *templateOptions) create(ctx context.Context, c *client.Client) (*client.Template, error) {
	var spec client.TemplateSpec
	if o.file != "" {
		var err error
		if spec, err = readSpec(o.file); err != nil {
			return nil, err
		}
	}
	if o.sandbox == "" {
		return c.CreateTemplate(ctx, o.id, spec)
	}
	return c.CreateTemplateFromSandbox(ctx, client.TemplateFromSandboxRequest{
		TemplateID: o.id, SandboxID: o.sandbox,
		SpecOverrides: &client.TemplateFromSandboxOverrides{
			Description: spec.Description, DisplayName: spec.DisplayName, Tags: spec.Tags, Pool: spec.Pool,
		},
	})
}

// await waits until the template is ready, and says what it waits for.
func (o *templateOptions) await(ctx context.Context, c *client.Client, t *client.Template) (*client.Template, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	said := ""
	for {
		switch now := state(t); now {
		case "ready":
			return t, nil
		case "failed", "unavailable":
			return nil, fmt.Errorf("template %s is %s: %s", t.TemplateID, now, why(t))
		}
		if doing := progressOf(t); doing != said {
			note("%s", doing)
			said = doing
		}
		select {
		case <-time.After(templatePoll):
		case <-ctx.Done():
			return nil, o.gaveUp(ctx, t)
		}
		next, err := c.GetTemplate(ctx, o.id)
		if err != nil && ctx.Err() != nil {
			return nil, o.gaveUp(ctx, t)
		}
		if err != nil {
			return nil, err
		}
		t = next
	}
}

func (o *templateOptions) gaveUp(ctx context.Context, t *client.Template) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("template %s is not ready after %s: %s; it goes on, `s0 template get %s` says how", t.TemplateID, o.timeout, progressOf(t), t.TemplateID)
	}
	return ctx.Err()
}

func progressOf(t *client.Template) string {
	if c := deref(t.Status).Creation; c != nil && c.State == client.TemplateCreationStateCreating {
		return string(c.Stage)
	}
	doing := state(t)
	if reason := why(t); reason != "" {
		doing += ": " + reason
	}
	return doing
}
