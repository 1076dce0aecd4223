package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"s0.run/internal/sealed"
)

// ways are how a sandbox may reach good.example: straight, through a plain relay of
// Go's or nginx's, and through the proxy.
func ways(b *testing.B) map[string]*http.Client {
	b.Helper()
	spliced, intercepted := newBox(b, onlyGood), tokenBox(b, "")
	intercepted.secret("src", sealed.Secret{Values: map[string]string{"token": canary}})
	out := map[string]*http.Client{
		"direct": through(b, good4+":443", spliced), "go relay": through(b, plainRelay(b), spliced),
		"splice": spliced.client(false, false), "intercept": intercepted.client(true, false),
	}
	if at := nginx(b); at != "" {
		out["nginx sni"] = through(b, at, spliced)
	}
	return out
}

func through(b *testing.B, at string, box *box) *http.Client {
	t := &http.Transport{
		DialContext:     func(context.Context, string, string) (net.Conn, error) { return net.Dial("tcp", at) },
		TLSClientConfig: &tls.Config{RootCAs: box.trust(false)}, MaxIdleConnsPerHost: 100,
	}
	b.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t}
}

// plainRelay is the least that a relay can be.
func plainRelay(b *testing.B) string {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	b.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				up, err := net.Dial("tcp", good4+":443")
				if err != nil {
					return
				}
				defer up.Close()
				go func() { io.Copy(up, c); up.(*net.TCPConn).CloseWrite() }()
				io.Copy(c, up)
			}()
		}
	}()
	return l.Addr().String()
}

// nginx is one that reads the name and passes the connection on; "" where there is none.
func nginx(b *testing.B) string {
	if _, err := exec.LookPath("nginx"); err != nil {
		return ""
	}
	dir := b.TempDir()
	conf := fmt.Sprintf(`load_module /usr/lib/nginx/modules/ngx_stream_module.so; daemon off; worker_processes 2; pid %s/pid; error_log %s/log;
events { worker_connections 4096; }
stream { map $ssl_preread_server_name $to { good.example %s:443; default 127.0.0.1:1; }
server { listen 127.0.0.1:15443; ssl_preread on; proxy_pass $to; } }`, dir, dir, good4)
	file := filepath.Join(dir, "conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command("nginx", "-c", file, "-p", dir)
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { cmd.Process.Signal(os.Interrupt); cmd.Wait() })
	for range 500 {
		if c, err := net.Dial("tcp", "127.0.0.1:15443"); err == nil {
			c.Close()
			return "127.0.0.1:15443"
		}
		pause(b.Context(), 10*time.Millisecond)
	}
	b.Log("nginx does not listen")
	return ""
}

func ask(b *testing.B, c *http.Client, path string) {
	resp, err := c.Get("https://good.example" + path)
	if err != nil {
		b.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
}

// BenchmarkKeepAlive takes the ways by turns, so that the machine's other work is
// shared by all, and reports medians.
func BenchmarkKeepAlive(b *testing.B) { byTurns(b, false) }

// BenchmarkNewConnections makes one for each request.
func BenchmarkNewConnections(b *testing.B) { byTurns(b, true) }

func byTurns(b *testing.B, fresh bool) {
	clients := ways(b)
	took := map[string][]time.Duration{}
	for _, c := range clients {
		c.Transport.(*http.Transport).DisableKeepAlives = fresh
		ask(b, c, "/bench")
	}
	for b.Loop() {
		for name, c := range clients {
			start := time.Now()
			ask(b, c, "/bench")
			took[name] = append(took[name], time.Since(start))
		}
	}
	for name, all := range took {
		slices.Sort(all)
		b.Logf("%-10s p50 %6d µs  p99 %6d µs  n %d", name, all[len(all)/2].Microseconds(), all[len(all)*99/100].Microseconds(), len(all))
	}
}

// BenchmarkBulk downloads 64 MiB each way in turn.
func BenchmarkBulk(b *testing.B) {
	clients := ways(b)
	theWorld().origin.big.Do(func() {
		theWorld().origin.Handler.(*http.ServeMux).HandleFunc("/big", func(w http.ResponseWriter, _ *http.Request) {
			buf := make([]byte, 1<<20)
			for range 64 {
				w.Write(buf)
			}
		})
	})
	best := map[string]float64{}
	for b.Loop() {
		for name, c := range clients {
			start := time.Now()
			ask(b, c, "/big")
			best[name] = max(best[name], 64*8*1.048576/1000/time.Since(start).Seconds())
		}
	}
	for name, gbit := range best {
		b.Logf("%-10s %.2f Gbit/s", name, gbit)
	}
}

// BenchmarkMemory is what a sandbox with 20 idle connections of each kind costs, its
// client and the servers included: they are in this process, too.
func BenchmarkMemory(b *testing.B) {
	const boxes, conns = 20, 20
	for b.Loop() {
		var before, after runtime.MemStats
		var held []net.Conn
		all := make([]*box, boxes)
		for i := range all {
			all[i] = tokenBox(b, "")
		}
		runtime.GC()
		runtime.ReadMemStats(&before)
		for _, box := range all {
			for _, name := range []string{"good.example", "api.good.example"} { // intercepted, spliced
				for range conns {
					conn := tls.Client(must(box.dialTo(b.Context(), claimed4, "443")), &tls.Config{ServerName: name, InsecureSkipVerify: true})
					if err := conn.Handshake(); err != nil {
						b.Fatal(err)
					}
					held = append(held, conn)
				}
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapInuse+after.StackInuse-before.HeapInuse-before.StackInuse)/boxes/1024, "KiB/sandbox")
		for _, c := range held {
			c.Close()
		}
	}
}
