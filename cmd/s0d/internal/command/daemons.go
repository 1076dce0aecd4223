package command

import (
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"s0.run/api"
	"s0.run/internal/daemon"
	"s0.run/internal/imageref"
	"s0.run/netd"
	"s0.run/noded"
	"s0.run/volumed"
)

func apiCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "api", Short: "Run an API server alone", Args: cobra.NoArgs}
	var c api.Config
	f := cmd.Flags()
	f.StringVar(&c.Listen, "listen", "127.0.0.1:30080", "address of the API")
	f.StringVar(&c.DatabaseURL, "database-url", "", "PostgreSQL")
	secrets := secretFlags{
		secret(f, &c.DatabaseURL, "database-url-file", "file that has that URL"),
		secret(f, &c.AdminPassword, "admin-password-file", "file that has the first user's password"),
		secret(f, &c.MetricsToken, "metrics-token-file", "file that has a token with which /metrics can be read from elsewhere; without one it can't"),
	}
	f.StringSliceVar(&c.Nodes, "nodes", nil, "noded of this machine's nodes: unix:///path")
	f.StringVar(&c.NodeCADir, "node-ca", "", "directory of the authority for nodes that join (see s0d nodes pin), the same for all replicas, made when it is missing")
	f.StringVar(&c.NodeListen, "node-listen", "", "address where nodes join and renew their certificates, such as :30082")
	f.StringVar(&c.AdminSocket, "admin-socket", "", "unix socket of pprof")
	f.StringVar(&c.KeyFile, "key-file", "/var/lib/s0/api.key", "key that signs tokens, made when it is missing")
	f.StringVar(&c.RegionID, "region", "local", "region that API keys name")
	f.StringVar(&c.Cluster, "cluster", "local", "cluster that sandbox ids name")
	f.StringVar(&c.AdminEmail, "admin-email", "admin@example.com", "the first user, made when there is none")
	f.StringVar(&c.AdminPassword, "admin-password", "", "the first user's password; empty: it is generated and printed")
	f.StringVar(&c.DefaultImage, "default-image", "", "image of the builtin template; without one there is none")
	f.StringToStringVar(&c.TemplateImages, "template-images", nil, "images of the other builtin templates: browser=…,code-interpreter=…")
	f.StringVar(&c.Registry, "registry", "", "the image registry's host:port, as nodes reach it; without one images can't be pushed")
	f.StringVar(&c.PushRegistry, "push-registry", "", "where clients reach it (default the same)")
	f.StringVar(&c.RegistryKeyFile, "registry-key-file", "/var/lib/s0/registry.key", "key that signs registry credentials, the registry's own")
	f.StringSliceVar(&c.ImageRegistries, "image-registries", imageref.Public, "registries that teams' templates may name; * is every public one")
	f.IntVar(&c.PoolMin, "pool-min", 2, "warm sandboxes that the builtin template keeps at least")
	f.IntVar(&c.PoolMax, "pool-max", 8, "warm sandboxes that it keeps at most")
	f.StringSliceVar(&c.AllowedHosts, "allowed-hosts", nil, "names that this server answers to, beside loopback's and addresses")
	f.StringSliceVar(&c.TrustedProxies, "trusted-proxies", nil, "networks of proxies whose X-Forwarded-For is believed, such as 10.0.0.0/8")
	f.StringVar(&c.PublicDomain, "public-domain", "", "domain below which sandboxes' services have their names, the same for all replicas")
	f.Float64Var(&c.RateLimit, "rate-limit", 100, "requests a second of each team and each address")
	f.IntVar(&c.RateBurst, "rate-burst", 200, "requests at once of each team and each address")
	f.StringToInt64Var(&c.Quotas, "quotas", nil, "limits of teams without their own, such as active_sandboxes=100,memory_mib=65536")
	f.BoolVar(&c.WebhookAllowPrivate, "webhook-allow-private", false, "let webhooks reach loopback and private networks, for development")
	f.BoolVar(&c.AllowRegistration, "allow-registration", false, "let anybody sign up who reaches this server")
	f.StringVar(&c.OIDCFile, "oidc-config", "", "YAML file of the OpenID providers through which people sign in (docs/OIDC.md)")
	f.StringVar(&c.CredentialKeyFile, "credential-key", "", "public key that credentials are sealed to (see s0d credential-key); without one there are none")
	f.StringVar(&c.PoolNamespace, "pool-namespace", "", "namespace of Kubernetes in which pools are ReplicaSets; without one the nodes keep them")
	f.StringVar(&c.Kubeconfig, "kubeconfig", "", "how to reach Kubernetes (default: as the pod that this runs in)")
	f.DurationVar(&c.Drain, "drain", 0, "how long to serve on while /readyz says no, when told to stop: as long as a load balancer takes to notice")
	level := f.String("log-level", "info", "debug, info, warn or error")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := secrets.read(); err != nil {
			return err
		}
		log, err := daemon.NewLogger(os.Stderr, *level)
		if err != nil {
			return err
		}
		daemon.CollectLess()
		c.Log = log.With("daemon", "api")
		c.Ready = func(addr string) { c.Log.Info("serving", "address", addr) }
		c.OnBootstrap = func(email, password string) {
			cmd.PrintErrf("first user %s, password %s (shown this once)\n", email, password)
		}
		return api.Run(cmd.Context(), c)
	}
	return withFile(cmd)
}

