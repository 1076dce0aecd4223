// Package command is the command line of s0d.
//
// It turns flags and the configuration file into the components' Configs, and
// holds every default. It starts nothing itself but the background server, and
// keeps no state.
package command

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"s0.run/cmd/s0d/internal/machine"
	"s0.run/internal/daemon"
	"s0.run/internal/failpoint"
	"s0.run/internal/imageref"
	"s0.run/noded"
)

// Main runs the command line and returns the exit code.
func Main(version string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := failpoint.Arm(os.Getenv(failpoint.EnvVar)); err != nil {
		fmt.Fprintln(os.Stderr, "s0d:", err)
		return 1
	}
	if err := root(version).ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "s0d:", err)
		return 1
	}
	return 0
}

func root(version string) *cobra.Command {
	cmd := &cobra.Command{
		Use:           "s0d",
		Short:         "The s0 server: sandboxes for AI agents on your own machines",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version,
	}
	cmd.AddCommand(
		upCommand(version), downCommand(version), statusCommand(version), doctorCommand(version), resetCommand(version),
		apiCommand(), nodedCommand(version), netdCommand(version), volumedCommand(version), containerdCommand(),
		installCommand(), probeCommand(), credentialKeyCommand(), nodesCommand(), versionCommand(version),
		volumeFilesCommand(), volumeBucketCommand(),
	)
	cmd.CompletionOptions.HiddenDefaultCmd = true
	return cmd
}

func versionCommand(version string) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), version) },
	}
}

// withFile lets a YAML file set the flags that the command line left alone.
func withFile(cmd *cobra.Command) *cobra.Command {
	file := cmd.Flags().String("config", "", "YAML file whose keys are the names of these flags")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if *file == "" {
			return nil
		}
		return daemon.LoadFile(cmd.Flags(), *file)
	}
	return cmd
}

const (
	allowRuncHelp       = "let templates choose the runtime class runc, which shares the host's kernel: for tenants that you trust"
	objectStoreHelp     = "keep paused sandboxes in an object store, too: s3://bucket/prefix?endpoint=https://host:port&region=name with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, or file:///directory on another disk (default nowhere)"
	objectDryRunHelp    = "only log what of uploads that were cut off would be collected from the object store"
	bucketsPrivateHelp  = "let volumes be buckets on loopback and private networks, such as those of a store of one's own"
	sandboxWriteOpsHelp = "writes a second to the machine's disk that a sandbox waits for, at most; negative: any number"
	volumesHelp         = "offer volumes: a preview; where a team has no quota of volume_storage_gb nothing but the disk bounds them"
	allowOldRuncHelp    = "with --allow-runc, also by a runc that is known to let sandboxes out (CVE-2025-31133 and others): for development"
)

