package cli

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

func (a *app) network() *cobra.Command {
	var sandbox string
	return a.inSandbox(&sandbox, group("network", "What a sandbox may reach, and with whose credentials",
		"  s0 sandbox network -s ID get\n  s0 sandbox network -s ID update --mode block-all --allow-domain '*.pypi.org' --allow-port 443",
		a.networkGet(&sandbox), a.networkUpdate(&sandbox)))
}

func (a *app) networkGet(sandbox *string) *cobra.Command {
	return &cobra.Command{
		Use:     "get",
		Short:   "Show a sandbox's network policy; -o yaml shows it as update takes it",
		Example: "  s0 sandbox network -s ID get\n  s0 sandbox network -s ID get -o yaml > policy.yaml",
		Args:    want(),
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			p, err := c.SandboxNetwork(ctx, *sandbox)
			if err != nil {
				return err
			}
			return a.printer.Print(p, networkRows(p))
		}),
	}
}

// networkFlags are the flags of `update`. What is not given stays as it is.
type networkFlags struct {
	file, mode, enforcement                 string
	allowCIDRs, allowDomains, allowPorts    []string
	denyCIDRs, denyDomains, denyPorts       []string
	traffic, protocol, credential, bindings []string
	proxy, proxyRef, proxySource            string
}

func (a *app) networkUpdate(sandbox *string) *cobra.Command {
	var n networkFlags
	cmd := &cobra.Command{
		Use:   "update",
		Short: "Change a sandbox's network policy",
		Long: `Change a sandbox's network policy: that of a file, or the one that it has, with
the lists that flags name replaced. Another mode drops the lists that were
exceptions to the old one.

Rules and bindings are YAML or JSON, such as
  --traffic-rule '{name: git, action: allow, domains: [github.com], ports: [{port: 443}]}'
  --credential-binding '{ref: gh, sourceRef: github, projection: {type: http_headers,
      httpHeaders: {headers: [{name: Authorization, valueTemplate: "Bearer {{ .token }}"}]}}}'
  --credential-rule '{credentialRef: gh, protocol: https, domains: [api.github.com]}'`,
		Example: `  s0 sandbox network -s ID update --mode block-all --allow-domain '*.pypi.org' --allow-port 443/tcp
  s0 sandbox network -s ID update --enforcement audit-only
  s0 sandbox network -s ID update -f policy.yaml`,
		Args: want(),
	}
	cmd.RunE = a.run(func(ctx context.Context, c *client.Client, _ []string) error {
		p, err := n.start(ctx, c, *sandbox)
		if err == nil {
			err = n.overlay(p, cmd.Flags())
		}
		if err != nil {
			return err
		}
		p, err = c.UpdateSandboxNetwork(ctx, *sandbox, *p)
		if err != nil {
			return err
		}
		return a.printer.Print(p, networkRows(p))
	})
	n.register(cmd)
	return cmd
}

func (n *networkFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&n.file, "file", "f", "", "policy in YAML or JSON, - for stdin; flags go before it")
	f.StringVar(&n.mode, "mode", "", "allow-all or block-all")
	f.StringVar(&n.enforcement, "enforcement", "", "enforce, or audit-only to record what would be denied")
	f.StringArrayVar(&n.allowCIDRs, "allow-cidr", nil, "network that is allowed under block-all; may be repeated, like the next ones")
	f.StringArrayVar(&n.allowDomains, "allow-domain", nil, "name, or *.name, that is allowed")
	f.StringArrayVar(&n.allowPorts, "allow-port", nil, "port that is allowed: 443, 443/tcp, 5000-5100/udp")
	f.StringArrayVar(&n.denyCIDRs, "deny-cidr", nil, "network that is denied under allow-all")
	f.StringArrayVar(&n.denyDomains, "deny-domain", nil, "name that is denied")
	f.StringArrayVar(&n.denyPorts, "deny-port", nil, "port that is denied")
	f.StringArrayVar(&n.traffic, "traffic-rule", nil, "rule; the first that matches decides")
	f.StringArrayVar(&n.protocol, "protocol-rule", nil, "rule about HTTP requests or MCP tools")
	f.StringArrayVar(&n.credential, "credential-rule", nil, "rule that says which requests carry which credential")
	f.StringArrayVar(&n.bindings, "credential-binding", nil, "credential source that rules may use")
	f.StringVar(&n.proxy, "proxy", "", "socks5://host:port through which TCP leaves; empty for none")
	f.StringVar(&n.proxyRef, "proxy-credential-ref", "", "binding with the proxy's user and password")
	f.StringVar(&n.proxySource, "proxy-credential-source", "", "credential source with them, bound under --proxy-credential-ref (default proxy)")
	complete(cmd, "mode", "allow-all", "block-all")
	complete(cmd, "enforcement", "enforce", "audit-only")
}

