package netd_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"s0.run/internal/netdapi"
)

// burst is what passes at once of a low limit that says nothing of it.
const burst = 512 << 10

// Ways of a connection: judged by its address, and through the proxy, which has to see
// that it is to no name that is denied.
const (
	direct  = `{"mode":"allow-all"}`
	proxied = `{"mode":"allow-all","egress":{"deniedDomains":["denied.test"]}}`
)

func (b *box) limited(policy string, own, team netdapi.Bandwidth) {
	b.w.t.Helper()
	b.w.must(b.w.client.SetPolicy(context.Background(), netdapi.Policy{
		ID: b.slot.ID, Generation: b.slot.Generation, Team: "team", Policy: json.RawMessage(policy), SandboxBandwidth: own, TeamBandwidth: team,
	}))
}

// exchanges serves whoever says how many bytes he will send and how many he wants, as
// two lines of text.
func (w *world) exchanges(at string) {
	w.t.Helper()
	w.must(in(w.beyond, func() error {
		l, err := net.Listen("tcp", at)
		if err != nil {
			return err
		}
		w.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					var sent, wanted int64
					if _, err := fmt.Fscanf(c, "%d\n%d\n", &sent, &wanted); err != nil {
						return
					}
					_, _ = io.CopyN(io.Discard, c, sent)
					_, _ = io.CopyN(c, zeros{}, wanted+1)
				}()
			}
		}()
		return nil
	}))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// exchange sends and wants so many bytes, and returns how long it took.
func (b *box) exchange(at string, sent, wanted int64) (time.Duration, error) {
	c, err := b.dial("tcp", at)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(deadline)); err != nil {
		return 0, err
	}
	began := time.Now()
	if _, err := fmt.Fprintf(c, "%d\n%d\n", sent, wanted); err != nil {
		return 0, err
	}
	if _, err := io.CopyN(c, zeros{}, sent); err != nil {
		return 0, err
	}
	_, err = io.CopyN(io.Discard, c, wanted+1)
	return time.Since(began), err
}

// exchangesOf serves both families, at two addresses of one port.
func (w *world) exchangesOf(port string) (at []string) {
	w.t.Helper()
	at = both(port, far4, far6)
	for _, a := range at {
		w.exchanges(a)
	}
	return at
}

// No more passes than the bandwidth lets through, either way, whoever has the connection.
func TestBandwidthOfASandbox(t *testing.T) {
	const rate, size = 1 << 20, 2 << 20
	w := newWorld(t)
	w.start()
	limit := netdapi.Rate{Bytes: rate}
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, at := range w.exchangesOf("2222") {
		for _, way := range []string{direct, proxied} {
			for _, c := range []struct {
				limit        netdapi.Bandwidth
				sent, wanted int64
			}{
				{netdapi.Bandwidth{Egress: limit}, size, 0},
				{netdapi.Bandwidth{Ingress: limit}, 0, size},
			} {
				b := w.sandbox()
				b.limited(way, c.limit, netdapi.Bandwidth{})
				wg.Go(func() {
					took, err := b.exchange(at, c.sent, c.wanted)
					if most := burst + took.Seconds()*rate; err != nil || size > most {
						t.Errorf("%s, %s, %+v: %d bytes in %v, %v; want %.0f at most", at, way, c.limit, size, took, err, most)
					}
					if n, err := b.counters(); err != nil || n.Throttled == 0 {
						t.Errorf("%s, %s: nothing was throttled: %+v, %v", at, way, n, err)
					}
				})
			}
		}
	}
}

// A team's sandboxes share what it has, by whichever family; others have nothing to do
// with it.
func TestBandwidthOfATeam(t *testing.T) {
	const rate, size = 1 << 20, 1 << 20
	w := newWorld(t)
	w.start()
	at := w.exchangesOf("2222")
	shared := netdapi.Bandwidth{Egress: netdapi.Rate{Bytes: rate}}
	boxes := []*box{w.sandbox(), w.sandbox()}
	for _, b := range boxes {
		b.limited(direct, netdapi.Bandwidth{}, shared)
	}
	var wg sync.WaitGroup
	began := time.Now()
	for i, b := range boxes {
		wg.Go(func() {
			if _, err := b.exchange(at[i], size, 0); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if most := burst + time.Since(began).Seconds()*rate; float64(len(boxes)*size) > most {
		t.Errorf("%d bytes in %v", len(boxes)*size, time.Since(began))
	}
	for i, b := range boxes {
		b.limited(direct, netdapi.Bandwidth{}, netdapi.Bandwidth{})
		if _, err := b.exchange(at[1-i], size, size); err != nil {
			t.Errorf("without a limit: %v", err)
		}
	}
}

// A connection that is open goes on by what is said meanwhile.
func TestBandwidthChangesOnARunningSandbox(t *testing.T) {
	w := newWorld(t)
	w.start()
	for i, at := range w.exchangesOf("2222") {
		way := []string{direct, proxied}[i]
		b := w.sandbox()
		b.limited(way, netdapi.Bandwidth{Egress: netdapi.Rate{Bytes: 1}}, netdapi.Bandwidth{}) // it would take days
		done := make(chan error, 1)
		go func() {
			_, err := b.exchange(at, 4<<20, 0)
			done <- err
		}()
		w.eventually("something is throttled", func() error {
			if n, err := b.counters(); err != nil || n.Throttled == 0 {
				return fmt.Errorf("%+v, %w", n, err)
			}
			return nil
		})
		b.limited(way, netdapi.Bandwidth{}, netdapi.Bandwidth{})
		if err := <-done; err != nil {
			t.Errorf("%s, %s: %v", at, way, err)
		}
	}
}

// BenchmarkBandwidth is which share of a limit gets through, over TCP.
func BenchmarkBandwidth(b *testing.B) {
	w := newWorld(b)
	w.start()
	at := net.JoinHostPort(far4, "2222")
	w.exchanges(at)
	for name, way := range map[string]string{"direct": direct, "proxied": proxied} {
		for _, rate := range []uint64{1 << 20, 10 << 20, 100 << 20} {
			for direction, limit := range map[string]netdapi.Bandwidth{"up": {Egress: netdapi.Rate{Bytes: rate}}, "down": {Ingress: netdapi.Rate{Bytes: rate}}} {
				b.Run(fmt.Sprintf("%s/%s/%dMiBps", name, direction, rate>>20), func(b *testing.B) {
					box := w.sandbox()
					box.limited(way, limit, netdapi.Bandwidth{})
					size := int64(5 * rate)
					var sent, wanted int64
					if direction == "up" {
						sent = size
					} else {
						wanted = size
					}
					for b.Loop() {
						took, err := box.exchange(at, sent, wanted)
						if err != nil {
							b.Fatal(err)
						}
						b.ReportMetric(100*float64(size)/took.Seconds()/float64(rate), "%")
					}
				})
			}
		}
	}
}
