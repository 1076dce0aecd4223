package kubelet

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	reviewTimeout = 10 * time.Second
	// A yes is believed for a while, a no for less: rights that were just given count soon.
	allowTTL, denyTTL = 2 * time.Minute, 10 * time.Second
	// maxRemembered bounds what anybody can make us remember.
	maxRemembered = 4096
	// maxReviews bounds how many questions of a kind are asked at a time; the others wait.
	maxReviews = 8
)

// caller is who a certificate or a token says.
type caller struct {
	name   string
	uid    string
	groups []string
	extra  map[string]authorizationv1.ExtraValue
}

var errUnauthenticated = errors.New("neither a client certificate nor a token of this cluster's")

// auth asks Kubernetes who calls and whether he may, as a kubelet does.
type auth struct {
	node   string
	cas    *x509.CertPool // of client certificates; nil: they count for nothing
	tokens reviewer       // asked by anybody
	access reviewer       // asked for who is known
	log    *slog.Logger

	// Who is known and what is refused are apart: guesses push nobody out.
	mu        sync.Mutex
	callers   map[[sha256.Size]byte]remembered[*caller]
	strangers map[[sha256.Size]byte]remembered[struct{}]
	allowed   map[string]remembered[struct{}]
	denied    map[string]remembered[struct{}]
}

type remembered[T any] struct {
	value T
	until time.Time
}

func newAuth(cfg Config) *auth {
	return &auth{
		node: cfg.NodeName, cas: cfg.ClientCAs, tokens: newReviewer(cfg.TokenReviews), access: newReviewer(cfg.AccessReviews), log: cfg.Log,
		callers: map[[sha256.Size]byte]remembered[*caller]{}, strangers: map[[sha256.Size]byte]remembered[struct{}]{},
		allowed: map[string]remembered[struct{}]{}, denied: map[string]remembered[struct{}]{},
	}
}

// wrap lets a request through to h when its caller may make it.
func (a *auth) wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, err := a.authenticate(r)
		if err != nil {
			a.log.Info("kubelet API: unauthenticated", "path", r.URL.Path, "from", r.RemoteAddr, "error", err)
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		verb, resource := attributes(r)
		ok, err := a.authorize(r.Context(), who, verb, resource)
		if err != nil {
			a.log.Warn("kubelet API: could not ask who may do what", "error", err)
			http.Error(w, "authorization can't be checked now", http.StatusServiceUnavailable)
			return
		}
		if !ok {
			a.log.Info("kubelet API: forbidden", "user", who.name, "verb", verb, "resource", resource, "path", r.URL.Path)
			http.Error(w, "Forbidden (user="+who.name+", verb="+verb+", resource=nodes, subresource="+resource+")", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func (a *auth) authenticate(r *http.Request) (*caller, error) {
	if who := a.byCertificate(r); who != nil {
		return who, nil
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || strings.TrimSpace(token) == "" {
		return nil, errUnauthenticated
	}
	return a.byToken(r.Context(), token)
}

// byCertificate verifies here what the handshake only asked for: without one, a token counts.
func (a *auth) byCertificate(r *http.Request) *caller {
	if a.cas == nil || r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil
	}
	between := x509.NewCertPool()
	for _, c := range r.TLS.PeerCertificates[1:] {
		between.AddCert(c)
	}
	cert := r.TLS.PeerCertificates[0]
	_, err := cert.Verify(x509.VerifyOptions{Roots: a.cas, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil || cert.Subject.CommonName == "" {
		return nil
	}
	return &caller{name: cert.Subject.CommonName, groups: append(cert.Subject.Organization, "system:authenticated")}
}

func (a *auth) byToken(ctx context.Context, token string) (*caller, error) {
	key := sha256.Sum256([]byte(token)) // the token itself is kept nowhere
	if who, ok := recall(a, a.callers, key); ok {
		return who, nil
	}
	if _, ok := recall(a, a.strangers, key); ok {
		return nil, errUnauthenticated
	}
	ctx, end, err := a.tokens.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	review, err := a.tokens.kube.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	if !review.Status.Authenticated || review.Status.User.Username == "" {
		remember(a, a.strangers, key, struct{}{}, denyTTL)
		return nil, errUnauthenticated
	}
	u := review.Status.User
	who := &caller{name: u.Username, uid: u.UID, groups: u.Groups, extra: map[string]authorizationv1.ExtraValue{}}
	for k, v := range u.Extra {
		who.extra[k] = authorizationv1.ExtraValue(v)
	}
	remember(a, a.callers, key, who, allowTTL)
	return who, nil
}

func (a *auth) authorize(ctx context.Context, who *caller, verb, subresource string) (bool, error) {
	key := strings.Join(append([]string{who.name, who.uid, verb, subresource}, who.groups...), "\x00")
	if _, ok := recall(a, a.allowed, key); ok {
		return true, nil
	}
	if _, ok := recall(a, a.denied, key); ok {
		return false, nil
	}
	ctx, end, err := a.access.begin(ctx)
	if err != nil {
		return false, err
	}
	defer end()
	review, err := a.access.kube.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: who.name, UID: who.uid, Groups: who.groups, Extra: who.extra,
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Version: "v1", Resource: "nodes", Subresource: subresource, Name: a.node},
	}}, metav1.CreateOptions{})
	if err != nil {
		return false, err
	}
	if !review.Status.Allowed || review.Status.Denied {
		remember(a, a.denied, key, struct{}{}, denyTTL)
		return false, nil
	}
	remember(a, a.allowed, key, struct{}{}, allowTTL)
	return true, nil
}

// reviewer asks Kubernetes one kind of question, a few at a time.
type reviewer struct {
	kube  kubernetes.Interface
	seats chan struct{} // holds a value for each question that is under way
}

func newReviewer(kube kubernetes.Interface) reviewer {
	return reviewer{kube, make(chan struct{}, maxReviews)}
}

// begin waits until one may be asked; end is called when it is answered.
func (r reviewer) begin(ctx context.Context) (_ context.Context, end func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	select {
	case r.seats <- struct{}{}:
		return ctx, func() {
			<-r.seats
			cancel()
		}, nil
	case <-ctx.Done():
		cancel()
		return nil, nil, ctx.Err()
	}
}

func recall[K comparable, T any](a *auth, m map[K]remembered[T], key K) (v T, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r, ok := m[key]
	if !ok || time.Now().After(r.until) {
		delete(m, key)
		return v, false
	}
	return r.value, true
}

func remember[K comparable, T any](a *auth, m map[K]remembered[T], key K, v T, ttl time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(m) >= maxRemembered {
		clear(m)
	}
	m[key] = remembered[T]{v, time.Now().Add(ttl)}
}

// attributes are what a request is for, in the words of a kubelet's RBAC. What runs
// something inside a sandbox is a creation, whichever method its protocol begins with.
func attributes(r *http.Request) (verb, subresource string) {
	verb = "create"
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		verb = "get"
	case http.MethodPut:
		verb = "update"
	case http.MethodPatch:
		verb = "patch"
	case http.MethodDelete:
		verb = "delete"
	}
	first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch first {
	case "stats":
		return verb, "stats"
	case "metrics":
		return verb, "metrics"
	case "exec", "attach", "portForward":
		return "create", "proxy"
	}
	return verb, "proxy"
}