// machineFlags registers the flags of a one-machine instance; every command that
// names one has them all, so that one configuration file serves them.
func machineFlags(f *pflag.FlagSet, version string) *machine.Config {
	bin := "/usr/local/bin"
	if self, err := os.Executable(); err == nil {
		bin = filepath.Dir(self)
	}
	node := noded.Default()
	c := &machine.Config{Version: version}
	f.StringVar(&c.DataDir, "data-dir", "/var/lib/s0", "what must survive a reboot")
	f.StringVar(&c.RunDir, "run-dir", "/run/s0", "sockets, mounts and what a reboot may take")
	f.StringVar(&c.Listen, "listen", "127.0.0.1:30080", "address of the API")
	f.StringSliceVar(&c.AllowedHosts, "allowed-hosts", nil, "names that the API answers to, beside loopback's and addresses")
	f.StringSliceVar(&c.TrustedProxies, "trusted-proxies", nil, "networks of proxies whose X-Forwarded-For is believed, such as 10.0.0.0/8")
	f.StringVar(&c.PublicDomain, "public-domain", "", "domain below which sandboxes' services have their names; empty: this machine's alone")
	f.StringVar(&c.PoolNamespace, "pool-namespace", "", "namespace of Kubernetes in which pools are ReplicaSets (see s0-vk); without one this machine keeps them")
	f.StringVar(&c.Kubeconfig, "kubeconfig", "", "how to reach that Kubernetes")
	f.Float64Var(&c.RateLimit, "rate-limit", 100, "requests a second of each team and each address")
	f.IntVar(&c.RateBurst, "rate-burst", 200, "requests at once of each team and each address")
	f.StringToInt64Var(&c.Quotas, "quotas", nil, "limits of teams without their own, such as active_sandboxes=100,memory_mib=65536")
	f.BoolVar(&c.HooksPrivate, "webhook-allow-private", false, "let webhooks reach loopback and private networks, for development")
	f.BoolVar(&c.AllowRegistration, "allow-registration", false, "let anybody sign up who reaches this server")
	f.StringVar(&c.OIDCFile, "oidc-config", "", "YAML file of the OpenID providers through which people sign in (docs/OIDC.md)")
	f.StringVar(&c.RegistryListen, "registry-listen", "127.0.0.1:30081", "loopback address of the local registry")
	f.StringVar(&c.PushRegistry, "push-registry", "", "host and port where clients push images, if a proxy serves the registry to them (default the registry's own)")
	f.StringSliceVar(&c.ImageRegistries, "image-registries", imageref.Public, "registries that teams' templates may name; one that is not public must be named exactly; * is every public one")
	f.DurationVar(&c.KeepImages, "keep-images", node.KeepImages, "how long the node keeps an image that nothing uses")
	f.StringVar(&c.ObjectStore, "object-store", "", objectStoreHelp)
	f.StringVar(&c.ObjectKeyFile, "object-key-file", "", "keys that seal them (default one in --data-dir, made when it is missing): whoever loses it loses them")
	f.BoolVar(&c.ObjectDryRun, "object-dry-run", false, objectDryRunHelp)
	f.BoolVar(&c.Volumes, "volumes", false, volumesHelp)
	f.BoolVar(&c.BucketsPrivate, "buckets-allow-private", false, bucketsPrivateHelp)
	f.StringVar(&c.DatabaseURL, "database-url", "", "a PostgreSQL to use instead of a private one")
	f.StringVar(&c.DefaultImage, "default-image", "", "image of the builtin template, by reference (default the one in --image-dir)")
	f.StringVar(&c.ImageDir, "image-dir", filepath.Join(filepath.Dir(bin), "images", "default"), "OCI layout of the builtin template's image; those of the others are served from the directories beside it")
	f.IntVar(&c.PoolMin, "pool-min", 2, "warm sandboxes that the builtin template keeps at least")
	f.IntVar(&c.PoolMax, "pool-max", 8, "warm sandboxes that it keeps at most")
	f.IntVar(&c.MaxSandboxes, "max-sandboxes", node.MaxSandboxes, "sandboxes on this machine, warm ones included")
	f.IntVar(&c.ColdStarts, "cold-starts", node.ColdStarts, "sandboxes started at once because no warm one was left")
	f.IntVar(&c.SandboxWriteOps, "sandbox-write-ops", node.SandboxWriteOps, sandboxWriteOpsHelp)
	f.BoolVar(&c.AllowRunc, "allow-runc", false, allowRuncHelp)
	f.BoolVar(&c.AllowOldRunc, "allow-old-runc", false, allowOldRuncHelp)
	f.TextVar(&c.SandboxCIDR, "sandbox-cidr", node.SandboxCIDR, "the sandboxes' IPv4 addresses, seen by nobody but this machine")
	f.TextVar(&c.SandboxCIDR6, "sandbox-cidr6", node.SandboxCIDR6, "the same of IPv6, a /64")
	f.Var((*networks)(&c.Deny), "deny", "networks that no sandbox ever reaches, such as those of what manages this machine")
	f.Var((*resolvers)(&c.Resolvers), "resolvers", resolversHelp)
	f.StringVar(&c.CgroupParent, "cgroup-parent", node.CgroupParent, "control group that holds every sandbox's, of this instance alone")
	f.StringVar(&c.Cluster, "cluster", node.Cluster, "name that prefixes every sandbox's id")
	f.IntVar(&c.Nice, "nice", 5, "nice value of containerd and sandboxes, so that the API stays quick beside them")
	f.StringVar(&c.BinDir, "bin-dir", bin, "directory of containerd, runsc, the shim and procd")
	f.StringVar(&c.PostgresBin, "postgres-bin", "", "directory of initdb and postgres (default the newest installed)")
	f.StringVar(&c.PostgresUser, "postgres-user", "postgres", "unprivileged user that runs the private PostgreSQL")
	f.StringVar(&c.AdminEmail, "admin-email", "admin@example.com", "the first user, made at the first start")
	f.StringVar(&c.AdminPassword, "admin-password", "", "the first user's password, better put into the --config file: others can see a command line (default generated and shown once)")
	f.StringVar(&c.LogLevel, "log-level", "info", "debug, info, warn or error")
	return c
}
