package httpapi

import (
	"context"
	"crypto/subtle"
	"net"
	"net/http"
	"strings"
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

// GetMetrics implements GET /metrics, for this machine and who has the token for them
// alone (H05): they tell about every tenant.
func (a *API) GetMetrics(w http.ResponseWriter, r *http.Request) {
	if !overLoopback(r) && !bears(r, a.cfg.MetricsToken) {
		a.fail(w, r, errdefs.New(errdefs.NotFound, "no such route"))
		return
	}
	a.cfg.Metrics.ServeHTTP(w, r)
}

// bears reports whether a request has a token; nobody has the empty one.
func bears(r *http.Request, token string) bool {
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return ok && token != "" && subtle.ConstantTimeCompare([]byte(given), []byte(token)) == 1
}

// overLoopback reports whether both ends of the connection are this machine, and
// no proxy speaks for somebody else.
func overLoopback(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	return ok && local.IP.IsLoopback() && err == nil && net.ParseIP(host).IsLoopback() &&
		r.Header.Get("X-Forwarded-For") == "" && r.Header.Get("Forwarded") == ""
}
