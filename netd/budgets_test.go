package netd_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/vishvananda/netns"

	"s0.run/internal/netdapi"
)

// series is one line of the table. A budget is what its middle shall stay within; a
// negative one is what it shall reach.
type series struct {
	name, unit string
	budget     float64
	of99       bool // the budget is the 99th percentile's
	samples    []float64
}

func (s *series) at(percent float64) float64 {
	sorted := slices.Sorted(slices.Values(s.samples))
	return sorted[max(0, int(math.Ceil(percent/100*float64(len(sorted))))-1)]
}

func (s *series) verdict() string {
	got := s.at(50)
	if s.of99 {
		got = s.at(99)
	}
	switch {
	case s.budget == 0:
		return ""
	case s.budget > 0 && got <= s.budget || s.budget < 0 && got >= -s.budget:
		return fmt.Sprintf("met: %g", math.Abs(s.budget))
	}
	return fmt.Sprintf("MISSED: want %g", math.Abs(s.budget))
}

// budgets are measured one after the other; what is held against something else takes
// turns with it, so that both get the same machine.
type budgets struct {
	*testing.B
	all []*series
}

func (b *budgets) add(s series) *series {
	b.all = append(b.all, &s)
	return &s
}

func (s *series) took(began time.Time) { s.add(float64(time.Since(began).Nanoseconds()) / 1e6) }
func (s *series) add(v float64)        { s.samples = append(s.samples, v) }

// against adds how a series stands to another of as many samples, one by one.
func (b *budgets) against(s series, ours, theirs *series, how func(ours, theirs float64) float64) {
	for i := range min(len(ours.samples), len(theirs.samples)) {
		s.add(how(ours.samples[i], theirs.samples[i]))
	}
	b.add(s)
}

func percent(ours, theirs float64) float64 { return 100 * ours / theirs }
func more(ours, theirs float64) float64    { return ours - theirs }

// BenchmarkBudgets prints what netd costs, beside a plain veth with NAT and nginx, in one
// run: -benchtime 1x. Times drift with the machine: compare within one run.
func BenchmarkBudgets(b *testing.B) {
	for _, part := range []struct {
		name    string
		measure func(*budgets)
	}{{"policies", (*budgets).policies}, {"restarts", (*budgets).restarts}, {"packets", (*budgets).packets}, {"servers", (*budgets).servers}, {"thousand", (*budgets).thousand}} {
		b.Run(part.name, func(b *testing.B) {
			into := &budgets{B: b}
			defer func() { show(into.all) }() // also what was measured before it failed
			part.measure(into)
		})
	}
}

func show(all []*series) {
	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Printf("\nload %s\n", strings.TrimSpace(string(load)))
	tw := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "what\tunit\tN\tmin\tp50\tp99\tbudget")
	for _, s := range all {
		if len(s.samples) > 0 {
			fmt.Fprintf(tw, "%s\t%s\t%d\t%.4g\t%.4g\t%.4g\t%s\n", s.name, s.unit, len(s.samples), s.at(0), s.at(50), s.at(99), s.verdict())
		}
	}
	tw.Flush()
}

// allowing is a policy that names so many networks, another one for other ports.
func allowing(networks int, ports ...int) string {
	text := `{"mode":"block-all","egress":{"allowedPorts":[{"port":9}`
	for _, port := range ports {
		text += fmt.Sprintf(`,{"port":%d}`, port)
	}
	text += `],"allowedCidrs":["93.184.0.0/24"`
	for j := range networks - 1 {
		text += fmt.Sprintf(`,"11.%d.%d.0/24"`, j/256, j%256)
	}
	return text + `]}}`
}

