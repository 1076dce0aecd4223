// Package netd is the daemon that every packet of a node's sandboxes passes.
//
// noded makes the sandboxes' links in a network namespace and tells netd over a unix
// socket what each may reach; netd lives in that namespace and gives it its way out.
// Packets are judged in the kernel (internal/bpf) and let through by its mark
// (internal/dataplane); what a rule has to see closer reaches netd's own sockets. The
// kernel goes on judging when netd dies, and what needs netd waits for the next one:
// nothing is ever open because nobody is there. It knows no database and starts no
// process.
package netd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/daemon"
	"s0.run/internal/netdapi"
	"s0.run/internal/policy"
	"s0.run/netd/internal/audit"
	"s0.run/netd/internal/bpf"
	"s0.run/netd/internal/dataplane"
	"s0.run/netd/internal/table"
)

const (
	// stopGrace is what running calls get to finish when netd stops.
	stopGrace = time.Second
	// headerTimeout and idleTimeout bound what noded's connections may keep waiting.
	headerTimeout, idleTimeout = 5 * time.Second, 10 * time.Minute
	// sweepInterval keeps what links have left behind below the promised ten minutes;
	// addressInterval is how soon a new address of the host is denied in the kernel,
	// behind the host's own rules, which deny it at once, and how soon a new network of
	// its own comes first.
	sweepInterval, addressInterval = time.Minute, 5 * time.Second
	// forgetInterval gathers what is to be forgotten of connections: no address is
	// given out again for two minutes.
	forgetInterval = 10 * time.Second
	// flowInterval is how soon it is seen that a flow is over, well before it is
	// forgotten whose it was.
	flowInterval = 2 * time.Second
)

// Config says what a netd owns and where. Zero fields take the value that [Default]
// has for them.
type Config struct {
	NetNS       string // the data plane's network namespace, which noded makes
	RunDir      string // of our own, for pinned tables
	Socket      string // for noded
	AdminSocket string // of pprof and health; empty: none

	SandboxCIDR  netip.Prefix // the sandboxes' addresses, as noded gives them out
	SandboxCIDR6 netip.Prefix

	Resolvers        []netip.AddrPort // asked from the host's network for sandboxes' names; empty: the machine's own
	CredentialKeyDir string           // of the keys that open credentials; empty: none can be opened

	Deny            []netip.Prefix // never reached: the control plane's addresses
	PlatformDenied  []netip.Prefix // rules before every policy's own
	PlatformAllowed []netip.Prefix

	Version string
	Log     *slog.Logger
	Ready   func() // called once, when the socket answers
}

// Default is where every default is.
func Default() Config {
	return Config{
		NetNS: "/run/s0/noded/netns/_dataplane", RunDir: "/run/s0/netd", Socket: "/run/s0/netd/netd.sock",
		SandboxCIDR: netip.MustParsePrefix("10.77.0.0/16"), SandboxCIDR6: netip.MustParsePrefix("fd77::/64"),
		Version: "dev", Log: slog.Default(),
	}
}

// Run runs a netd until ctx ends. What the kernel does for it goes on.
func Run(ctx context.Context, cfg Config) error {
	host, err := enter(ctx, cfg.NetNS)
	if err != nil {
		return fmt.Errorf("netd: entering %s: %w", cfg.NetNS, err)
	}
	defer host.Close()
	s := daemon.NewStack()
	defer s.Stop()
	if err := open(ctx, cfg, host, s); err != nil {
		return fmt.Errorf("netd: %w", err)
	}
	if err := s.Wait(ctx); err != nil {
		return fmt.Errorf("netd: %w", err)
	}
	return nil
}