func nodedCommand(version string) *cobra.Command {
	cmd := &cobra.Command{Use: "noded", Short: "Run one node's sandboxes alone", Args: cobra.NoArgs}
	c := noded.Default()
	c.Version = version
	f := cmd.Flags()
	f.StringVar(&c.Node, "node", c.Node, "name of this node")
	f.StringVar(&c.Cluster, "cluster", c.Cluster, "cluster that sandbox ids name")
	f.StringVar(&c.DataDir, "data-dir", c.DataDir, "journal and sandbox files")
	f.StringVar(&c.RunDir, "run-dir", c.RunDir, "sockets, namespaces and mounts")
	f.StringVar(&c.Socket, "socket", c.Socket, "unix socket of the node API")
	f.StringVar(&c.AdminSocket, "admin-socket", c.AdminSocket, "unix socket of metrics, health and pprof")
	memberFlags(f, &c)
	f.StringVar(&c.ContainerdSocket, "containerd-socket", "/run/containerd/containerd.sock", "containerd")
	f.StringVar(&c.ContainerdNamespace, "containerd-namespace", c.ContainerdNamespace, "containerd namespace that is all ours")
	f.StringVar(&c.Snapshotter, "snapshotter", c.Snapshotter, "containerd snapshotter of root file systems")
	f.StringVar(&c.Runsc, "runsc", "/usr/local/bin/runsc", "runsc")
	f.StringVar(&c.ProcdDir, "procd-dir", "/usr/local/lib/s0", "directory that holds procd and nothing else")
	f.StringVar(&c.CgroupParent, "cgroup-parent", c.CgroupParent, "control group that holds every sandbox's")
	f.StringSliceVar(&c.PlainHTTPRegistries, "plain-http-registries", nil, "registries without TLS, as host:port")
	f.StringSliceVar((*[]string)(&c.ImageRegistries), "image-registries", c.ImageRegistries, "registries that images may come from; one that is not public must be named exactly; * is every public one")
	f.StringVar(&c.RegistryAuthFile, "registry-auth-file", "", "this node's credentials for registries, in the format of docker's config.json")
	f.DurationVar(&c.KeepImages, "keep-images", c.KeepImages, "how long an image stays that nothing uses")
	f.StringVar(&c.ObjectStore, "object-store", "", objectStoreHelp)
	f.StringVar(&c.ObjectKeyFile, "object-key-file", "", "keys that seal them, a line of 64 hexadecimal digits each, the same on every node; the first one seals")
	f.BoolVar(&c.ObjectDryRun, "object-dry-run", false, objectDryRunHelp)
	f.IntVar(&c.MaxSandboxes, "max-sandboxes", c.MaxSandboxes, "sandboxes on this node, warm ones included")
	f.IntVar(&c.ColdStarts, "cold-starts", c.ColdStarts, "sandboxes started at once because no warm one was left")
	f.IntVar(&c.SandboxWriteOps, "sandbox-write-ops", c.SandboxWriteOps, sandboxWriteOpsHelp)
	f.BoolVar(&c.AllowRunc, "allow-runc", false, allowRuncHelp)
	f.BoolVar(&c.AllowOldRunc, "allow-old-runc", false, allowOldRuncHelp)
	f.TextVar(&c.SandboxCIDR, "sandbox-cidr", c.SandboxCIDR, "the sandboxes' IPv4 addresses")
	f.TextVar(&c.SandboxCIDR6, "sandbox-cidr6", c.SandboxCIDR6, "the sandboxes' IPv6 addresses, a /64")
	f.StringVar(&c.NetdSocket, "netd-socket", c.NetdSocket, "unix socket of this node's netd; without one sandboxes reach nothing")
	f.StringVar(&c.VolumedSocket, "volumed-socket", c.VolumedSocket, "unix socket of this node's volumed; without one there are no volumes")
	f.BoolVar(&c.Simulate, "simulate", false, "run everything but sandboxes, to load-test what is above")
	level := f.String("log-level", "info", "debug, info, warn or error")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		log, err := daemon.NewLogger(os.Stderr, *level)
		if err != nil {
			return err
		}
		c.Log = log.With("daemon", "noded")
		c.Ready = func() { c.Log.Info("serving", "socket", c.Socket) }
		return noded.Run(cmd.Context(), c)
	}
	return withFile(cmd)
}

