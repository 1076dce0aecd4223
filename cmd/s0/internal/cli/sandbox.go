package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
	"s0.run/cmd/s0/internal/progress"
	"s0.run/cmd/s0/internal/tty"
)

func (a *app) sandbox() *cobra.Command {
	return group("sandbox", "Claim sandboxes and work in them",
		"  s0 sandbox create\n  s0 sandbox list\n  s0 sandbox run ID 'print(6 * 7)'\n  s0 sandbox exec -it ID -- bash\n  s0 sandbox delete ID",
		a.sandboxCreate(), a.sandboxList(), a.sandboxGet(), a.sandboxStatus(), a.sandboxUpdate(), a.sandboxRefresh(), a.sandboxPause(), a.sandboxResume(), a.sandboxFork(), a.sandboxSnapshot(), a.sandboxDelete(),
		a.sandboxRun(), a.sandboxExec(), a.context(), a.execSession(), a.files(), a.service(), a.ports(), a.network(), a.sandboxVolume(), a.sandboxEvents(), a.sandboxLogs(), a.sandboxMetrics())
}

// settings are the flags that create and update share.
type settings struct {
	file         string
	ttl, hardTTL seconds
	memory       string
}

func (s *settings) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVarP(&s.file, "file", "f", "", "config in YAML or JSON, - for stdin; flags go before it")
	flags.Var(&s.ttl, "ttl", "pause the sandbox after this time, such as 15m; 0 is never")
	flags.Var(&s.hardTTL, "hard-ttl", "delete the sandbox after this time, such as 24h; 0 is never")
	flags.StringVar(&s.memory, "memory", "", "memory, such as 512Mi or 2Gi")
}

// claim are the flags of `create`.
type claim struct {
	settings
	template, snapshot string
	env, mounts        []string
}

func (a *app) sandboxCreate() *cobra.Command {
	var n claim
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Claim a sandbox",
		Long: `Claim a sandbox. It serves when the command returns.

A config file holds what the flags can't say:

  env_vars: {LANG: C.UTF-8}
  resources: {memory: 2Gi}
  ttl: 900
  webhook: {url: "https://example.com/hook"}`,
		Example: `  s0 sandbox create
  s0 sandbox create -t mine --ttl 15m --memory 1Gi --env LANG=C.UTF-8
  s0 sandbox create -f config.yaml
  ID=$(s0 sandbox create -o json | jq -r .id)`,
		Args: want(),
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			req, err := n.request()
			if err != nil {
				return err
			}
			bar := progress.Start(os.Stderr, "Claiming a sandbox of "+req.Template, 0)
			claimed, err := c.ClaimSandbox(ctx, req) // once, however often it is tried
			bar.Stop()
			if err != nil {
				return err
			}
			return a.printCreated(claimed)
		}),
	}
	flags := cmd.Flags()
	flags.StringVarP(&n.template, "template", "t", "default", "template")
	completeFlag(cmd, "template", a.completeTemplates)
	n.register(cmd)
	flags.StringArrayVar(&n.env, "env", nil, "NAME=VALUE, or NAME to pass on our own, for all processes; may be repeated")
	flags.StringArrayVar(&n.mounts, "mount", nil, "volume and where it is seen, such as VOLUME:/data; may be repeated")
	completeFlag(cmd, "mount", a.completeMount)
	flags.StringVar(&n.snapshot, "snapshot-id", "", "start with the files of a snapshot")
	return cmd
}

func (n *claim) request() (client.ClaimRequest, error) {
	req := client.ClaimRequest{Template: n.template}
	if n.snapshot != "" {
		req.SnapshotID = &n.snapshot
	}
	for _, m := range n.mounts {
		volume, point, found := strings.Cut(m, ":")
		if !found || volume == "" || !strings.HasPrefix(point, "/") {
			return req, fmt.Errorf("--mount %q: want VOLUME:/absolute/path", m)
		}
		req.Mounts = append(req.Mounts, client.ClaimMount{SandboxvolumeID: volume, MountPoint: point})
	}
	config, err := n.config()
	req.Config = config
	return req, err
}

// config is nil if nothing was asked for.
func (n *claim) config() (*client.SandboxConfig, error) {
	env, err := parseEnv(n.env)
	if err != nil {
		return nil, err
	}
	if n.empty() && env == nil {
		return nil, nil
	}
	config, err := readConfig[client.SandboxConfig](n.file)
	if err != nil {
		return nil, err
	}
	n.overlay(&config.TTL, &config.HardTTL, &config.Resources)
	for name, value := range env {
		if config.EnvVars == nil {
			config.EnvVars = map[string]string{}
		}
		config.EnvVars[name] = value
	}
	return &config, nil
}

