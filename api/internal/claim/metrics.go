package claim

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"s0.run/internal/errdefs"
)

const (
	kindWarm = "warm"
	kindCold = "cold"
)

// Metrics is how long claims take, in all and by phase.
type Metrics struct {
	totals *prometheus.HistogramVec
	phases *prometheus.HistogramVec
}

// buckets reach from a tenth of a millisecond to a cold start.
var buckets = []float64{.0001, .0002, .0003, .0005, .0007, .001, .0015, .002, .003, .005, .01, .02, .05, .1, .25, .5, 1, 2, 5, 10, 30, 90}

// NewMetrics makes and registers the metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		totals: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "s0_api_claim_seconds", Help: "Time to serve a claim, by kind of start and outcome.", Buckets: buckets,
		}, []string{"kind", "outcome"}),
		phases: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "s0_api_claim_phase_seconds", Help: "Time of a claim's phases: reserve a connection, the node's claim or start, the row. Node and store overlap.", Buckets: buckets,
		}, []string{"phase"}),
	}
	reg.MustRegister(m.totals, m.phases)
	return m
}

func (m *Metrics) total(kind string, d time.Duration, err error) {
	outcome := "ok"
	if err != nil {
		outcome = errdefs.From(err).Code
	}
	m.totals.WithLabelValues(kind, outcome).Observe(d.Seconds())
}

func (m *Metrics) phase(name string, began time.Time) {
	m.phases.WithLabelValues(name).Observe(time.Since(began).Seconds())
}
