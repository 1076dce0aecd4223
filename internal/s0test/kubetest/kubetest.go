// Package kubetest runs a Kubernetes control plane of one's own on this machine: etcd,
// kube-apiserver, kube-controller-manager and kube-scheduler, as hack/tools.sh builds
// them, with certificates of a CA made for it.
//
// Everything of a [Cluster] is below one directory. It has no nodes but those that
// register. It is for tests and for `make kube-up`; it needs no root.
package kubetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"s0.run/internal/s0test/freeport"
)

const (
	// startTimeout covers a start on a machine that does much else.
	startTimeout = 3 * time.Minute
	askPause     = 100 * time.Millisecond
	askTimeout   = 5 * time.Second
	// endGrace is what a program gets to end by itself.
	endGrace = 10 * time.Second
)

// Programs, in the order in which they start.
const (
	etcd       = "etcd"
	apiserver  = "kube-apiserver"
	manager    = "kube-controller-manager"
	scheduler  = "kube-scheduler"
	adminGroup = "system:masters"
)

// Config says where a cluster is.
type Config struct {
	Dir    string // of this cluster alone
	Binary string // kubeall
	// KeepRunning lets the programs outlive who started them.
	KeepRunning bool
}

// Cluster is a control plane that runs.
type Cluster struct {
	Dir string
	URL string // of the API server

	binary string
	ca     *authority
	ports  map[string]int
	procs  []*process
	admin  *http.Client
}

// process is one program.
type process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{}
}

// Start starts a control plane in an empty or missing directory, and returns when it
// takes pods.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	ca, err := newAuthority()
	if err != nil {
		return nil, err
	}
	c := &Cluster{Dir: cfg.Dir, binary: cfg.Binary, ca: ca}
	if err := c.prepare(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := c.startAll(ctx, cfg.KeepRunning); err != nil {
		c.Stop()
		return nil, err
	}
	return c, nil
}

// prepare chooses ports and writes certificates and kubeconfigs.
func (c *Cluster) prepare() error {
	names := []string{etcd, "etcd-peer", apiserver, manager, scheduler}
	ports, err := freePorts(len(names))
	if err != nil {
		return err
	}
	c.ports = map[string]int{}
	for i, name := range names {
		c.ports[name] = ports[i]
	}
	c.URL = fmt.Sprintf("https://127.0.0.1:%d", c.ports[apiserver])
	if err := c.ca.writeServer(c.Dir); err != nil {
		return err
	}
	if err := c.writeAuditPolicy(); err != nil {
		return err
	}
	for name, groups := range map[string][]string{"admin": {adminGroup}, "system:" + manager: nil, "system:" + scheduler: nil} {
		if _, err := c.Kubeconfig(name, groups...); err != nil {
			return err
		}
	}
	c.admin, err = c.ca.client("admin", adminGroup)
	return err
}

// freePorts finds ports of the loopback that nobody has at the moment.
func freePorts(n int) (ports []int, err error) {
	for len(ports) < n {
		port, err := freeport.Find()
		if err != nil {
			return nil, err
		}
		if !slices.Contains(ports, port) {
			ports = append(ports, port)
		}
	}
	return ports, nil
}