// empty tells that no flag was given.
func (s *settings) empty() bool {
	return s.file == "" && s.ttl.value == nil && s.hardTTL.value == nil && s.memory == ""
}

// readConfig reads a file if there is one.
func readConfig[T any](file string) (T, error) {
	var none T
	if file == "" {
		return none, nil
	}
	doc, err := readDocument(file)
	if err != nil {
		return none, err
	}
	return decodeDocument[T](file, doc)
}

// overlay puts the flags over what a file said.
func (s *settings) overlay(ttl, hardTTL **int32, resources **client.SandboxResources) {
	if s.ttl.value != nil {
		*ttl = s.ttl.value
	}
	if s.hardTTL.value != nil {
		*hardTTL = s.hardTTL.value
	}
	if s.memory != "" {
		*resources = &client.SandboxResources{Memory: &s.memory}
	}
}

func (a *app) printCreated(c *client.ClaimResponse) error {
	data := struct {
		ID              string               `json:"id"`
		Template        string               `json:"template"`
		ClusterID       *string              `json:"cluster_id,omitempty"`
		PodName         string               `json:"pod_name"`
		Status          client.SandboxState  `json:"status"`
		BootstrapMounts []client.MountStatus `json:"bootstrap_mounts,omitempty"`
	}{c.SandboxID, c.Template, c.ClusterID, c.PodName, c.Status, c.BootstrapMounts}
	fields := output.Fields{
		{"ID", c.SandboxID}, {"Template", c.Template}, {"Status", string(c.Status)}, {"Cluster", deref(c.ClusterID)},
	}
	for _, m := range c.BootstrapMounts {
		fields = append(fields, [2]string{"Mount", m.MountPoint + " ← " + m.SandboxvolumeID + " (" + string(m.State) + ")"})
	}
	if err := a.printer.Print(data, fields); err != nil || a.printer.Format != output.Table || !tty.Is(os.Stdout) {
		return err
	}
	note("")
	note("Try:  s0 sandbox exec -it %s -- bash", c.SandboxID)
	note("      s0 sandbox run %s 'print(6 * 7)'", c.SandboxID)
	return nil
}

func (a *app) sandboxList() *cobra.Command {
	var opts client.ListSandboxesOptions
	var status string
	var paused optionalBool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List your team's sandboxes, newest first",
		Example: "  s0 sandbox list\n  s0 sandbox list --status running --limit 200",
		Args:    want(),
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			opts.Status, opts.Paused = client.SandboxState(status), paused.value
			list, err := c.ListSandboxes(ctx, opts)
			if err != nil {
				return err
			}
			rows := output.Rows{
				Columns: []string{"ID", "TEMPLATE~", "STATUS", "CREATED", "EXPIRES", "HARD END?"},
				None:    "No sandboxes. `s0 sandbox create` claims one.",
			}
			for _, s := range list.Sandboxes {
				rows.Rows = append(rows.Rows, []string{s.ID, s.TemplateID, stateOf(s), since(s.CreatedAt), until(s.ExpiresAt), until(s.HardExpiresAt)})
			}
			if list.HasMore {
				next := opts.Offset + len(list.Sandboxes)
				defer note("%d of %d; the next with --offset %d", len(list.Sandboxes), list.Count, next)
			}
			return a.printer.Print(list, rows)
		}),
	}
	flags := cmd.Flags()
	flags.StringVar(&status, "status", "", "only those that are starting, running, paused, terminating or failed")
	flags.StringVar(&opts.TemplateID, "template-id", "", "only those of a template")
	flags.Var(&paused, "paused", "only those that are paused (true) or not (false)")
	flags.Lookup("paused").NoOptDefVal = "true"
	flags.IntVar(&opts.Limit, "limit", 0, "how many, 1 to 200 (default 50)")
	flags.IntVar(&opts.Offset, "offset", 0, "how many to leave out")
	complete(cmd, "status", "starting", "running", "paused", "terminating", "failed")
	completeFlag(cmd, "template-id", a.completeTemplates)
	return cmd
}

// stateOf is a sandbox's state, as far as the server can tell it.
func stateOf(s client.SandboxSummary) string {
	if deref(s.Unreachable) {
		return "unknown"
	}
	return string(s.Status)
}

func (a *app) sandboxGet() *cobra.Command {
	return &cobra.Command{
		Use:               "get <id>",
		Short:             "Show a sandbox",
		Example:           "  s0 sandbox get ID",
		Args:              want("the sandbox's id"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			sb, err := c.GetSandbox(ctx, args[0])
			if err != nil {
				return err
			}
			return a.printer.Print(sb, sandboxFields(sb))
		}),
	}
}