// start is the policy that flags change.
func (n *networkFlags) start(ctx context.Context, c *client.Client, sandbox string) (*client.SandboxNetworkPolicy, error) {
	if n.file == "" {
		return c.SandboxNetwork(ctx, sandbox)
	}
	p, err := readConfig[client.SandboxNetworkPolicy](n.file)
	return &p, err
}

func (n *networkFlags) overlay(p *client.SandboxNetworkPolicy, flags *pflag.FlagSet) error {
	if p.Egress == nil {
		p.Egress = &client.NetworkEgress{}
	}
	e := p.Egress
	if n.mode != "" && client.SandboxNetworkPolicyMode(n.mode) != p.Mode {
		p.Mode = client.SandboxNetworkPolicyMode(n.mode)
		e.AllowedCidrs, e.AllowedDomains, e.AllowedPorts = nil, nil, nil
		e.DeniedCidrs, e.DeniedDomains, e.DeniedPorts = nil, nil, nil
	}
	if n.enforcement != "" {
		p.Enforcement = new(client.SandboxNetworkPolicyEnforcement(n.enforcement))
	}
	for flag, list := range map[string]struct{ from, into *[]string }{
		"allow-cidr": {&n.allowCIDRs, &e.AllowedCidrs}, "allow-domain": {&n.allowDomains, &e.AllowedDomains},
		"deny-cidr": {&n.denyCIDRs, &e.DeniedCidrs}, "deny-domain": {&n.denyDomains, &e.DeniedDomains},
	} {
		if flags.Changed(flag) {
			*list.into = *list.from
		}
	}
	for flag, list := range map[string]struct {
		from []string
		into *[]client.PortSpec
	}{"allow-port": {n.allowPorts, &e.AllowedPorts}, "deny-port": {n.denyPorts, &e.DeniedPorts}} {
		if err := overlayAll(flags, flag, list.from, list.into, parsePortSpec); err != nil {
			return err
		}
	}
	if err := n.overlayRules(p, flags); err != nil {
		return err
	}
	return n.overlayProxy(p, flags)
}

func (n *networkFlags) overlayRules(p *client.SandboxNetworkPolicy, flags *pflag.FlagSet) error {
	e := p.Egress
	if err := overlayAll(flags, "traffic-rule", n.traffic, &e.TrafficRules, parseInline[client.TrafficRule]); err != nil {
		return err
	}
	if err := overlayAll(flags, "protocol-rule", n.protocol, &e.ProtocolRules, parseInline[client.ProtocolRule]); err != nil {
		return err
	}
	if err := overlayAll(flags, "credential-rule", n.credential, &e.CredentialRules, parseInline[client.CredentialRule]); err != nil {
		return err
	}
	return overlayAll(flags, "credential-binding", n.bindings, &p.CredentialBindings, parseInline[client.CredentialBinding])
}

// overlayAll replaces a list by what a flag said, if it said anything.
func overlayAll[T any](flags *pflag.FlagSet, flag string, from []string, into *[]T, parse func(string) (T, error)) error {
	if !flags.Changed(flag) {
		return nil
	}
	*into = []T{}
	for _, text := range from {
		v, err := parse(text)
		if err != nil {
			return fmt.Errorf("--%s: %w", flag, err)
		}
		*into = append(*into, v)
	}
	return nil
}

func parseInline[T any](text string) (T, error) {
	var doc map[string]any
	var none T
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		return none, fmt.Errorf("%.80q is neither YAML nor JSON", text)
	}
	return decodeDocument[T](fmt.Sprintf("%.80q", text), doc)
}

