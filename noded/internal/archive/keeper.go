package archive

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// uploads is how many images are stored at a time: each is several requests at a time.
	uploads = 2
	// uploadTimeout is far below the age at which an upload counts as abandoned.
	uploadTimeout = 6 * time.Hour
	// An upload that failed is tried again for ever, from the first pause to the longest.
	firstRetry, lastRetry = time.Second, 5 * time.Minute
	// collectEvery is the pace of collections, each node's at its own time.
	collectEvery = time.Hour
	// dropEvery is how soon a disk that fills up is noticed.
	dropEvery = 10 * time.Second
	// dropTimeout bounds one look for images to drop.
	dropTimeout = 5 * time.Minute
)

// Image is one that lies on this node.
type Image struct {
	Ref
	Dir   string
	About []byte // what its owner wants to know when it is fetched
}

// Sandboxes knows the node's sandboxes; package lifecycle is its implementation.
type Sandboxes interface {
	// Unstored lists the images that are wanted and not known to be in the store.
	Unstored() []Image
	// ImagesChanged delivers a value when that may have changed since the last one was
	// taken.
	ImagesChanged() <-chan struct{}
	// Hold keeps an image where it is until release, whoever has it removed meanwhile. It
	// reports false when it is not wanted any more.
	Hold(img Image) (release func(), ok bool)
	// SetStored records, durably, that an image is in the store as img has it. It reports
	// false when the image is not wanted any more, or not as it was.
	SetStored(ctx context.Context, img Image) (bool, error)
	// DropStored removes from the node's disk an image that is in the store, of the
	// sandbox that has been paused for longest. It reports false when there is none.
	DropStored(ctx context.Context) (bool, error)
}

// KeeperConfig wires a Keeper. Every field but DryRun is required.
type KeeperConfig struct {
	Archive   *Archive
	Sandboxes Sandboxes
	Crowded   func() bool // whether the node's disk should be emptied of what is elsewhere
	DryRun    bool        // collections only tell
	Metrics   prometheus.Registerer
	Log       *slog.Logger
}

// Keeper stores the node's images in the background, and collects what is left of
// uploads that were cut off.
type Keeper struct {
	cfg     KeeperConfig
	metrics metrics

	// Run's alone.
	running map[Ref]context.CancelCauseFunc
	failed  map[Ref]failure
	ended   chan ending

	mu     sync.Mutex
	status Status
}

// Status is how the node gets on with the store.
type Status struct {
	Waiting   int    // images that are to be stored
	LastError string // of the latest attempt, if it failed
}

type failure struct {
	pause time.Duration
	until time.Time
}

type ending struct {
	ref Ref
	err error
}

var errUnwanted = errors.New("the image is not wanted any more")

// NewKeeper makes a Keeper.
func NewKeeper(cfg KeeperConfig) *Keeper {
	return &Keeper{
		cfg: cfg, metrics: newMetrics(cfg.Metrics),
		running: map[Ref]context.CancelCauseFunc{}, failed: map[Ref]failure{}, ended: make(chan ending),
	}
}

// Status tells how it goes.
func (k *Keeper) Status() Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.status
}

// Run works until ctx ends, and returns when what it started has ended. What was not
// stored by then, the next Run stores.
func (k *Keeper) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { every(ctx, collectEvery, k.collect) })
	wg.Go(func() { every(ctx, dropEvery, k.drop) })
	for {
		retry := time.NewTimer(k.look(ctx, &wg))
		select {
		case <-k.cfg.Sandboxes.ImagesChanged():
		case <-retry.C:
		case e := <-k.ended:
			k.end(e)
		case <-ctx.Done():
			for len(k.running) > 0 { // they were told by their context
				k.end(<-k.ended)
			}
			return nil
		}
		retry.Stop()
	}
}

