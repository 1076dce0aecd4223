package noop

import (
	"encoding/json"
	"net/http"
	"sync"
	"sync/atomic"

	"s0.run/internal/procapi"
)

// warmth is how the warm processes of a sandbox are that runs none.
type warmth struct {
	restarts atomic.Int64

	mu      sync.Mutex
	status  procapi.WarmStatus
	changed chan struct{}
}

func newWarmth(ready bool) *warmth {
	return &warmth{status: procapi.WarmStatus{Ready: ready}, changed: make(chan struct{})}
}

func (w *warmth) set(status procapi.WarmStatus) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status = status
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *warmth) now() (procapi.WarmStatus, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status, w.changed
}

// ServeHTTP streams the status as procd does.
func (w *warmth) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	for {
		status, changed := w.now()
		if json.NewEncoder(rw).Encode(status) != nil || http.NewResponseController(rw).Flush() != nil {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}