// policies is a change of a running sandbox's policy: until it is in force for packets,
// and until a connection that it forbids has ended in the sandbox.
func (b *budgets) policies() {
	w := newWorld(b)
	w.start()
	w.far("22")
	box := w.sandbox()
	for _, n := range []int{1, 100, 250} {
		s := b.add(series{name: fmt.Sprintf("policy change, %d networks", n), unit: "ms", budget: 10, of99: true})
		for i := range 200 {
			text := allowing(n, 100+i)
			began := time.Now()
			box.policy(text)
			s.took(began)
		}
	}
	s := b.add(series{name: "policy change until a spliced connection is cut", unit: "ms", budget: 10, of99: true})
	for range 100 {
		box.policy(`{"mode":"block-all","egress":{"trafficRules":[{"name":"ssh","action":"allow","cidrs":["93.184.0.2/32"],"appProtocols":["ssh"],"ports":[{"port":22}]}]}}`)
		c, err := box.dial("tcp", net.JoinHostPort(far4, "22"))
		w.must(err)
		if _, err := exchange(c, "SSH-2.0-x\r\n"); err != nil {
			b.Fatal(err)
		}
		began := time.Now()
		box.policy(`{"mode":"block-all"}`)
		_, err = c.Read(make([]byte, 1))
		s.took(began)
		if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, io.EOF) {
			b.Fatal(err)
		}
		c.Close()
	}
}

// restarts is a netd that is killed: until the next one answers, and until it was told of
// a hundred sandboxes again and passes what it has to look into.
func (b *budgets) restarts() {
	w := newWorld(b)
	w.start()
	w.far("22")
	h := w.handle(w.inside)
	box := w.sandbox()
	slots := []netdapi.Slot{box.slot}
	for i := range 99 {
		slots = append(slots, w.bare(h, 1000+i))
	}
	answers := b.add(series{name: "restart until netd answers", unit: "ms", budget: 1000})
	passes := b.add(series{name: "restart until 100 sandboxes are told again", unit: "ms", budget: 1000})
	const text = `{"mode":"block-all","egress":{"trafficRules":[{"name":"ssh","action":"allow","cidrs":["93.184.0.2/32"],"appProtocols":["ssh"],"ports":[{"port":22}]}]}}`
	for range 10 {
		w.kill(w.process)
		began := time.Now()
		w.start()
		answers.took(began)
		for _, s := range slots {
			w.must(w.client.Attach(b.Context(), s))
			w.must(w.client.SetPolicy(b.Context(), netdapi.Policy{ID: s.ID, Generation: 1, Team: "team", Policy: json.RawMessage(text)}))
		}
		if got, err := box.says("tcp", net.JoinHostPort(far4, "22"), "SSH-2.0-x\r\n"); err != nil {
			b.Fatal(got, err)
		}
		passes.took(began)
	}
}

// packets are what is judged by its address, without rules and with 250 networks, beside
// what has the same translation and no data plane, what has the data plane's namespace
// more to pass, too, and a netd whose host has another network at the sandboxes'
// addresses. The ways take turns in a turning order: what else the machine does, and whom
// it does it after, falls on all of them.
func (b *budgets) packets() {
	const size = 32 << 20
	w, crowded := newWorld(b), newWorld(b)
	w.start()
	crowded.aNetworkThere()
	crowded.start()
	for _, w := range []*world{w, crowded} {
		w.far("9")
		w.discards(net.JoinHostPort(other4, "90"))
		w.gives(net.JoinHostPort(other4, "91"), size)
	}
	free, ruled, twice := w.sandbox(), w.sandbox(), crowded.sandbox()
	free.policy(`{"mode":"allow-all"}`)
	ruled.policy(allowing(250, 90, 91))
	twice.policy(`{"mode":"allow-all"}`)
	ways := []struct {
		name string
		ns   netns.NsHandle
	}{{"plain veth with NAT", w.plain()}, {"plain, and a namespace more", w.hop()}, {"netd, no rules", free.ns}, {"netd, 250 networks", ruled.ns}, {"netd, translated twice", twice.ns}}
	var up, down, trips, connects [5]*series
	for i, way := range ways {
		up[i] = b.add(series{name: "L4 upload, " + way.name, unit: "Gbit/s"})
		down[i] = b.add(series{name: "L4 download, " + way.name, unit: "Gbit/s"})
		trips[i] = b.add(series{name: "L4 round trip, " + way.name, unit: "ms"})
		connects[i] = b.add(series{name: "L4 connect and echo, " + way.name, unit: "ms"})
	}
	inTurns := func(rounds int, do func(i int)) {
		for round := range rounds {
			for i := range ways {
				do((i + round) % len(ways))
			}
		}
	}
	inTurns(600, func(i int) { up[i].add(w.sends(ways[i].ns, net.JoinHostPort(other4, "90"), size)) })
	inTurns(600, func(i int) { down[i].add(w.takes(ways[i].ns, net.JoinHostPort(other4, "91"))) })
	inTurns(100, func(i int) { w.trips(ways[i].ns, net.JoinHostPort(far4, "9"), connects[i], trips[i]) })
	for i, way := range ways[1:] {
		budget := map[bool]float64{true: -95}[i == 1 || i == 2]
		b.against(series{name: "L4 upload, " + way.name + ", of plain", unit: "%", budget: budget}, up[i+1], up[0], percent)
		b.against(series{name: "L4 download, " + way.name + ", of plain", unit: "%", budget: budget}, down[i+1], down[0], percent)
	}
}

