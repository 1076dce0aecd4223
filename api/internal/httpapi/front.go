package httpapi

import (
	"net"
	"net/http"
	"net/netip"
	"path"
	"strings"

	"s0.run/internal/errdefs"
)

// HostList is the names that the server answers to. A page that rebinds its own
// name to this machine sends that name, and is refused (A12). An address can't be
// rebound, so that every literal one is good.
type HostList struct{ names map[string]bool }

// NewHostList allows the loopback names and more; "*" allows every name.
func NewHostList(more []string) *HostList {
	l := &HostList{names: map[string]bool{"localhost": true}}
	for _, h := range more {
		l.names[strings.ToLower(strings.TrimSuffix(h, "."))] = true
	}
	return l
}

// Allows reports whether a Host header names this server.
func (l *HostList) Allows(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if l.names["*"] || l.names[name] {
		return true
	}
	_, err := netip.ParseAddr(strings.Trim(name, "[]"))
	return err == nil
}

// SameOrigin reports whether a browser's page of this server, or no browser,
// opens a WebSocket.
func (l *HostList) SameOrigin(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
	}
	for _, scheme := range []string{"http://", "https://"} {
		if host, ok := strings.CutPrefix(strings.ToLower(origin), scheme); ok {
			return host == strings.ToLower(r.Host) && l.Allows(r.Host)
		}
	}
	return false
}

// front refuses what no operation shall see, and gives what is a sandbox's to it.
func (a *API) front(next http.Handler) http.Handler {
	crossOrigin := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		byHost, exposed, hostErr := a.cfg.Exposure.Parse(r)
		byPair, paired, pairErr := a.cfg.Exposure.ParsePair(r)
		switch {
		case exposed:
			a.expose(w, r, byHost, hostErr)
		case !a.cfg.Hosts.Allows(r.Host):
			a.refuse(w, r, errdefs.New(errdefs.PermissionDenied, "this server does not answer to that name; its operator can allow it"))
		case paired: // of another origin or not: no credential of ours comes with it
			a.expose(w, r, byPair, pairErr)
		case crossOrigin.Check(r) != nil:
			a.refuse(w, r, errdefs.New(errdefs.PermissionDenied, "cross-origin request"))
		case encoded(r):
			a.refuse(w, r, errdefs.New(errdefs.InvalidArgument, "Content-Encoding is not supported"))
		default:
			next.ServeHTTP(w, r)
		}
	})
}

func encoded(r *http.Request) bool {
	for _, v := range r.Header.Values("Content-Encoding") {
		if !strings.EqualFold(v, "identity") {
			return true
		}
	}
	return false
}

// routes finds the operation; what is none has an answer in the envelope too.
type routes struct {
	mux *http.ServeMux
	api *API
}

func (rt routes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if path.Clean(r.URL.Path) != r.URL.Path { // the mux would redirect
		rt.api.refuse(w, r, errdefs.New(errdefs.NotFound, "no such route"))
		return
	}
	_, pattern := rt.mux.Handler(r)
	if pattern != "" {
		entryOf(r).route = pattern
		rt.mux.ServeHTTP(w, r)
		return
	}
	allowed := rt.methods(r)
	if len(allowed) == 0 {
		rt.api.refuse(w, r, errdefs.New(errdefs.NotFound, "no such route"))
		return
	}
	w.Header().Set("Allow", strings.Join(allowed, ", "))
	rt.api.refuse(w, r, errdefs.New(errdefs.MethodNotAllowed, "this route does not take %.16q", r.Method))
}

// methods lists what a path would take.
func (rt routes) methods(r *http.Request) []string {
	var list []string
	probe := &http.Request{Host: r.Host, URL: r.URL}
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		probe.Method = m
		if _, pattern := rt.mux.Handler(probe); pattern != "" {
			list = append(list, m)
		}
	}
	return list
}