// open brings everything up: what is denied before what lets anything pass.
func open(ctx context.Context, cfg Config, host *os.File, s *daemon.Stack) error {
	if err := mountTables(cfg.tables()); err != nil {
		return err
	}
	kernel, err := bpf.Open(bpf.Config{PinDir: filepath.Join(cfg.tables(), "s0"), Net4: cfg.SandboxCIDR, Net6: cfg.SandboxCIDR6, HostMAC: hostMAC})
	if err != nil {
		return err
	}
	s.Push(func() { kernel.Close() })
	inside, err := os.Open(cfg.NetNS)
	if err != nil {
		return err
	}
	s.Push(func() { inside.Close() })
	plane, err := dataplane.Open(dataplane.Config{
		Host: host, Inside: inside, Net4: cfg.SandboxCIDR, Net6: cfg.SandboxCIDR6, Uplink: UplinkName(cfg.NetNS),
		FromSandbox: kernel.FromSandbox(), ToSandbox: kernel.ToSandbox(), FromUplink: kernel.FromUplink(),
		MarkLocal: bpf.MarkLocal, MarkDeny: bpf.MarkDeny, MarkAllow: bpf.MarkAllow, SetWayOut: kernel.SetUplink,
	})
	if err != nil {
		return err
	}
	s.Push(plane.Close)
	s.Push(func() { leave(cfg, kernel, plane) })
	if err := plane.ForgetOthers(addressesOf(kernel.Links())...); err != nil {
		return err
	}
	if err := kernel.AttachLookup(inside); err != nil {
		return err
	}
	records := audit.NewQueue()
	held, err := listenHeld(cfg.Socket)
	if err != nil {
		return err
	}
	front, err := newFront(frontConfig{Config: cfg, host: host, inside: inside, records: records, held: held})
	if err != nil {
		held.listener.Close()
		return err
	}
	s.Start("held connections", held.Run) // and it ends behind what is handed over
	sandboxes := table.New(table.Config{Kernel: kernel, Plane: plane, Watcher: front, Log: cfg.Log})
	front.sandboxes = sandboxes
	fixed := &fixed{cfg: cfg, plane: plane, sandboxes: sandboxes}
	if err := fixed.refresh(); err != nil {
		return err
	}
	startUpkeep(s, kernel, front, fixed, recorder{records, sandboxes})
	if err := listen(ctx, plane, kernel, front, s); err != nil {
		return err
	}
	return serve(cfg, s, netdapi.Handler(&server{Table: sandboxes, front: front, records: records, info: netdapi.Info{Version: cfg.Version, Run: runID()}}, logFailures(cfg.Log)))
}

// startUpkeep begins what is done every so often, and what the kernel tells.
func startUpkeep(s *daemon.Stack, kernel *bpf.Kernel, front *front, fixed *fixed, told recorder) {
	log, sandboxes, lost := fixed.cfg.Log, told.sandboxes, uint64(0)
	for name, work := range map[string]struct {
		every time.Duration
		do    func() error
	}{
		"sweep": {sweepInterval, func() error {
			front.Prune(sandboxes.Has)
			lost = told.warn(log, lost)
			return sandboxes.Sweep()
		}},
		"connections":    {forgetInterval, sandboxes.Forget},
		"host addresses": {addressInterval, fixed.refresh},
		"way out":        {addressInterval, fixed.plane.Refresh},
		"flows":          {flowInterval, func() error { return endFlows(kernel, fixed.plane, told) }},
	} {
		s.Start(name, func(ctx context.Context) error { return keep(ctx, log, work.every, work.do) })
	}
	s.Start("verdicts", func(ctx context.Context) error { return kernel.Events(ctx, told.denied) })
}

// endFlows tells of the flows that are over, and has nobody hold their connections for
// open: what a sandbox has at once is bounded by flows alone.
func endFlows(kernel *bpf.Kernel, plane *dataplane.Plane, told recorder) error {
	var failed error
	err := kernel.EndFlows(func(f bpf.Flow) {
		told.ended(f)
		if c, ok := told.connection(f); ok {
			failed = cmp.Or(failed, plane.End(c)) // the flow itself is gone: it's now or never
		}
	})
	return errors.Join(err, failed)
}