// trips connects, and has a byte echoed some times.
func (w *world) trips(ns netns.NsHandle, at string, connect, trip *series) {
	w.t.Helper()
	began := time.Now()
	var c net.Conn
	w.must(in(ns, func() (err error) {
		c, err = net.Dial("tcp", at)
		return err
	}))
	defer c.Close()
	for i := range 20 {
		sent := time.Now()
		_, err := exchange(c, "x")
		w.must(err)
		if i == 0 {
			connect.took(began)
		} else {
			trip.took(sent)
		}
	}
}

// servers is HTTPS to one server: direct, passed on by its name, and opened, here and by
// nginx.
func (b *budgets) servers() {
	w := newWeb(b)
	plain, spliced, opened := w.plain(), w.sandbox(), w.sandbox()
	spliced.policy(`{"mode":"block-all","egress":{"allowedDomains":["good.example"]}}`)
	w.carries(opened, "token", 1)
	ca, err := w.client.CA(b.Context(), opened.slot.ID)
	w.must(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(ca.PEM))
	far := net.JoinHostPort(far4, "443")
	w.nginx()
	ways := []way{
		{"direct", plain, far, w.roots},
		{"netd passes on", spliced.ns, far, w.roots}, {"netd opens, and adds a credential", opened.ns, far, roots},
		{"nginx passes on", plain, "10.99.0.1:15443", w.roots}, {"nginx opens, and adds it", plain, "10.99.0.1:15444", w.roots},
	}
	kept, fresh, rates, many := make([]*series, len(ways)), make([]*series, len(ways)), make([]*series, len(ways)), make([]*series, len(ways))
	for i, to := range ways {
		kept[i] = b.add(series{name: "HTTPS, a request more, " + to.name, unit: "ms"})
		fresh[i] = b.add(series{name: "HTTPS, a new connection, " + to.name, unit: "ms"})
		rates[i] = b.add(series{name: "HTTPS, 64 MiB, " + to.name, unit: "Gbit/s"})
		many[i] = b.add(series{name: "HTTPS, new connections by 16 at once, " + to.name, unit: "/s"})
	}
	each := func(n int, into []*series, keep bool, ask func(*http.Client, *series)) {
		clients := make([]*http.Client, len(ways))
		for i, to := range ways {
			clients[i] = to.client(keep)
			w.asks(clients[i], "/api/x")
		}
		for range n {
			for i := range ways {
				ask(clients[i], into[i])
			}
		}
	}
	request := func(c *http.Client, s *series) {
		began := time.Now()
		w.asks(c, "/api/x")
		s.took(began)
	}
	each(500, kept, true, request)
	each(150, fresh, false, request)
	each(8, rates, true, func(c *http.Client, s *series) {
		began := time.Now()
		s.add(float64(w.asks(c, "/api/big")) * 8 / 1e9 / time.Since(began).Seconds())
	})
	each(5, many, false, func(c *http.Client, s *series) {
		const workers, requests = 16, 10
		began := time.Now()
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				for range requests {
					if resp, err := c.Get("https://good.example/api/x"); err != nil {
						b.Error(err)
					} else {
						_, _ = io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
					}
				}
			})
		}
		wg.Wait()
		s.add(workers * requests / time.Since(began).Seconds())
	})
	b.against(series{name: "HTTPS, a request more, added by passing on", unit: "ms", budget: 0.2}, kept[1], kept[0], more)
	b.against(series{name: "HTTPS, a request more, added by opening", unit: "ms", budget: 1}, kept[2], kept[0], more)
}

// way is how a server is reached.
type way struct {
	name  string
	ns    netns.NsHandle
	at    string
	roots *x509.CertPool
}

