package e2e_test

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"s0.run/api/client"
	"s0.run/internal/s0test"
)

// TestNetwork is what gets out of real sandboxes, to an internet of one namespace.
func TestNetwork(t *testing.T) {
	w := newInternet(t)
	o := newOrigin(t, w)
	s := s0test.Start(t, o.options())
	t.Run("rules", func(t *testing.T) { testNetworkRules(t, s, w) })
	t.Run("a warm process", func(t *testing.T) { testNetworkOfAWarmProcess(t, s, w) })
	t.Run("audit", func(t *testing.T) { testNetworkAudit(t, s, w, o) })
	t.Run("pause", func(t *testing.T) { testNetworkAfterAPause(t, s, w) })
	t.Run("G10: connections", func(t *testing.T) { testConnectionsOfForks(t, s, w) })
	t.Run("credentials", func(t *testing.T) { testCredentials(t, s, w, o) })
	t.Run("whom a sandbox believes", func(t *testing.T) { testTrust(t, s, w, o) })
	t.Run("logins", func(t *testing.T) { testLogins(t, s, w, o) })
	t.Run("X31: netd is told to stop", func(t *testing.T) { testNetdIsReplaced(t, s, w) })
	t.Run("X31: netd is killed", func(t *testing.T) { testNetdIsKilled(t, s, w) })
}

// internet answers on two addresses of each family, behind a link of the host. They
// are of the networks for benchmarks and documentation, which a policy has to name.
type internet struct {
	near, far   netip.Addr
	near6, far6 netip.Addr
	public      netip.Addr // of no network that a policy has to name
	public6     netip.Addr
	host        netip.Addr
	ns          netns.NsHandle
}

func newInternet(t *testing.T) *internet {
	t.Helper()
	a, b := byte(rand.IntN(256)), byte(rand.IntN(32)*8) // other tests may have theirs
	four := func(n byte) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, a, b + n}) }
	six := func(n byte) netip.Addr {
		return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, a, b, 15: n})
	}
	w := &internet{near: four(2), far: four(3), near6: six(2), far6: six(3), host: four(1)}
	w.public, w.public6 = netip.AddrFrom4([4]byte{93, 184, a, b + 2}), netip.AddrFrom16([16]byte{0x2a, 0x00, 0x0d, 0xb8, a, b, 15: 2})
	ns := namespace(t)
	w.ns = ns
	host, err := netlink.NewHandle()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(host.Close)
	inner, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(inner.Close)
	name := fmt.Sprintf("s0net%02x%02x", a, b)
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: -1}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns)), PeerTxQLen: -1}
	if err := host.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = host.LinkDel(link) })
	addresses(t, host, name, w.host, six(1))
	addresses(t, inner, "eth0", w.near, w.far, w.near6, w.far6, w.public, w.public6)
	l, err := host.LinkByName(name)
	for public, via := range map[netip.Addr]netip.Addr{w.public: w.near, w.public6: w.near6} {
		if err == nil {
			one := &net.IPNet{IP: public.AsSlice(), Mask: net.CIDRMask(public.BitLen(), public.BitLen())}
			err = host.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: one, Gw: via.AsSlice()})
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	addresses(t, inner, "lo") // its servers reach each other
	answer(t, ns, w)
	return w
}

func namespace(t *testing.T) netns.NsHandle {
	t.Helper()
	ns := make(chan netns.NsHandle)
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and ends with its thread
		h, err := netns.New()
		failed <- err
		ns <- h
	}()
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	h := <-ns
	t.Cleanup(func() { h.Close() })
	return h
}

func addresses(t *testing.T, h *netlink.Handle, name string, all ...netip.Addr) {
	t.Helper()
	l, err := h.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		bits, flags := 29, 0
		if a.Is6() {
			bits, flags = 64, unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}, Flags: flags}); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		t.Fatal(err)
	}
}

// answer echoes on ports 7 and 8 of every address in the namespace.
func answer(t *testing.T, ns netns.NsHandle, w *internet) {
	t.Helper()
	for _, a := range []netip.Addr{w.near, w.far, w.near6, w.far6, w.public, w.public6} {
		for _, port := range []uint16{7, 8} {
			go serveWord(listenIn(t, ns, netip.AddrPortFrom(a, port).String()))
		}
	}
}