// parsePortSpec reads 443, 443/tcp and 5000-5100/udp.
func parsePortSpec(text string) (client.PortSpec, error) {
	ports, proto, named := strings.Cut(text, "/")
	first, last, ranged := strings.Cut(ports, "-")
	port, err := parsePort(first)
	if err != nil {
		return client.PortSpec{}, err
	}
	spec := client.PortSpec{Port: port}
	if ranged {
		end, err := parsePort(last)
		if err != nil {
			return client.PortSpec{}, err
		}
		spec.EndPort = &end
	}
	if named {
		spec.Protocol = new(client.PortSpecProtocol(proto))
	}
	return spec, nil
}

func (n *networkFlags) overlayProxy(p *client.SandboxNetworkPolicy, flags *pflag.FlagSet) error {
	if flags.Changed("proxy") {
		p.Egress.Proxy = nil
		if n.proxy != "" {
			u, err := url.Parse(n.proxy)
			if err != nil || u.Scheme != "socks5" || u.Port() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" {
				return fmt.Errorf("--proxy %q: want socks5://host:port; its user and password are a credential", n.proxy)
			}
			p.Egress.Proxy = &client.EgressProxy{Type: "socks5", Address: u.Host}
		}
	}
	ref := n.proxyRef
	if n.proxySource != "" {
		if ref == "" {
			ref = "proxy"
		}
		p.CredentialBindings = append(p.CredentialBindings, client.CredentialBinding{
			Ref: ref, SourceRef: n.proxySource, Projection: client.CredentialProjection{Type: "username_password"},
		})
	}
	if ref == "" {
		return nil
	}
	if p.Egress.Proxy == nil {
		return fmt.Errorf("--proxy-credential-ref and --proxy-credential-source go with --proxy")
	}
	p.Egress.Proxy.CredentialRef = &ref
	return nil
}

func networkRows(p *client.SandboxNetworkPolicy) output.Rows {
	rows := output.Rows{Columns: []string{"RULE~", "ACTION", "TO~", "PORTS?"}}
	add := func(name, action, to string, ports []client.PortSpec) {
		rows.Rows = append(rows.Rows, []string{name, action, to, showPorts(ports)})
	}
	if e := p.Egress; e != nil {
		if len(e.AllowedCidrs)+len(e.AllowedDomains)+len(e.AllowedPorts) > 0 {
			add("allowed", "allow", showList(e.AllowedCidrs, e.AllowedDomains), e.AllowedPorts)
		}
		if len(e.DeniedCidrs)+len(e.DeniedDomains) > 0 {
			add("denied", "deny", showList(e.DeniedCidrs, e.DeniedDomains), nil)
		}
		if len(e.DeniedPorts) > 0 {
			add("denied ports", "deny", "any", e.DeniedPorts)
		}
		for _, r := range e.TrafficRules {
			add(deref(r.Name), string(r.Action), showList(r.Cidrs, r.Domains), r.Ports)
		}
		for _, r := range e.ProtocolRules {
			add(deref(r.Name), string(r.Protocol)+" rule", showList(r.Domains), r.Ports)
		}
		for _, r := range e.CredentialRules {
			add(deref(r.Name), "carry "+r.CredentialRef, showList(r.Domains), r.Ports)
		}
		if e.Proxy != nil {
			add("proxy", "through", e.Proxy.Address, nil)
		}
	}
	mode := string(p.Mode)
	if p.Enforcement != nil {
		mode += ", " + string(*p.Enforcement)
	}
	add("mode", mode, "any", nil)
	return rows
}

func showList(lists ...[]string) string {
	var all []string
	for _, l := range lists {
		all = append(all, l...)
	}
	if len(all) == 0 {
		return "any"
	}
	return strings.Join(all, " ")
}

func showPorts(ports []client.PortSpec) string {
	if len(ports) == 0 {
		return "any"
	}
	var all []string
	for _, p := range ports {
		text := strconv.Itoa(int(p.Port))
		if p.EndPort != nil && *p.EndPort != p.Port {
			text += "-" + strconv.Itoa(int(*p.EndPort))
		}
		if p.Protocol != nil {
			text += "/" + string(*p.Protocol)
		}
		all = append(all, text)
	}
	return strings.Join(all, " ")
}