// memberFlags are for a node of a cluster.
func memberFlags(f *pflag.FlagSet, c *noded.Config) {
	f.StringVar(&c.Listen, "listen", "", "address where API servers on other machines reach the node API, such as :30083; without one there are none")
	f.StringVar(&c.Advertise, "advertise", "", "host:port where they are told to reach it (default: this machine's address on its way to them)")
	f.StringVar(&c.ControlPlane, "control-plane", "", "host:port where the API servers let nodes join (their --node-listen); without one node.pem and ca.crt in --cert-dir are somebody else's to keep")
	f.StringVar(&c.ControlPlanePin, "control-plane-pin", "", "pin of their authority, as s0d nodes pin prints it; or")
	f.StringVar(&c.ControlPlaneCA, "control-plane-ca", "", "file with its certificate")
	f.StringVar(&c.JoinTokenFile, "join-token-file", "", "file with the token that lets this node join")
	f.StringVar(&c.CertDir, "cert-dir", "", "directory of this node's key and certificate (default cert in --data-dir)")
}

func netdCommand(version string) *cobra.Command {
	cmd := &cobra.Command{Use: "netd", Short: "Run the network of one node's sandboxes alone", Args: cobra.NoArgs}
	c := netd.Default()
	c.Version = version
	f := cmd.Flags()
	f.StringVar(&c.NetNS, "netns", c.NetNS, "the sandboxes' network namespace, which noded makes")
	f.StringVar(&c.RunDir, "run-dir", c.RunDir, "tables that outlive this process")
	f.StringVar(&c.Socket, "socket", c.Socket, "unix socket for noded")
	f.StringVar(&c.AdminSocket, "admin-socket", "", "unix socket of health and pprof")
	f.TextVar(&c.SandboxCIDR, "sandbox-cidr", c.SandboxCIDR, "the sandboxes' IPv4 addresses, as noded gives them out")
	f.TextVar(&c.SandboxCIDR6, "sandbox-cidr6", c.SandboxCIDR6, "the sandboxes' IPv6 addresses, a /64")
	f.Var((*networks)(&c.Deny), "deny", "networks that no sandbox ever reaches, such as the control plane's")
	f.Var((*networks)(&c.PlatformDenied), "platform-denied", "networks that are denied before any policy's rules")
	f.Var((*networks)(&c.PlatformAllowed), "platform-allowed", "networks that are allowed before any policy's rules")
	f.Var((*resolvers)(&c.Resolvers), "resolvers", resolversHelp)
	f.StringVar(&c.CredentialKeyDir, "credential-keys", "", "directory of the keys that open credentials")
	level := f.String("log-level", "info", "debug, info, warn or error")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		log, err := daemon.NewLogger(os.Stderr, *level)
		if err != nil {
			return err
		}
		c.Log = log.With("daemon", "netd")
		return netd.Run(cmd.Context(), c)
	}
	return withFile(cmd)
}