// inNamespace runs f on a thread inside a namespace.
func inNamespace(ns netns.NsHandle, f func() error) error {
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and ends with its thread
		if err := netns.Set(ns); err != nil {
			failed <- err
			return
		}
		failed <- f()
	}()
	return <-failed
}

func serveWord(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = c.Write([]byte("here"))
		c.Close()
	}
}

// connects tries every address from inside and prints what came of each.
const connects = `
import socket, sys
for at in sys.argv[1:]:
    host, port = at.rsplit("|", 1)
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    s.settimeout(20)
    try:
        s.connect((host, int(port)))
        print(at, s.recv(10).decode())
    except ConnectionRefusedError:
        print(at, "refused")
    except OSError as e:
        print(at, type(e).__name__)
    s.close()
`

// closed is whatever is not an answer: what nobody attached is not even refused.
const closed = "closed"

// outcomes is what became of connections to each address and port.
func (u *user) outcomes(id string, want map[string]string) error {
	u.t.Helper()
	args := []string{"python3", "-c", connects}
	for at := range want {
		args = append(args, at)
	}
	c := u.run(id, args...)
	got := map[string]string{}
	for line := range strings.Lines(*c.Stdout) {
		at, outcome, _ := strings.Cut(strings.TrimSpace(line), " ")
		got[at] = outcome
	}
	for at, outcome := range want {
		if got[at] == "" || got[at] != outcome && (outcome != closed || got[at] == "here") {
			return fmt.Errorf("%s: %q, want %q", at, got[at], outcome)
		}
	}
	return nil
}

func to(a netip.Addr, port int) string { return fmt.Sprintf("%s|%d", a, port) }

// near names one address of each family, and no others.
func (w *internet) nearOnly() string {
	return fmt.Sprintf(`{"mode":"block-all","egress":{"allowedCidrs":["%s/32","%s/128"],"allowedPorts":[{"port":7}]}}`, w.near, w.near6)
}

// everywhere names whatever can be named.
const everywhere = `{"mode":"allow-all","egress":{"trafficRules":[{"name":"all","action":"allow",
	"cidrs":["0.0.0.0/0","::/0","10.0.0.0/8","169.254.0.0/16","127.0.0.0/8","198.18.0.0/15","2001:db8::/32","fc00::/7"]}]}}`

func policyOf(t *testing.T, text string) (p client.SandboxNetworkPolicy) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		t.Fatal(err)
	}
	return p
}

func (u *user) claimWith(policy string) (id string) {
	u.t.Helper()
	p := policyOf(u.t, policy)
	return u.claimed(client.ClaimRequest{Template: "default", Config: &client.SandboxConfig{Network: &p}})
}

func (u *user) setNetwork(id, policy string) {
	u.t.Helper()
	p, err := u.c.UpdateSandboxNetwork(u.ctx(), id, policyOf(u.t, policy))
	must(u, "changing the network of "+id, p, err)
}

func (u *user) wantOutcomes(id string, want map[string]string) {
	u.t.Helper()
	if err := u.outcomes(id, want); err != nil {
		u.t.Error(err)
	}
}

// E01, E02, E04, E17, E21, with a real sandbox's packets.
func testNetworkRules(t *testing.T, s *s0test.Stack, w *internet) {
	u := newUser(t, s)
	id := u.claimWith(w.nearOnly())
	neighbour := u.claimWith(everywhere)
	own := func(id string) netip.Addr {
		out := *u.run(id, "python3", "-c", "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('9.9.9.9', 1)); print(s.getsockname()[0])").Stdout
		return must(u, "the address of "+id, netip.MustParseAddr(strings.TrimSpace(out)), nil)
	}
	metadata := netip.MustParseAddr("169.254.169.254")
	u.wantOutcomes(id, map[string]string{
		to(w.near, 7): "here", to(w.near6, 7): "here",
		to(w.near, 8): "refused", to(w.near6, 8): "refused", to(w.far, 7): "refused", to(w.far6, 7): "refused",
		to(metadata, 80): "refused", to(w.host, 22): "refused", to(own(neighbour), 80): "refused",
	})
	never := map[string]string{to(metadata, 80): "refused", to(w.host, 22): "refused", to(own(id), 80): "refused", "fd00:ec2::254|80": "refused"}
	open := map[string]string{to(w.near, 8): "here", to(w.far, 7): "here", to(w.far6, 7): "here"}
	u.wantOutcomes(neighbour, never)
	u.wantOutcomes(neighbour, open)
	u.setNetwork(id, everywhere)
	u.wantOutcomes(id, open)
	u.setNetwork(id, `{"mode":"block-all"}`)
	u.wantOutcomes(id, map[string]string{to(w.near, 7): "refused", to(w.near6, 7): "refused", to(w.far, 7): "refused"})
	u.setNetwork(id, w.nearOnly())
	u.wantOutcomes(id, map[string]string{to(w.near, 7): "here", to(w.near6, 7): "here", to(w.far, 7): "refused"})
}