func addressesOf(all []bpf.Place) (addrs []netip.Addr) {
	for _, p := range all {
		addrs = append(addrs, p.IPv4, p.IPv6)
	}
	return addrs
}

// leave removes everything when there is no sandbox that needs it.
func leave(cfg Config, kernel *bpf.Kernel, plane *dataplane.Plane) {
	if len(kernel.Links()) > 0 {
		return // the next netd takes over
	}
	if err := errors.Join(plane.Remove(), unix.Unmount(cfg.tables(), unix.MNT_DETACH)); err != nil {
		cfg.Log.Warn("something of the data plane is left", "error", err)
	}
}

// hostMAC is that of every link's end in the data plane, as noded makes them.
var hostMAC = net.HardwareAddr{0x02, 0x73, 0, 0, 0, 1}

func (c Config) tables() string { return filepath.Join(c.RunDir, "bpf") }

// mountTables makes sure of a bpffs of our own: that of the machine may be read-only,
// or hidden.
func mountTables(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) == nil && st.Type == unix.BPF_FS_MAGIC {
		return nil
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mounting a bpffs at %s: %w", dir, err)
	}
	return nil
}

// listen hands sandboxes' packets to the front's sockets.
func listen(ctx context.Context, plane *dataplane.Plane, kernel *bpf.Kernel, front *front, s *daemon.Stack) error {
	l, err := plane.Listen(ctx)
	if err != nil {
		return err
	}
	s.Push(func() { _ = l.Close() }) // the front has closed them, or nobody will
	front.start(l, s)
	return kernelListens(kernel, l)
}

// fixed keeps what is always denied up to date with the host's addresses.
type fixed struct {
	cfg       Config
	plane     *dataplane.Plane
	sandboxes *table.Table
	last      string
}

func (f *fixed) refresh() error {
	denied, err := f.plane.HostAddresses()
	if err != nil {
		return err
	}
	denied = append(append(denied, f.cfg.SandboxCIDR, f.cfg.SandboxCIDR6), f.cfg.Deny...)
	if now := fmt.Sprint(denied); now != f.last {
		if err := f.sandboxes.SetFixed(policy.Fixed{Denied: denied, PlatformDenied: f.cfg.PlatformDenied, PlatformAllowed: f.cfg.PlatformAllowed}); err != nil {
			return err
		}
		f.last = now
	}
	return nil
}

// keep repeats f until ctx ends; its failures are told and tried again.
func keep(ctx context.Context, log *slog.Logger, interval time.Duration, f func() error) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if err := f(); err != nil {
			log.Warn("upkeep failed and will be tried again", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// serve answers noded and says that netd is ready.
func serve(cfg Config, s *daemon.Stack, h http.Handler) error {
	l, err := daemon.ListenUnix(cfg.Socket)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout}
	s.Start("API", func(ctx context.Context) error { return daemon.Serve(ctx, srv, l, stopGrace) })
	if err := serveAdmin(cfg, s); err != nil {
		return err
	}
	cfg.Log.Info("netd is ready", "socket", cfg.Socket)
	if cfg.Ready != nil {
		cfg.Ready()
	}
	return nil
}

func serveAdmin(cfg Config, s *daemon.Stack) error {
	if cfg.AdminSocket == "" {
		return nil
	}
	l, err := daemon.ListenUnix(cfg.AdminSocket)
	if err != nil {
		return err
	}
	mux := daemon.AdminMux()
	for _, path := range []string{"/healthz", "/readyz"} { // it serves only when it is ready
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	}
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout}
	s.Start("admin", func(ctx context.Context) error { return daemon.Serve(ctx, srv, l, stopGrace) })
	return nil
}

func logFailures(log *slog.Logger) func(string, error) {
	return func(path string, err error) {
		if !errors.Is(err, context.Canceled) {
			log.Warn("a call failed", "path", path, "error", err)
		}
	}
}