func (a *app) sandboxStatus() *cobra.Command {
	return &cobra.Command{
		Use:               "status <id>",
		Short:             "Show a sandbox's status in brief",
		Example:           "  s0 sandbox status ID",
		Args:              want("the sandbox's id"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			s, err := c.GetSandboxStatus(ctx, args[0])
			if err != nil {
				return err
			}
			return a.printer.Print(s, output.Fields{
				{"ID", s.SandboxID}, {"Status", string(s.Status)}, {"Template", s.TemplateID},
				{"Claimed", since(s.ClaimedAt)}, {"Expires", until(s.ExpiresAt)}, {"Hard expiry", until(s.HardExpiresAt)},
			})
		}),
	}
}

func (a *app) sandboxUpdate() *cobra.Command {
	var s settings
	var autoResume optionalBool
	cmd := &cobra.Command{
		Use:               "update <id>",
		Short:             "Change a sandbox's config; what is not named stays",
		Example:           "  s0 sandbox update ID --ttl 1h\n  s0 sandbox update ID --ttl 0 --auto-resume=false\n  s0 sandbox update ID -f config.yaml",
		Args:              want("the sandbox's id"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			config, err := s.updateConfig(autoResume.value)
			if err != nil {
				return err
			}
			sb, err := c.UpdateSandbox(ctx, args[0], config)
			if err != nil {
				return err
			}
			return a.printer.Print(sb, sandboxFields(sb))
		}),
	}
	s.register(cmd)
	cmd.Flags().Var(&autoResume, "auto-resume", "whether a request wakes the sandbox when it is paused: true or false")
	return cmd
}

func (s *settings) updateConfig(autoResume *bool) (client.SandboxUpdateConfig, error) {
	if s.empty() && autoResume == nil {
		return client.SandboxUpdateConfig{}, errors.New("nothing to change: name it with a flag or a file, see --help")
	}
	config, err := readConfig[client.SandboxUpdateConfig](s.file)
	if err != nil {
		return config, err
	}
	s.overlay(&config.TTL, &config.HardTTL, &config.Resources)
	if autoResume != nil {
		config.AutoResume = autoResume
	}
	return config, nil
}

func (a *app) sandboxRefresh() *cobra.Command {
	var duration seconds
	cmd := &cobra.Command{
		Use:               "refresh <id>",
		Short:             "Start a sandbox's ttl and hard ttl again from now",
		Example:           "  s0 sandbox refresh ID\n  s0 sandbox refresh ID --duration 1h",
		Args:              want("the sandbox's id"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			r, err := c.RefreshSandbox(ctx, args[0], duration.value)
			if err != nil {
				return err
			}
			return a.printer.Print(r, output.Fields{{"ID", r.SandboxID}, {"Expires", until(r.ExpiresAt)}, {"Hard expiry", until(r.HardExpiresAt)}})
		}),
	}
	cmd.Flags().Var(&duration, "duration", "the new ttl (default the sandbox's own)")
	return cmd
}

func (a *app) sandboxDelete() *cobra.Command {
	return &cobra.Command{
		Use:               "delete <id>...",
		Short:             "Terminate sandboxes and delete their state",
		Example:           "  s0 sandbox delete ID",
		Args:              wantSome("the sandbox's id"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			for _, id := range args {
				if err := c.DeleteSandbox(ctx, id); err != nil {
					return fmt.Errorf("deleting %s: %w", id, err)
				}
			}
			return a.done("Deleted %s.", strings.Join(args, ", "))
		}),
	}
}

func sandboxFields(s *client.Sandbox) output.Fields {
	fields := output.Fields{
		{"ID", s.ID}, {"Template", s.TemplateID}, {"Status", string(s.Status)}, {"Memory", deref(deref(s.Resources).Memory)},
		{"Team", s.TeamID}, {"Auto-resume", yesNo(s.AutoResume)}, {"Generation", fmt.Sprint(s.RuntimeGeneration)},
		{"Claimed", since(s.ClaimedAt)}, {"Expires", until(s.ExpiresAt)}, {"Hard expiry", until(s.HardExpiresAt)}, {"Updated", since(s.UpdatedAt)},
	}
	for _, svc := range s.Services {
		fields = append(fields, [2]string{"Service " + svc.ID, deref(svc.PublicURL)})
	}
	for _, m := range s.Mounts {
		fields = append(fields, [2]string{"Mount", m.MountPoint + " ← " + m.SandboxvolumeID})
	}
	return fields
}