// tries connects without end from before the claim on, and writes down what comes of it.
const tries = `
import socket, sys, time
open("/tmp/starts", "a").write("x")
log = open("/tmp/tries", "a", buffering=1)
while True:
    for at in sys.argv[1:]:
        s = socket.socket()
        s.settimeout(5)
        try:
            s.connect((at, 7))
            print(at, s.recv(10).decode(), file=log)
        except ConnectionRefusedError:
            print(at, "refused", file=log)
        except OSError as e:
            print(at, type(e).__name__, file=log)
        s.close()
    time.sleep(0.1)
`

// E01: what ran before the claim is under the claim's policy as soon as there is one, and
// was under none that lets anything out before. It is not started again for that.
func testNetworkOfAWarmProcess(t *testing.T, s *s0test.Stack, w *internet) {
	u := newUser(t, s)
	command, err := json.Marshal([]string{"python3", "-c", tries, w.near.String(), w.far.String()})
	if err != nil {
		t.Fatal(err)
	}
	u.warmTemplate("connects", 1, fmt.Sprintf(`{"name":"connects","type":"cmd","command":%s,
		"probes":{"readiness":{"exec":{"command":["test","-s","/tmp/tries"]},"periodSeconds":1}}}`, command))
	u.awaitIdle("connects")
	p := policyOf(t, w.nearOnly())
	id := u.claimed(client.ClaimRequest{Template: "connects", Config: &client.SandboxConfig{Network: &p}})
	near, far := w.near.String()+" here\n", w.far.String()+" refused\n"
	s.Eventually("both addresses were tried under the policy", func() error {
		if got := u.read(id, "/tmp/tries"); !strings.Contains(got, near) || !strings.Contains(got, far) {
			return fmt.Errorf("tries: %.500s", got)
		}
		return nil
	})
	if got := u.read(id, "/tmp/tries"); strings.Contains(got, w.far.String()+" here") {
		t.Errorf("it got through to what no policy names: %.500s", got)
	}
	if got := u.read(id, "/tmp/starts"); got != "x" {
		t.Errorf("it was started %d times", len(got))
	}
}

// A resumed sandbox has another address and the same policy.
func testNetworkAfterAPause(t *testing.T, s *s0test.Stack, w *internet) {
	u := newUser(t, s)
	id := u.claimWith(w.nearOnly())
	want := map[string]string{to(w.near, 7): "here", to(w.near6, 7): "here", to(w.far, 7): "refused", to(w.far6, 7): "refused"}
	u.wantOutcomes(id, want)
	u.pause(id)
	u.resume(id)
	u.wantOutcomes(id, want)
}

