// Package machine runs all of s0 on one machine: containerd and PostgreSQL as
// children, a local registry, noded and the API server in this process.
//
// It owns the instance's directories and the lock that keeps a second server
// away from them. Sandboxes are not its children: they live through its restart,
// its crash, and those of its children. It never looks inside a component: each
// is a Config and a Run.
package machine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"s0.run/cmd/s0d/internal/prereq"
	"s0.run/cmd/s0d/internal/wipe"
	"s0.run/internal/sandbox"
	"s0.run/netd"
)

// How long the steps of a start and a stop may take on a slow, loaded disk.
const (
	childReadyTimeout = 2 * time.Minute  // a database that recovers after a crash
	partReadyTimeout  = 2 * time.Minute  // noded adopts sandboxes, the API server migrates
	warmTimeout       = 3 * time.Minute  // the image is pulled and unpacked for the first time
	drainTimeout      = 2 * time.Minute  // every sandbox of a full node is torn down
	containerdGrace   = 20 * time.Second // it closes its databases
	postgresGrace     = time.Minute      // it writes a checkpoint
)

// Config is one machine's s0. Every default stands with its flag, in package command.
type Config struct {
	DataDir string // what must survive a reboot
	RunDir  string // sockets, mounts and what a reboot may take

	Listen            string           // of the API
	AllowedHosts      []string         // names that the API answers to, beside loopback's and addresses
	TrustedProxies    []string         // networks of proxies whose X-Forwarded-For the API believes
	PublicDomain      string           // below which sandboxes' services have their names; "" is this machine's own
	PoolNamespace     string           // of Kubernetes, where pools are ReplicaSets; "": the node keeps them
	Kubeconfig        string           // how to reach it
	RateLimit         float64          // requests a second of each team and each address
	RateBurst         int              // requests at once
	Quotas            map[string]int64 // limits of teams without their own
	HooksPrivate      bool             // webhooks may reach loopback and private networks
	AllowRegistration bool             // anybody may sign up who reaches the API
	OIDCFile          string           // YAML of the OpenID providers through which people sign in; "": none
	RegistryListen    string           // of the local registry; loopback
	PushRegistry      string           // where clients find the registry; "": where it listens
	ImageRegistries   []string         // that teams' templates may name, beside the local one
	KeepImages        time.Duration    // how long the node keeps an image that nothing uses
	ObjectStore       string           // URL of where paused sandboxes are kept, too; "": nowhere
	ObjectKeyFile     string           // keys that seal them; "": in DataDir
	ObjectDryRun      bool             // only tell what of cut-off uploads would be collected
	Volumes           bool             // offer volumes, which are not bounded yet
	BucketsPrivate    bool             // buckets that are volumes may be on loopback and private networks
	DatabaseURL       string           // "" runs a private PostgreSQL
	DefaultImage      string           // reference of the builtin template's image; "" serves ImageDir from the local registry
	ImageDir          string           // OCI layout of the builtin template's image; those of other builtin templates lie beside it

	PoolMin, PoolMax int // slots that the builtin template keeps warm
	MaxSandboxes     int
	AllowRunc        bool // offer runtime class runc, which shares the host's kernel
	AllowOldRunc     bool // also by a runc with known escapes
	ColdStarts       int  // sandboxes started at once
	SandboxWriteOps  int  // a second, of each, to the disk; negative: any number
	SandboxCIDR      netip.Prefix
	SandboxCIDR6     netip.Prefix
	Deny             []netip.Prefix   // that no sandbox ever reaches, beside this machine
	Resolvers        []netip.AddrPort // asked for sandboxes' names; none: this machine's own
	CgroupParent     string
	Cluster          string
	Nice             int // of containerd and sandboxes, so that the API stays quick beside them

	BinDir       string // of containerd, runsc, the shim and procd
	PostgresBin  string
	PostgresUser string

	AdminEmail, AdminPassword string // of the first start; an empty password is generated

	LogLevel string
	Version  string
}

// maxRunDir is what a unix socket's path of 107 bytes leaves for the run
// directory and the cluster, the two that vary in
// <run-dir>/noded/sandboxes/<cluster>-<26 digits>/node.sock.
const maxRunDir = 107 - len("/noded/sandboxes/") - 27 - len("/node.sock")

// Validate checks what only a person can have got wrong.
func (c Config) Validate() error {
	dirs := []struct{ flag, path string }{{"data-dir", c.DataDir}, {"run-dir", c.RunDir}, {"bin-dir", c.BinDir}}
	if c.localImage() {
		dirs = append(dirs, struct{ flag, path string }{"image-dir", c.ImageDir})
	}
	if c.PostgresBin != "" {
		dirs = append(dirs, struct{ flag, path string }{"postgres-bin", c.PostgresBin})
	}
	if c.ObjectKeyFile != "" {
		dirs = append(dirs, struct{ flag, path string }{"object-key-file", c.ObjectKeyFile})
	}
	if c.OIDCFile != "" {
		dirs = append(dirs, struct{ flag, path string }{"oidc-config", c.OIDCFile})
	}
	for _, d := range dirs {
		if !filepath.IsAbs(d.path) || filepath.Clean(d.path) == "/" {
			return fmt.Errorf("--%s %q: want an absolute path below /", d.flag, d.path)
		}
	}
	if strings.ContainsAny(c.DataDir, ":,") { // runsc and mount take lists of paths apart there
		return fmt.Errorf("--data-dir %q: want a path without ':' and ','", c.DataDir)
	}
	if longest := len(c.RunDir) + len(c.Cluster); longest > maxRunDir {
		return fmt.Errorf("--run-dir %q and --cluster %q: together want at most %d characters, for socket paths have a limit", c.RunDir, c.Cluster, maxRunDir)
	}
	if c.PoolMin < 0 || c.PoolMax < c.PoolMin {
		return fmt.Errorf("--pool-min %d --pool-max %d: want 0 ≤ min ≤ max", c.PoolMin, c.PoolMax)
	}
	return sandbox.ValidCluster(c.Cluster)
}

