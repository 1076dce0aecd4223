package netd_test

import (
	"context"
	"testing"
)

// both is every address of a pair, of both families.
func both(port, v4, v6 string) []string { return []string{v4 + ":" + port, "[" + v6 + "]:" + port} }

func TestRulesDecideWhatGetsOut(t *testing.T) {
	w := newWorld(t)
	w.start()
	for _, network := range []string{"tcp", "udp"} {
		for _, at := range append(both("80", far4, far6), both("80", other4, other6)...) {
			w.serves(w.beyond, network, at)
		}
	}
	b := w.sandbox()
	for _, network := range []string{"tcp", "udp"} {
		for _, at := range both("80", far4, far6) {
			b.refused(network, at) // E22: there is no policy yet
		}
	}
	b.policy(`{"mode":"block-all","egress":{"allowedCidrs":["93.184.0.2/32","2606:aaaa::2/128"],"allowedPorts":[{"port":80},{"port":80,"protocol":"udp"}]}}`)
	for _, network := range []string{"tcp", "udp"} {
		for _, at := range both("80", far4, far6) {
			b.reaches(network, at)
		}
		for _, at := range both("80", other4, other6) {
			b.refused(network, at)
		}
		for _, at := range both("81", far4, far6) {
			b.refused(network, at)
		}
	}
	if err := w.client.Detach(context.Background(), b.slot.ID, 1); err != nil {
		t.Fatal(err)
	}
}