// G10: with a connection goes on whoever made it, and nobody who has its memory. In a child,
// and in a sandbox that slept, it is broken, which is no silence; a new one can be had.
func testConnectionsOfForks(t *testing.T, s *s0test.Stack, w *internet) {
	go echo(listenIn(t, w.ns, netip.AddrPortFrom(w.near, 2223).String()))
	u := newUser(t, s)
	id := u.claimWith(fmt.Sprintf(`{"mode":"block-all","egress":{"allowedCidrs":["%s/32"],"allowedPorts":[{"port":2223}]}}`, w.near))
	python := u.python(id)
	u.exec(id, python, fmt.Sprintf("import socket; connected = lambda: socket.create_connection(('%s', 2223), 60)", w.near))
	u.exec(id, python, `exec("def say(word):\n try: c.sendall(word); return c.recv(100) or 'broken'\n except TimeoutError: return 'silent'\n except OSError: return 'broken'")`)
	u.wantExec(id, python, "c = connected(); say(b'one')", "b'one'")
	child := u.fork(id, client.ForkRequest{Config: &client.ForkConfig{Memory: new(true)}})[0]
	u.resumeAll([]string{child})
	u.wantExec(child, python, "say(b'two')", "'broken'")
	u.wantExec(child, python, "c = connected(); say(b'three')", "b'three'")
	u.wantExec(id, python, "say(b'four')", "b'four'")
	u.pause(id)
	u.resumeAll([]string{id})
	u.wantExec(id, python, "say(b'five')", "'broken'")
	u.wantExec(id, python, "c = connected(); say(b'six')", "b'six'")
}

// Connections that netd passes on as they are outlive one that is told to stop: the next
// goes on with them.
func testNetdIsReplaced(t *testing.T, s *s0test.Stack, w *internet) {
	for _, a := range []netip.Addr{w.near, w.near6} {
		go echo(listenIn(t, w.ns, netip.AddrPortFrom(a, 2222).String()))
	}
	u := newUser(t, s)
	id := u.claimWith(fmt.Sprintf(`{"mode":"block-all","egress":{"trafficRules":[{"name":"git","action":"allow","cidrs":["%s/32","%s/128"],"appProtocols":["ssh"],"ports":[{"port":2222}]}]}}`, w.near, w.near6))
	python := u.python(id)
	u.exec(id, python, fmt.Sprintf("import socket; both = [socket.create_connection((a, 2222), 60) for a in ('%s', '%s')]", w.near, w.near6))
	u.exec(id, python, "say = lambda word: [(c.sendall(word), c.recv(100))[1] for c in both]")
	u.wantExec(id, python, `say(b"SSH-2.0-x\n")`, `[b'SSH-2.0-x\n', b'SSH-2.0-x\n']`)
	status, err := s.Status(u.ctx())
	first := must(u, "status", status, err).Children["netd"]
	if err := syscall.Kill(first, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.Eventually("another netd", func() error {
		status, err := s.Status(u.ctx())
		if pid := must(u, "status", status, err).Children["netd"]; pid == 0 || pid == first {
			return os.ErrProcessDone
		}
		return nil
	})
	u.wantExec(id, python, `say(b"again")`, `[b'again', b'again']`)
}

// echo sends back what it is sent.
func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

// While netd is away what is in force stays in force, a policy that is asked for is
// refused, a claim without one works; the next netd is told everything.
func testNetdIsKilled(t *testing.T, s *s0test.Stack, w *internet) {
	u := newUser(t, s)
	id := u.claimWith(w.nearOnly())
	want := map[string]string{to(w.near, 7): "here", to(w.near6, 7): "here", to(w.far, 7): "refused", to(w.far6, 7): "refused"}
	netd := func() int {
		status, err := s.Status(u.ctx())
		must(u, "status", status, err)
		return status.Children["netd"]
	}
	first := netd()
	if err := syscall.Kill(first, syscall.SIGSTOP); err != nil { // it is there, and says nothing
		t.Fatal(err)
	}
	u.wantOutcomes(id, want)
	s.Eventually("a policy is refused", func() error {
		_, err := u.c.UpdateSandboxNetwork(u.ctx(), id, policyOf(t, everywhere))
		if !isStatus(err, 503) {
			return fmt.Errorf("it says %v, want 503", err)
		}
		return nil
	})
	plain := u.claim()
	u.wantOutcomes(plain, map[string]string{to(w.near, 7): closed})
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.Eventually("another netd", func() error {
		if pid := netd(); pid == 0 || pid == first {
			return os.ErrProcessDone
		}
		return nil
	})
	s.Eventually("a policy is taken", func() error {
		_, err := u.c.UpdateSandboxNetwork(u.ctx(), id, policyOf(t, w.nearOnly()))
		return err
	})
	u.wantOutcomes(id, want)
	u.setNetwork(plain, everywhere)
	u.wantOutcomes(plain, map[string]string{to(w.near, 7): "here", to(w.far, 7): "here"})
}