func (c *Cluster) startAll(ctx context.Context, keep bool) error {
	ready := map[string]func(context.Context) error{
		etcd:      func(ctx context.Context) error { return ask(ctx, http.DefaultClient, c.local(etcd, "http", "/readyz")) },
		apiserver: func(ctx context.Context) error { return ask(ctx, c.admin, c.URL+"/readyz") },
		// Admission refuses pods before there is this one.
		manager: func(ctx context.Context) error {
			return ask(ctx, c.admin, c.URL+"/api/v1/namespaces/default/serviceaccounts/default")
		},
		scheduler: func(ctx context.Context) error {
			return ask(ctx, c.ca.unchecked(), c.local(scheduler, "https", "/readyz"))
		},
	}
	for _, name := range []string{etcd, apiserver, manager, scheduler} {
		p, err := c.start(name, keep)
		if err != nil {
			return err
		}
		c.procs = append(c.procs, p)
		if name == apiserver || name == etcd { // the others wait for it by themselves
			if err := p.await(ctx, c.Dir, ready[name]); err != nil {
				return err
			}
		}
	}
	for _, p := range c.procs[2:] {
		if err := p.await(ctx, c.Dir, ready[p.name]); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) local(name, protocol, path string) string {
	return protocol + "://127.0.0.1:" + strconv.Itoa(c.ports[name]) + path
}

func (c *Cluster) path(name string) string { return filepath.Join(c.Dir, name) }

// args are what each program is started with.
func (c *Cluster) args(name string) []string {
	client, peer := c.local(etcd, "http", ""), c.local("etcd-peer", "http", "")
	config := c.path("system:" + name + ".kubeconfig")
	switch name {
	case etcd:
		return []string{
			"--data-dir=" + c.path("etcd"), "--listen-client-urls=" + client, "--advertise-client-urls=" + client, "--listen-peer-urls=" + peer,
			"--initial-advertise-peer-urls=" + peer, "--initial-cluster=default=" + peer, "--unsafe-no-fsync", "--log-level=warn",
		}
	case apiserver:
		return []string{
			"--etcd-servers=" + client, "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none",
			"--secure-port=" + strconv.Itoa(c.ports[apiserver]), "--tls-cert-file=" + c.path("server.crt"), "--tls-private-key-file=" + c.path("server.key"),
			"--client-ca-file=" + c.path("ca.crt"), "--authorization-mode=Node,RBAC", "--service-cluster-ip-range=10.96.0.0/16",
			"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + c.path("sa.pub"), "--service-account-signing-key-file=" + c.path("sa.key"),
			"--kubelet-client-certificate=" + c.path("kubelet-client.crt"), "--kubelet-client-key=" + c.path("kubelet-client.key"),
			"--kubelet-preferred-address-types=InternalIP", "--allow-privileged=true",
			"--audit-policy-file=" + c.path("audit-policy.json"), "--audit-log-path=" + c.path("audit.log"),
		}
	case manager: // without credentials of their own its controllers may do nothing
		return []string{
			"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config, "--root-ca-file=" + c.path("ca.crt"),
			"--service-account-private-key-file=" + c.path("sa.key"), "--use-service-account-credentials=true", "--leader-elect=false",
			"--kube-api-qps=500", "--kube-api-burst=500", "--bind-address=127.0.0.1", "--secure-port=" + strconv.Itoa(c.ports[manager]),
		}
	default:
		return []string{
			"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config, "--leader-elect=false",
			"--kube-api-qps=1000", "--kube-api-burst=1000", "--bind-address=127.0.0.1", "--secure-port=" + strconv.Itoa(c.ports[scheduler]),
		}
	}
}

func (c *Cluster) start(name string, keep bool) (*process, error) {
	log, err := os.OpenFile(c.path(name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &process{name: name, cmd: exec.Command(c.binary, append([]string{name}, c.args(name)...)...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir = log, log, c.Dir
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: keep}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { // ends with the program
		_ = p.cmd.Wait()
		close(p.done)
	}()
	return p, os.WriteFile(c.path(name+".pid"), []byte(strconv.Itoa(p.cmd.Process.Pid)), 0o600)
}

// await returns when a program is ready, with what it printed if it ended instead.
func (p *process) await(ctx context.Context, dir string, ready func(context.Context) error) error {
	var last error
	for {
		if last = ready(ctx); last == nil {
			return nil
		}
		select {
		case <-time.After(askPause):
		case <-p.done:
			return fmt.Errorf("%s has ended: %s", p.name, tail(filepath.Join(dir, p.name+".log")))
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w: %s", p.name, last, tail(filepath.Join(dir, p.name+".log")))
		}
	}
}

func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-2000):])
}

func ask(ctx context.Context, client *http.Client, url string) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return nil
}

// Stop ends the programs, the last one first.
func (c *Cluster) Stop() {
	for _, p := range slices.Backward(c.procs) {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(endGrace):
			_ = p.cmd.Process.Kill()
			<-p.done
		}
	}
	c.procs = nil
}

// StopDir ends the programs that were started for a directory and kept running.
func StopDir(dir string) error {
	var all []error
	for _, name := range []string{scheduler, manager, apiserver, etcd} {
		all = append(all, stopPID(filepath.Join(dir, name+".pid"), name))
	}
	return errors.Join(all...)
}

// stopPID ends a program by the id that was written down, if that still is its own.
func stopPID(file, name string) error {
	b, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	pid, err := strconv.Atoi(string(b))
	if err != nil {
		return err
	}
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !slices.Contains(strings.Split(string(args), "\x00"), name) {
		return os.Remove(file)
	}
	for deadline := time.Now().Add(2 * endGrace); ; time.Sleep(askPause) {
		sig := syscall.SIGTERM
		if time.Now().After(deadline.Add(-endGrace)) {
			sig = syscall.SIGKILL
		}
		if err := syscall.Kill(pid, sig); errors.Is(err, syscall.ESRCH) {
			return os.Remove(file)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s, process %d, does not end", name, pid)
		}
	}
}