// The instance's paths. Both roots are 0711: the database's user must cross them.
func (c Config) logFile(name string) string { return filepath.Join(c.DataDir, "logs", name+".log") }
func (c Config) lockFile() string           { return filepath.Join(c.RunDir, "s0d.lock") }
func (c Config) controlSocket() string      { return filepath.Join(c.RunDir, "s0d.sock") }
func (c Config) netdSocket() string         { return filepath.Join(c.RunDir, "netd.sock") }
func (c Config) volumedSocket() string      { return filepath.Join(c.RunDir, "volumed.sock") }
func (c Config) dataplane() string          { return filepath.Join(c.run("noded"), "netns", "_dataplane") }
func (c Config) nodeSocket() string         { return filepath.Join(c.RunDir, "noded.sock") }
func (c Config) procdDir() string           { return filepath.Join(c.DataDir, "procd") }
func (c Config) binary(name string) string  { return filepath.Join(c.BinDir, name) }
func (c Config) registryRef(image, digest string) string {
	return c.RegistryListen + "/" + imageRepository(image) + "@" + digest
}

func (c Config) privateDatabase() bool   { return c.DatabaseURL == "" }
func (c Config) localImage() bool        { return c.DefaultImage == "" }
func (c Config) data(name string) string { return filepath.Join(c.DataDir, name) }
func (c Config) run(name string) string  { return filepath.Join(c.RunDir, name) }

// registryKey signs what opens the registry, registryAuth is what opens it to noded.
func (c Config) registryKey() string  { return c.data("registry.key") }
func (c Config) registryAuth() string { return c.data("registry-auth.json") }

// objectKey seals what is in the object store. The default one is made at the first start.
func (c Config) objectKey() string {
	if c.ObjectKeyFile != "" {
		return c.ObjectKeyFile
	}
	return c.data("object.key")
}

// credentialKeys is where the keys are that open credentials, for netd and volumed alone; the API
// server has the public part.
func (c Config) credentialKeys() string { return c.data("credential-keys") }

// KeyFile holds the API key with which root of this machine uses the API.
func (c Config) KeyFile() string { return filepath.Join(c.DataDir, "admin.key") }

// passwordFile holds the first user's login until somebody was shown it: a start
// that is cut short must not take it along.
func (c Config) passwordFile() string { return filepath.Join(c.DataDir, "admin.password") }

// LogFile is the server's own log.
func (c Config) LogFile() string { return c.logFile("s0d") }

// containerdNamespace is all noded's.
const containerdNamespace = "s0"

// imageRepository names a builtin template's image in the local registry.
func imageRepository(image string) string { return "s0/" + image }

// defaultImage is the image that there must be; further ones are served when they
// were built.
const defaultImage = "default"

var furtherImages = []string{"browser", "code-interpreter"}

// imageDirs are the OCI layouts of the images that were built.
func (c Config) imageDirs() map[string]string {
	dirs := map[string]string{defaultImage: c.ImageDir}
	for _, name := range furtherImages {
		dir := filepath.Join(filepath.Dir(c.ImageDir), name)
		if _, err := os.Stat(filepath.Join(dir, "index.json")); err == nil {
			dirs[name] = dir
		}
	}
	return dirs
}

// Prerequisites is what this machine needs; the addresses only when nothing of
// ours holds them.
func (c Config) Prerequisites(running bool) prereq.Config {
	p := prereq.Config{BinDir: c.BinDir, DataDir: c.DataDir, PostgresBin: c.PostgresBin, PostgresUser: c.PostgresUser}
	if c.localImage() {
		p.ImageDir = c.ImageDir
	}
	if running {
		return p
	}
	p.Addresses = []string{c.Listen, c.RegistryListen}
	return p
}

func (c Config) makeDirs() error {
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{{c.DataDir, 0o711}, {c.RunDir, 0o711}, {c.data("logs"), 0o750}, {c.procdDir(), 0o755}} {
		if err := os.MkdirAll(d.path, d.mode); err != nil {
			return err
		}
		if err := os.Chmod(d.path, d.mode); err != nil {
			return err
		}
	}
	return nil
}

// Wipe removes everything that a stopped instance left on the machine, and keeps
// it from being started meanwhile.
func (c Config) Wipe(ctx context.Context) error {
	l, err := c.tryLock()
	if err == nil {
		defer l.release()
	} else if !errors.Is(err, os.ErrNotExist) { // without a directory there may still be control groups
		return err
	}
	return errors.Join(wipe.Run(ctx, c.traces()), netd.Clean(c.dataplane()))
}

// traces is everything that a stopped instance leaves on the machine.
func (c Config) traces() wipe.Config {
	return wipe.Config{
		Dirs: []string{c.RunDir, c.DataDir},
		Entries: []string{
			"logs", "procd", "registry", "registry.key", "registry-auth.json", "registry-auth.json.new", "containerd", "postgres", "noded", "netd", "netd.sock", "volumed", "volumed.sock", "api.key", "object.key", "credential-keys", "admin.key", "admin.password",
			"s0d.lock", "s0d.sock", "noded.sock", "noded-admin.sock", "api-admin.sock",
		},
		CgroupParent: c.CgroupParent,
	}
}
