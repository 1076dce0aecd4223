package httpapi

import (
	"context"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/auth"
	"s0.run/api/internal/ratelimit"
	"s0.run/internal/daemon"
	"s0.run/internal/errdefs"
)

// who is the caller of a request, as the guard has found out.
type who struct {
	identity  auth.Identity
	principal auth.Principal // where the operation needs a team
}

type whoKey struct{}

// caller is who called an operation. The guard has put it there.
func callerOf(r *http.Request) *who { return r.Context().Value(whoKey{}).(*who) }

func principalOf(r *http.Request) auth.Principal { return callerOf(r).principal }

// guard lets a request through to its operation that may call it.
func (a *API) guard(pattern string, operation http.HandlerFunc) http.HandlerFunc {
	acc, listed := operations[pattern]
	serve := a.audited(pattern, operation)
	inside := dataPlane.MatchString(pattern) && !strings.Contains(pattern, "/sandboxvolumes/") // which have the gateway's codes
	return func(w http.ResponseWriter, r *http.Request) {
		if !listed {
			a.refuse(w, r, errdefs.New(errdefs.PermissionDenied, "insufficient permissions"))
			return
		}
		caller, err := a.admit(w, r, acc)
		if err != nil && caller == nil {
			a.refuse(w, r, err)
			return
		}
		if entry := entryOf(r); caller != nil {
			entry.team = caller.principal.TeamID
		}
		serve := serve
		entryOf(r).inside = err == nil && inside
		if err != nil {
			serve = a.audited(pattern, func(w http.ResponseWriter, r *http.Request) { a.refuse(w, r, err) })
		}
		serve(w, r.WithContext(context.WithValue(r.Context(), whoKey{}, caller)))
	}
}

// refuse is fail for a request that no operation sees. It costs its sender's
// address like one that does.
func (a *API) refuse(w http.ResponseWriter, r *http.Request, err error) {
	if w.Header().Get(limitHeader) == "" {
		if limited := a.limit(w, a.hosts, daemon.Network(entryOf(r).client)); limited != nil {
			err = limited
		}
	}
	a.fail(w, r, err)
}

// admit finds out who calls, whether he may, and whether it is not too often. With
// an error and a caller it is he who may not.
func (a *API) admit(w http.ResponseWriter, r *http.Request, acc access) (*who, error) {
	if acc.who == nobody {
		return nil, a.limit(w, a.hosts, daemon.Network(entryOf(r).client))
	}
	id, err := a.authenticate(w, r)
	if err != nil {
		return nil, err
	}
	if !acc.takes(&id) {
		return nil, auth.ErrUnauthenticated
	}
	caller := &who{identity: id}
	if caller.principal, err = a.principal(r, acc, &id); err != nil {
		if limited := a.limit(w, a.teams, id.UserID.String()); limited != nil {
			return nil, limited
		}
		return caller, err
	}
	bucket := caller.principal.TeamID
	if bucket == uuid.Nil {
		bucket = id.UserID
	}
	if err := a.limit(w, a.teams, bucket.String()); err != nil {
		return nil, err
	}
	if !acc.permits(caller, r) {
		return caller, errdefs.New(errdefs.PermissionDenied, "insufficient permissions")
	}
	return caller, nil
}

// takes reports whether callers of this kind may call at all: keys, or people.
func (acc access) takes(id *auth.Identity) bool {
	switch acc.who {
	case user, userTeam, member, memberOrSelf, owner:
		return !id.IsKey()
	case keyAlone:
		return id.IsKey()
	}
	return true
}

// principal is the caller in the team that the request is about, if it is about
// one.
func (a *API) principal(r *http.Request, acc access, id *auth.Identity) (auth.Principal, error) {
	switch acc.who {
	case user, systemAdmin:
		return auth.Principal{}, nil
	case member, memberOrSelf, owner:
		return inNamedTeam(r, id)
	}
	return a.inTeam(r, id)
}

// inNamedTeam is the caller in the team of the path. A team that he is not in is
// none.
func inNamedTeam(r *http.Request, id *auth.Identity) (auth.Principal, error) {
	team, err := parseID(r.PathValue("id"), "team")
	if err != nil {
		return auth.Principal{}, err
	}
	if _, in := id.Grant(team); !in {
		return auth.Principal{}, errdefs.New(errdefs.NotFound, "team not found")
	}
	return id.InTeam(team.String())
}

// permits reports whether this caller may make this request.
func (acc access) permits(c *who, r *http.Request) bool {
	switch acc.who {
	case systemAdmin:
		return c.identity.Operator()
	case owner:
		g, _ := c.identity.Grant(c.principal.TeamID)
		return g.Owner
	case memberOrSelf:
		if r.PathValue("user_id") == c.identity.UserID.String() {
			return true
		}
	}
	return acc.perm == "" || c.principal.Can(acc.perm)
}

// authenticate verifies the token. What costs nothing is done first; a token that
// does not hold, or that nobody has seen, is charged to its sender's address.
func (a *API) authenticate(w http.ResponseWriter, r *http.Request) (auth.Identity, error) {
	token := bearer(r)
	if token == "" {
		return auth.Identity{}, auth.ErrUnauthenticated
	}
	id, known, err := a.cfg.Auth.Known(token)
	if known && err == nil {
		return id, nil
	}
	if known || !a.cfg.Auth.Trusted(token) {
		if limited := a.limit(w, a.hosts, daemon.Network(entryOf(r).client)); limited != nil {
			return auth.Identity{}, limited
		}
	}
	if known {
		return auth.Identity{}, err
	}
	return a.cfg.Auth.Lookup(r.Context(), token)
}

// bearer is the token of the Authorization header alone: one in a URL would end
// in logs (A07).
func bearer(r *http.Request) string {
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return ""
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// inTeam chooses the team. A key that may act in every team names one that exists.
func (a *API) inTeam(r *http.Request, id *auth.Identity) (auth.Principal, error) {
	p, err := id.InTeam(r.Header.Get("X-Team-ID"))
	if err == nil && id.Elsewhere(p.TeamID) {
		err = a.cfg.Store.TeamExists(r.Context(), p.TeamID)
	}
	return p, err
}

const (
	rateLimited = "rate_limited"
	limitHeader = "X-RateLimit-Limit"
)

func (a *API) limit(w http.ResponseWriter, l *ratelimit.Limiter, key string) error {
	v := l.Take(key)
	w.Header().Set(limitHeader, strconv.Itoa(v.Limit))
	w.Header().Set("X-RateLimit-Remaining", strconv.Itoa(v.Remaining))
	if v.OK {
		return nil
	}
	return errdefs.WithCode(errdefs.Exhausted, rateLimited, "too many requests").WithRetryAfter(v.RetryAfter)
}

func retryAfter(d time.Duration) string {
	return strconv.Itoa(max(1, int(math.Ceil(d.Seconds()))))
}