func (w way) client(keep bool) *http.Client {
	return &http.Client{Timeout: deadline, Transport: &http.Transport{
		DialContext: func(context.Context, string, string) (c net.Conn, err error) {
			err = in(w.ns, func() (err error) {
				c, err = net.Dial("tcp", w.at)
				return err
			})
			return c, err
		},
		TLSClientConfig: &tls.Config{RootCAs: w.roots}, DisableKeepAlives: !keep,
	}}
}

func (w *web) asks(c *http.Client, path string) int64 {
	w.t.Helper()
	resp, err := c.Get("https://good.example" + path)
	w.must(err)
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	w.must(err)
	if resp.StatusCode != http.StatusOK {
		w.t.Fatalf("%s: %s", path, resp.Status)
	}
	return n
}

// nginx passes on by name at one port of the host, and opens at another.
func (w *web) nginx() {
	w.t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(w.served.PrivateKey)
	w.must(err)
	w.must(os.WriteFile(filepath.Join(w.dir, "served.pem"), slices.Concat(
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.served.Certificate[0]}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})), 0o600))
	conf := strings.NewReplacer("DIR", w.dir, "FAR", far4).Replace(`load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off; user root; worker_processes 2; pid DIR/nginx.pid; error_log DIR/nginx.log;
events { worker_connections 4096; }
stream { map $ssl_preread_server_name $to { good.example FAR:443; default 127.0.0.1:1; }
server { listen 10.99.0.1:15443; ssl_preread on; proxy_pass $to; } }
http { access_log off; client_body_temp_path DIR/nb; proxy_temp_path DIR/np; fastcgi_temp_path DIR/nf; uwsgi_temp_path DIR/nu; scgi_temp_path DIR/ns;
upstream far { server FAR:443; keepalive 16; }
server { listen 10.99.0.1:15444 ssl; ssl_certificate DIR/served.pem; ssl_certificate_key DIR/served.pem;
location / { proxy_pass https://far; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host good.example; proxy_set_header Authorization "Bearer token";
proxy_ssl_server_name on; proxy_ssl_name good.example; proxy_ssl_verify on; proxy_ssl_trusted_certificate DIR/roots.pem; } } }`)
	file := filepath.Join(w.dir, "nginx.conf")
	w.must(os.WriteFile(file, []byte(conf), 0o600))
	cmd := exec.Command("nginx", "-c", file, "-p", w.dir)
	cmd.Stderr = os.Stderr
	w.must(in(w.host, cmd.Start))
	w.t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	})
	w.eventually("nginx listens", func() error {
		return in(w.host, func() error {
			c, err := net.Dial("tcp", "10.99.0.1:15444")
			if err == nil {
				c.Close()
			}
			return err
		})
	})
}

// thousand is what a thousand sandboxes cost that do nothing.
func (b *budgets) thousand() {
	const n = 1000
	w := newWorld(b)
	w.start()
	h := w.handle(w.inside)
	made := b.add(series{name: "1,000 sandboxes, a link", unit: "ms"})
	told := b.add(series{name: "1,000 sandboxes, netd is told of one", unit: "ms"})
	netd := b.add(series{name: "1,000 sandboxes, netd's memory of one", unit: "KiB", budget: 2048})
	kernel := b.add(series{name: "1,000 sandboxes, the kernel's of one, its link included", unit: "KiB"})
	pss, slab := w.pss(), slabs(b)
	for i := range n {
		began := time.Now()
		s := w.bare(h, 1000+i)
		made.took(began)
		began = time.Now()
		w.must(w.client.Attach(b.Context(), s))
		w.must(w.client.SetPolicy(b.Context(), netdapi.Policy{ID: s.ID, Generation: 1, Team: "team"}))
		told.took(began)
	}
	netd.add((w.pss() - pss) / n)
	kernel.add((slabs(b) - slab) / n)
}

func (w *world) pss() float64 {
	return kib(w.t, fmt.Sprintf("/proc/%d/smaps_rollup", w.process.Process.Pid), "Pss:")
}

func slabs(b *budgets) float64 {
	return kib(b, "/proc/meminfo", "Slab:") + kib(b, "/proc/meminfo", "Percpu:")
}

func kib(t testing.TB, file, name string) float64 {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var n float64
		if _, err := fmt.Sscanf(line, name+" %f kB", &n); err == nil {
			return n
		}
	}
	t.Fatalf("no %s in %s", name, file)
	return 0
}
