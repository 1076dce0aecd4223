package httpapi

import (
	"context"
	"net"
	"net/http"
	"time"

	"s0.run/api/internal/openapi"
	"s0.run/internal/errdefs"
)

const readyTimeout = 2 * time.Second

// GetHealth implements GET /healthz.
func (a *API) GetHealth(w http.ResponseWriter, r *http.Request) {
	a.answer(w, r, http.StatusOK, openapi.Health{Status: openapi.HealthStatusHealthy, Timestamp: time.Now().UTC()}, nil)
}

// GetReadiness implements GET /readyz: claims can be served.
func (a *API) GetReadiness(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
	defer cancel()
	err := a.cfg.Store.Ready(ctx)
	if a.cfg.Draining() {
		err = errdefs.New(errdefs.Unavailable, "this server stops").WithRetryAfter(time.Second)
	}
	if err == nil && len(a.cfg.Table.Synced()) == 0 {
		err = errdefs.New(errdefs.Unavailable, "no node is available").WithRetryAfter(time.Second)
	}
	a.answer(w, r, http.StatusOK, openapi.Readiness{Status: openapi.ReadinessStatusReady}, err)
}

// GetMetadata implements GET /metadata.
func (a *API) GetMetadata(w http.ResponseWriter, r *http.Request) {
	a.answer(w, r, http.StatusOK, openapi.Metadata{GatewayMode: openapi.MetadataGatewayModeDirect, Service: "s0"}, nil)
}

// GetMetrics implements GET /metrics, for this machine alone (H05): they tell about
// every tenant.
func (a *API) GetMetrics(w http.ResponseWriter, r *http.Request) {
	if !overLoopback(r) {
		a.fail(w, r, errdefs.New(errdefs.NotFound, "no such route"))
		return
	}
	a.cfg.Metrics.ServeHTTP(w, r)
}

// overLoopback reports whether both ends of the connection are this machine, and
// no proxy speaks for somebody else.
func overLoopback(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	return ok && local.IP.IsLoopback() && err == nil && net.ParseIP(host).IsLoopback() &&
		r.Header.Get("X-Forwarded-For") == "" && r.Header.Get("Forwarded") == ""
}
