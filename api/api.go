// Package api is s0's API server: REST and WebSocket for clients, the node API
// towards the nodes, PostgreSQL for what must not be forgotten.
//
// Any number of replicas may run over one database. Each keeps in memory what it
// can lose: the nodes' slots, templates, API keys that were verified lately. The
// package wires its parts together and owns their goroutines while [Run] runs;
// what they do is theirs (see the packages below internal).
package api

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"s0.run/api/internal/apidoc"
	"s0.run/api/internal/quota"
	"s0.run/internal/imageref"
)

// contract is what the server serves, in the words that its clients read.
//
//go:embed openapi.yaml
var contract []byte

// readContract makes what is served of it, once in a process: it does not change, and takes
// some 50 ms.
var readContract = sync.OnceValues(func() (*apidoc.Doc, error) { return apidoc.New(contract) })

// Config is an API server's configuration. Every field without a default is
// required.
type Config struct {
	Listen      string   // host:port; defaults to 127.0.0.1:30080
	DatabaseURL string   // of PostgreSQL
	Nodes       []string // unix sockets of this machine's node APIs, with or without unix://
	// Local asks the one node of Nodes that is in this process; nil: its socket is dialled.
	Local       http.RoundTripper
	AdminSocket string // unix socket of pprof and metrics; none when empty
	KeyFile     string // 32 bytes that sign access tokens; made when absent

	// NodeCADir is the directory of the authority that certifies the cluster's other nodes,
	// which join at NodeListen (host:port): the same authority for all replicas, made when
	// absent. Empty: there are no others.
	NodeCADir, NodeListen string

	RegionID string // named by API keys; defaults to local
	Cluster  string // named by sandbox ids; defaults to local

	// PublicDomain is the domain below which sandboxes' services have their names,
	// <id>--p<port>.<region>.<domain>, https unless it starts with http://. It must
	// be the same for all replicas; the default serves this machine alone.
	PublicDomain string

	AdminEmail    string                       // of the first user; defaults to admin@example.com
	AdminPassword string                       // of the first user; generated when empty
	OnBootstrap   func(email, password string) // called once, when the first user was made

	// AllowRegistration lets anybody sign up who reaches this server, and gives him
	// a team of his own.
	AllowRegistration bool

	DefaultImage string // of the builtin template `default`; empty: there is none
	PoolMin      int    // idle slots that it keeps
	PoolMax      int    // and may grow to

	TemplateImages map[string]string // of the other builtin templates, by template; one without is listed and can't be claimed

	// Registry is the machine's own image registry, host:port as nodes and templates
	// name it; empty: there is none. PushRegistry is where clients push to it, the
	// same by default. RegistryKeyFile signs their credentials, made when absent.
	Registry, PushRegistry, RegistryKeyFile string
	// ImageRegistries are the registries that teams' templates may name beside it;
	// defaults to those that everybody knows.
	ImageRegistries []string

	AllowedHosts []string // names that this server answers to, beside loopback's and addresses
	// TrustedProxies are the networks (CIDR) of proxies whose X-Forwarded-For tells
	// where a request comes from; of anybody else it is not read.
	TrustedProxies []string

	RateLimit float64 // requests a second of each team and each address; defaults to 100
	RateBurst int     // requests at once; defaults to 200

	// Quotas are the limits, by dimension, of every team that has none of its own;
	// the same for all replicas.
	Quotas map[string]int64

	// WebhookAllowPrivate lets webhooks reach loopback and private networks, and
	// this machine itself: whatever this server reaches, every tenant may then call.
	WebhookAllowPrivate bool

	// OIDCFile is a YAML file that names the OpenID providers through which people
	// sign in; docs/OIDC.md describes it. Empty: there are none.
	OIDCFile string

	// PoolNamespace is the namespace of Kubernetes in which templates' pools are kept, as
	// ReplicaSets, which Kubeconfig leads to (empty: the pod's own service account);
	// empty: the nodes keep the pools.
	PoolNamespace, Kubeconfig string

	// CredentialKeyFile is the public key that credential sources are sealed to; netd
	// has the private one. Empty: there are no credential sources.
	CredentialKeyFile string

	// MetricsToken lets who has it read /metrics from another machine; empty: nobody
	// may. It tells about every tenant, so it is a secret like a key.
	MetricsToken string

	// Drain is how long a server that is told to stop serves on while /readyz says
	// no, so that a load balancer stops asking it before it takes no more. Defaults
	// to nothing: who asks one server alone gains nothing by waiting.
	Drain time.Duration

	Log   *slog.Logger
	Ready func(addr string) // called when requests are served
}

func (c Config) withDefaults() (Config, error) {
	def := func(s *string, value string) {
		if *s == "" {
			*s = value
		}
	}
	def(&c.Listen, "127.0.0.1:30080")
	def(&c.RegionID, "local")
	def(&c.Cluster, "local")
	def(&c.AdminEmail, "admin@example.com")
	def(&c.PushRegistry, c.Registry)
	if c.ImageRegistries == nil {
		c.ImageRegistries = imageref.Public
	}
	if c.RateLimit == 0 {
		c.RateLimit = 100
	}
	if c.RateBurst == 0 {
		c.RateBurst = 200
	}
	nodes := make([]string, len(c.Nodes))
	for i, n := range c.Nodes {
		nodes[i] = strings.TrimPrefix(n, "unix://")
	}
	c.Nodes = nodes
	return c, c.check()
}

// minMetricsToken keeps a token for metrics from being guessed.
const minMetricsToken = 16

func (c Config) check() error {
	switch {
	case c.DatabaseURL == "":
		return errors.New("api: a database URL is required")
	case len(c.Nodes) == 0 && c.NodeCADir == "":
		return errors.New("api: at least one node is required, or an authority for nodes that join")
	case c.NodeListen != "" && c.NodeCADir == "":
		return errors.New("api: nodes can't join without an authority")
	case c.KeyFile == "":
		return errors.New("api: a key file is required")
	case c.Registry != "" && c.RegistryKeyFile == "":
		return errors.New("api: a registry needs a registry key file")
	case c.Log == nil:
		return errors.New("api: a logger is required")
	case c.MetricsToken != "" && len(c.MetricsToken) < minMetricsToken:
		return fmt.Errorf("api: the token for metrics: want at least %d characters", minMetricsToken)
	case c.PoolMin < 0 || c.PoolMax < c.PoolMin:
		return fmt.Errorf("api: pool of %d to %d idle slots: want 0 ≤ min ≤ max", c.PoolMin, c.PoolMax)
	case c.RateLimit < 0 || c.RateBurst < 1:
		return fmt.Errorf("api: rate limit of %v a second, %d at once: want more than 0", c.RateLimit, c.RateBurst)
	}
	if _, err := c.proxies(); err != nil {
		return err
	}
	if _, err := quota.Defaults(c.Quotas); err != nil {
		return fmt.Errorf("api: %w", err)
	}
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return fmt.Errorf("api: listen address: %w", err)
	}
	return nil
}

func (c Config) proxies() (list []netip.Prefix, err error) {
	for _, s := range c.TrustedProxies {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("api: trusted proxies: want networks like 10.0.0.0/8: %w", err)
		}
		list = append(list, p.Masked())
	}
	return list, nil
}

// Run serves until ctx ends or a part of the server fails.
func Run(ctx context.Context, cfg Config) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	s, err := open(ctx, cfg)
	if err != nil {
		return err
	}
	defer s.close()
	return s.run(ctx)
}