const resolversHelp = "address:port of the resolvers to ask for sandboxes' names (default: the machine's own)"

// resolvers is a flag's list of addresses with ports.
type resolvers []netip.AddrPort

func (r *resolvers) Type() string { return "addresses" }

func (r *resolvers) String() string {
	all := make([]string, len(*r))
	for i, a := range *r {
		all[i] = a.String()
	}
	return strings.Join(all, ",")
}

func (r *resolvers) Set(list string) error {
	for text := range strings.SplitSeq(list, ",") {
		a, err := netip.ParseAddrPort(strings.TrimSpace(text))
		if err != nil {
			return err
		}
		*r = append(*r, a)
	}
	return nil
}

func volumedCommand(version string) *cobra.Command {
	cmd := &cobra.Command{
		Use: "volumed", Short: "Run the volumes of one node alone", Args: cobra.NoArgs,
		Long: "Runs the volumes of one node alone. Secrets are read from the environment: META_PASSWORD of the metadata's database,\n" +
			"ACCESS_KEY and SECRET_KEY of the bucket, JFS_RSA_PASSPHRASE of the key that encrypts what is stored.",
	}
	c := volumed.Default()
	c.Version = version
	f := cmd.Flags()
	f.StringVar(&c.Node, "node", c.Node, "name of this node, which no other of the same store has")
	f.StringVar(&c.DataDir, "data-dir", c.DataDir, "what is written to volumes and not committed, and the store where it is local")
	f.StringVar(&c.RunDir, "run-dir", c.RunDir, "mounts")
	f.StringVar(&c.Socket, "socket", c.Socket, "unix socket for noded")
	f.StringVar(&c.JuiceFS, "juicefs", "", "juicefs; without it the store is a plain directory of this machine")
	f.StringVar(&c.Meta, "meta", "", "URL of JuiceFS's metadata, such as postgres://user@host/db?search_path=volumes (default Badger, in the data directory)")
	f.StringVar(&c.Bucket, "bucket", "", "URL of the S3 bucket that holds volumes (default a directory in the data directory)")
	f.StringVar(&c.KeyFile, "encrypt-key", "", "RSA private key that encrypts what is stored; for a store that is new")
	f.IntVar(&c.CacheMiB, "cache-mib", c.CacheMiB, "MiB of a bucket's data that this node keeps")
	f.StringVar(&c.CredentialKeys, "credential-keys", "", "directory of the keys that open credentials of buckets that are volumes (see s0d credential-key); without it there are none")
	f.BoolVar(&c.BucketsPrivate, "buckets-allow-private", false, bucketsPrivateHelp)
	level := f.String("log-level", "info", "debug, info, warn or error")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		log, err := daemon.NewLogger(os.Stderr, *level)
		if err != nil {
			return err
		}
		c.Log = log.With("daemon", "volumed")
		return volumed.Run(cmd.Context(), c)
	}
	return withFile(cmd)
}

// volumeFilesCommand is what volumed starts for a volume whose files are asked for.
func volumeFilesCommand() *cobra.Command {
	return &cobra.Command{
		Use: "volume-files", Hidden: true, DisableFlagParsing: true,
		Run: func(_ *cobra.Command, args []string) { os.Exit(volumed.FilesMain(args)) },
	}
}

// volumeBucketCommand is what volumed starts for a volume that is a bucket.
func volumeBucketCommand() *cobra.Command {
	return &cobra.Command{
		Use: "volume-bucket", Hidden: true, DisableFlagParsing: true,
		Run: func(_ *cobra.Command, args []string) { os.Exit(volumed.BucketMain(args)) },
	}
}

// networks is a flag's list of prefixes.
type networks []netip.Prefix

func (n *networks) Type() string { return "networks" }

func (n *networks) String() string {
	all := make([]string, len(*n))
	for i, p := range *n {
		all[i] = p.String()
	}
	return strings.Join(all, ",")
}

func (n *networks) Set(list string) error {
	for text := range strings.SplitSeq(list, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return err
		}
		*n = append(*n, p.Masked())
	}
	return nil
}