// every calls f soon and then again and again, not in step with other nodes.
func every(ctx context.Context, period time.Duration, f func(context.Context)) {
	for {
		select {
		case <-time.After(period/2 + rand.N(period)):
			f(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// look ends uploads that nobody wants any more, begins others, and returns when to look
// again without being told.
func (k *Keeper) look(ctx context.Context, wg *sync.WaitGroup) time.Duration {
	list := k.cfg.Sandboxes.Unstored()
	k.metrics.waiting.Set(float64(len(list)))
	k.mu.Lock()
	k.status.Waiting = len(list)
	k.mu.Unlock()
	wanted := map[Ref]bool{}
	for _, img := range list {
		wanted[img.Ref] = true
	}
	for ref, cancel := range k.running {
		if !wanted[ref] {
			cancel(errUnwanted)
		}
	}
	for ref := range k.failed {
		if !wanted[ref] {
			delete(k.failed, ref)
		}
	}
	again := lastRetry
	for _, img := range list {
		wait := time.Until(k.failed[img.Ref].until)
		switch {
		case k.running[img.Ref] != nil || len(k.running) == uploads:
		case wait > 0:
			again = min(again, wait)
		default:
			k.begin(ctx, wg, img)
		}
	}
	return again
}

func (k *Keeper) begin(ctx context.Context, wg *sync.WaitGroup, img Image) {
	ctx, cancel := context.WithCancelCause(ctx)
	k.running[img.Ref] = cancel
	wg.Go(func() {
		defer cancel(nil)
		k.ended <- ending{img.Ref, k.upload(ctx, img)}
	})
}

func (k *Keeper) upload(ctx context.Context, img Image) error {
	ctx, cancel := context.WithTimeout(ctx, uploadTimeout)
	defer cancel()
	release, ok := k.cfg.Sandboxes.Hold(img)
	if !ok {
		return errUnwanted
	}
	defer release() // when nothing more is written
	begin := time.Now()
	if err := k.cfg.Archive.Upload(ctx, img.Ref, img.Dir, img.About); err != nil {
		if errors.Is(context.Cause(ctx), errUnwanted) {
			return errUnwanted // whatever reading a removed image came to
		}
		return err
	}
	kept, err := k.cfg.Sandboxes.SetStored(ctx, img)
	if err != nil {
		return err
	}
	if !kept {
		return errUnwanted
	}
	k.metrics.seconds.Observe(time.Since(begin).Seconds())
	k.cfg.Log.Info("stored an image", "", img.Ref, "took", time.Since(begin))
	return nil
}

func (k *Keeper) end(e ending) {
	delete(k.running, e.ref)
	result, last := "ok", ""
	switch {
	case e.err == nil:
		delete(k.failed, e.ref)
	case errors.Is(e.err, errUnwanted), errors.Is(e.err, context.Canceled):
		result = "unwanted"
	default:
		result, last = "failed", e.err.Error()
		f := k.failed[e.ref]
		f.pause = min(max(2*f.pause, firstRetry), lastRetry)
		f.until = time.Now().Add(f.pause/2 + rand.N(f.pause))
		k.failed[e.ref] = f
		k.cfg.Log.Warn("an image could not be stored and will be tried again", "", e.ref, "error", e.err)
	}
	k.metrics.uploads.WithLabelValues(result).Inc()
	if result != "unwanted" {
		k.mu.Lock()
		k.status.LastError = last
		k.mu.Unlock()
	}
}

func (k *Keeper) collect(ctx context.Context) {
	c, err := k.cfg.Archive.Collect(ctx, k.cfg.DryRun, k.cfg.Log)
	k.metrics.collected.Add(float64(c.Removed))
	switch {
	case err != nil && ctx.Err() == nil:
		k.cfg.Log.Warn("collecting what uploads left", "error", err)
	case c.Abandoned > 0:
		k.cfg.Log.Info("collected what uploads left", "unfinished", c.Unfinished, "abandoned", c.Abandoned, "removed", c.Removed)
	}
}

// drop frees a crowded disk of images that are in the store as well, one after another
// and no more than it takes.
func (k *Keeper) drop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, dropTimeout)
	defer cancel()
	for ctx.Err() == nil && k.cfg.Crowded() {
		dropped, err := k.cfg.Sandboxes.DropStored(ctx)
		if err != nil {
			k.cfg.Log.Warn("dropping an image that is in the store", "error", err)
		}
		if !dropped {
			return
		}
		k.metrics.dropped.Inc()
	}
}

type metrics struct {
	uploads            *prometheus.CounterVec
	seconds            prometheus.Histogram
	waiting            prometheus.Gauge
	collected, dropped prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) metrics {
	m := metrics{
		uploads:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "s0_node_store_uploads_total", Help: "Uploads of images by result (ok, failed, unwanted)."}, []string{"result"}),
		seconds:   prometheus.NewHistogram(prometheus.HistogramOpts{Name: "s0_node_store_upload_seconds", Help: "Time to store an image.", Buckets: prometheus.ExponentialBuckets(.05, 2, 16)}),
		waiting:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "s0_node_store_waiting", Help: "Images that are to be stored."}),
		collected: counter("s0_node_store_collected_total", "Uploads that were cut off and whose objects were removed."),
		dropped:   counter("s0_node_store_dropped_total", "Images that were dropped from the disk because they are in the store."),
	}
	reg.MustRegister(m.uploads, m.seconds, m.waiting, m.collected, m.dropped)
	return m
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}
