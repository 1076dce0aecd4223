package lifecycle

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"s0.run/internal/errdefs"
)

// Metrics are the manager's counters.
type Metrics struct {
	claims          *prometheus.CounterVec
	claimSeconds    *prometheus.HistogramVec
	startSeconds    prometheus.Histogram
	pauseSeconds    prometheus.Histogram
	resumeSeconds   prometheus.Histogram
	stepSeconds     *prometheus.HistogramVec
	startFailures   prometheus.Counter
	failures        prometheus.Counter
	teardownRetries prometheus.Counter
	swept           prometheus.Counter
}

// NewMetrics makes the counters and registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		claims: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "s0_node_claims_total", Help: "Claims by kind (warm, cold) and result (ok or the error's code).",
		}, []string{"kind", "result"}),
		claimSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "s0_node_claim_seconds", Help: "Time from a claim's arrival to its durable answer.",
			Buckets: []float64{.0002, .0003, .0004, .0005, .0007, .001, .0015, .002, .003, .005, .01, .02, .05, .1, .5, 1, 5, 10},
		}, []string{"kind"}),
		startSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "s0_node_start_seconds", Help: "Time to start a sandbox until procd is ready.", Buckets: prometheus.ExponentialBuckets(.05, 1.6, 15),
		}),
		pauseSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "s0_node_pause_seconds", Help: "Time to save a sandbox until its image is durable.", Buckets: prometheus.ExponentialBuckets(.05, 1.6, 18),
		}),
		resumeSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "s0_node_resume_seconds", Help: "Time to start a sandbox from its image until procd is ready.", Buckets: prometheus.ExponentialBuckets(.05, 1.6, 18),
		}),
		stepSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "s0_node_step_seconds", Help: "Time of each step of an operation.", Buckets: prometheus.ExponentialBuckets(.0005, 2, 16),
		}, []string{"operation", "step"}),
		startFailures:   counter("s0_node_start_failures_total", "Starts that failed."),
		failures:        counter("s0_node_sandbox_failures_total", "Claimed sandboxes that ended by themselves."),
		teardownRetries: counter("s0_node_teardown_retries_total", "Teardown attempts that failed."),
		swept:           counter("s0_node_swept_total", "Leftovers without an owner that were removed."),
	}
	reg.MustRegister(m.claims, m.claimSeconds, m.startSeconds, m.pauseSeconds, m.resumeSeconds, m.stepSeconds, m.startFailures, m.failures, m.teardownRetries, m.swept)
	return m
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

func (m *Metrics) claim(cold bool, took time.Duration, err error) {
	kind, result := "warm", "ok"
	if cold {
		kind = "cold"
	}
	if err != nil {
		result = errdefs.From(err).Code
	} else {
		m.claimSeconds.WithLabelValues(kind).Observe(took.Seconds())
	}
	m.claims.WithLabelValues(kind, result).Inc()
}
