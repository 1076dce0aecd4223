package noded

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"s0.run/internal/imageref"
	"s0.run/internal/sandbox"
)

// Local is how the parts of this node's own process ask it.
type Local interface {
	// Serve has h answer until ctx ends, and gives what is under way then grace to finish.
	Serve(ctx context.Context, h http.Handler, grace time.Duration) error
}

// Config says what a noded owns and where. Zero fields take the value that
// [Default] has for them.
//
// Two nodeds of one machine must differ in DataDir, RunDir, Socket and
// ContainerdNamespace: each takes everything in there for its own. The first two
// are locked.
type Config struct {
	Node    string // the node's name; the host's by default
	Cluster string // prefixes the ids of sandboxes
	Version string // what Info tells

	DataDir     string // survives a reboot: the journal, and sandboxes/<id> with each upper layer
	RunDir      string // does not: sandboxes/<id> with each socket, netns/<id>, runsc's state
	Socket      string // of the node API
	Local       Local  // serves the node API, too; nil: nobody
	AdminSocket string // of pprof, /metrics, /healthz and /readyz; empty: none

	// Listen is where API servers on other machines reach the node API, host:port; empty:
	// there are none. CertDir then keeps this node's key and certificate, which it has from
	// the servers' listener at ControlPlane: known by ControlPlanePin, or by the certificate
	// in ControlPlaneCA, and opened by the token in JoinTokenFile. Without a ControlPlane
	// somebody else keeps node.pem and ca.crt there. Advertise is where servers are told to
	// reach this node; by default this machine's address on its way to them.
	Listen, Advertise, CertDir, ControlPlane, ControlPlanePin, ControlPlaneCA, JoinTokenFile string

	ContainerdSocket    string
	ContainerdNamespace string
	Snapshotter         string
	Runsc               string // absolute path of the runsc binary
	ProcdDir            string // directory with the static procd, bound read-only at /run/s0/bin
	CgroupParent        string // below which every sandbox has its control group
	PlainHTTPRegistries []string
	ImageRegistries     imageref.Registries // where images may come from, beside those
	RegistryAuthFile    string              // credentials for registries, as in docker's config.json; empty: none
	KeepImages          time.Duration       // how long an image stays that nothing uses
	AllowRunc           bool                // offer runtime class runc, which shares the host's kernel
	AllowOldRunc        bool                // also where the installed runc is known to let sandboxes out

	ObjectStore   string // URL of where images of paused sandboxes are kept, too: see package objects; empty: nowhere
	ObjectKeyFile string // keys that seal them, the same on every node
	ObjectDryRun  bool   // only tell what of cut-off uploads would be collected

	MaxSandboxes int // slots included
	ColdStarts   int // at a time
	SandboxCIDR  netip.Prefix
	SandboxCIDR6 netip.Prefix // a /64
	// SandboxWriteOps is how often a second a sandbox writes to the node's disk and waits for
	// it; negative: as often as it likes.
	SandboxWriteOps int
	NetdSocket      string // of this node's netd; empty: nothing gets out

	VolumedSocket string // of this node's volumed; empty: there are no volumes

	// Simulate runs everything but sandboxes: slots exist in memory and their
	// procd does nothing. For load tests of what is above.
	Simulate bool

	Log   *slog.Logger
	Ready func() // called once, when the node API answers
}

// Default is where every default is. Fields that it leaves empty, but for
// AdminSocket, PlainHTTPRegistries, RegistryAuthFile and Ready, must be given.
func Default() Config {
	host, err := os.Hostname()
	if err != nil {
		host = "node"
	}
	return Config{
		Node: host, Cluster: "local", Version: "dev",
		DataDir: "/var/lib/s0/noded", RunDir: "/run/s0/noded", Socket: "/run/s0/noded/node.sock",
		ContainerdNamespace: "s0", Snapshotter: "overlayfs", CgroupParent: "s0",
		ImageRegistries: imageref.Public, KeepImages: 24 * time.Hour,
		MaxSandboxes: 1000, SandboxWriteOps: 4000, ColdStarts: max(2, runtime.NumCPU()), SandboxCIDR: netip.MustParsePrefix("10.77.0.0/16"), SandboxCIDR6: netip.MustParsePrefix("fd77::/64"),
		Log: slog.Default(),
	}
}

func orDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

func (c Config) withDefaults() Config {
	d := Default()
	if c.ImageRegistries == nil {
		c.ImageRegistries = d.ImageRegistries
	}
	orDefault(&c.KeepImages, d.KeepImages)
	orDefault(&c.Node, d.Node)
	orDefault(&c.Cluster, d.Cluster)
	orDefault(&c.Version, d.Version)
	orDefault(&c.DataDir, d.DataDir)
	orDefault(&c.RunDir, d.RunDir)
	orDefault(&c.Socket, d.Socket)
	orDefault(&c.CertDir, filepath.Join(c.DataDir, "cert"))
	orDefault(&c.ContainerdNamespace, d.ContainerdNamespace)
	orDefault(&c.Snapshotter, d.Snapshotter)
	orDefault(&c.CgroupParent, d.CgroupParent)
	orDefault(&c.MaxSandboxes, d.MaxSandboxes)
	orDefault(&c.ColdStarts, d.ColdStarts)
	orDefault(&c.SandboxWriteOps, d.SandboxWriteOps)
	orDefault(&c.SandboxCIDR, d.SandboxCIDR)
	orDefault(&c.SandboxCIDR6, d.SandboxCIDR6)
	orDefault(&c.Log, d.Log)
	return c
}

func (c Config) validate() error {
	if err := sandbox.ValidCluster(c.Cluster); err != nil {
		return err
	}
	if c.MaxSandboxes < 0 || c.ColdStarts < 0 {
		return errors.New("max sandboxes and cold starts: want more than 0")
	}
	paths := map[string]string{"data dir": c.DataDir, "run dir": c.RunDir, "socket": c.Socket}
	if !c.Simulate {
		paths["containerd socket"], paths["runsc"], paths["procd dir"] = c.ContainerdSocket, c.Runsc, c.ProcdDir
	}
	for name, path := range paths {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%s %q: want an absolute path", name, path)
		}
	}
	if c.ObjectStore != "" && !filepath.IsAbs(c.ObjectKeyFile) {
		return fmt.Errorf("object key file %q: an object store needs one, by an absolute path", c.ObjectKeyFile)
	}
	if strings.ContainsAny(c.DataDir, ":,") {
		return fmt.Errorf("data dir %q: want a path without ':' and ',', which mean something to runsc in the path of a sandbox's upper layer", c.DataDir)
	}
	if c.Simulate {
		return nil
	}
	for _, bin := range []string{c.Runsc, filepath.Join(c.ProcdDir, "procd")} {
		if st, err := os.Stat(bin); err != nil {
			return err
		} else if st.Mode()&0o111 == 0 {
			return fmt.Errorf("%s is not executable", bin)
		}
	}
	return nil
}

// scope tells this noded's control groups and containers from those of others on
// the machine. Whoever uses the same run directory is the same noded.
func (c Config) scope() string {
	sum := sha256.Sum256([]byte(filepath.Clean(c.RunDir)))
	return hex.EncodeToString(sum[:4])
}
