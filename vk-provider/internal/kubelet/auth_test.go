package kubelet

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// apiServer answers as Kubernetes does who somebody is, and what he may.
type apiServer struct {
	asked atomic.Int32
	down  atomic.Bool
}

func (k *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.asked.Add(1)
	if k.down.Load() {
		http.Error(w, "down", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case "/apis/authentication.k8s.io/v1/tokenreviews":
		var review authenticationv1.TokenReview
		_ = json.NewDecoder(r.Body).Decode(&review)
		review.APIVersion, review.Kind = "authentication.k8s.io/v1", "TokenReview"
		if review.Spec.Token == "operator" || review.Spec.Token == "stranger" {
			review.Status = authenticationv1.TokenReviewStatus{Authenticated: true, User: authenticationv1.UserInfo{Username: review.Spec.Token}}
		}
		_ = json.NewEncoder(w).Encode(review)
	case "/apis/authorization.k8s.io/v1/subjectaccessreviews":
		var review authorizationv1.SubjectAccessReview
		_ = json.NewDecoder(r.Body).Decode(&review)
		review.APIVersion, review.Kind = "authorization.k8s.io/v1", "SubjectAccessReview"
		a := review.Spec.ResourceAttributes
		review.Status.Allowed = review.Spec.User == "operator" && a.Resource == "nodes" && a.Name == "n" && (a.Verb == "get" || a.Subresource == "proxy")
		_ = json.NewEncoder(w).Encode(review)
	}
}

func guarded(t *testing.T) (*apiServer, func(method, path, token string) int) {
	t.Helper()
	k := &apiServer{}
	srv := httptest.NewServer(k)
	t.Cleanup(srv.Close)
	kube, err := kubernetes.NewForConfig(&rest.Config{Host: srv.URL, QPS: -1, ContentConfig: rest.ContentConfig{ContentType: "application/json"}})
	if err != nil {
		t.Fatal(err)
	}
	h := newAuth(Config{NodeName: "n", TokenReviews: kube, AccessReviews: kube, Log: slog.New(slog.DiscardHandler)}).wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	return k, func(method, path, token string) int {
		r := httptest.NewRequest(method, path, nil)
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code
	}
}

func TestH02_KubeletAPIKnowsItsCallers(t *testing.T) {
	t.Parallel()
	k, ask := guarded(t)
	for _, c := range []struct {
		method, path, token string
		want                int
	}{
		{"GET", "/pods", "", http.StatusUnauthorized},
		{"POST", "/exec/a/b/c", "", http.StatusUnauthorized},
		{"GET", "/pods", "guessed", http.StatusUnauthorized},
		{"GET", "/pods", "stranger", http.StatusForbidden},
		{"GET", "/stats/summary", "stranger", http.StatusForbidden},
		{"GET", "/nowhere", "stranger", http.StatusForbidden},
		{"GET", "/stats/summary", "operator", http.StatusTeapot},
		{"POST", "/exec/a/b/c", "operator", http.StatusTeapot},
		{"DELETE", "/metrics/x", "operator", http.StatusForbidden},
	} {
		if got := ask(c.method, c.path, c.token); got != c.want {
			t.Errorf("%s %s as %q is answered with %d, not %d", c.method, c.path, c.token, got, c.want)
		}
	}
	before := k.asked.Load()
	if got := ask("GET", "/stats/summary", "operator"); got != http.StatusTeapot || k.asked.Load() != before {
		t.Error("who was let in is asked about again at once")
	}
	k.down.Store(true)
	if got := ask("GET", "/pods", "new"); got != http.StatusUnauthorized {
		t.Errorf("while Kubernetes is away a new caller is answered with %d", got)
	}
	if got := ask("POST", "/metrics/x", "operator"); got != http.StatusServiceUnavailable {
		t.Errorf("while Kubernetes is away what was not asked before is answered with %d", got)
	}
}

// Guesses, however many, push nobody out who is known.
func TestH02_GuessesPushNobodyOut(t *testing.T) {
	t.Parallel()
	k, ask := guarded(t)
	if got := ask("GET", "/stats/summary", "operator"); got != http.StatusTeapot {
		t.Fatalf("the operator is answered with %d", got)
	}
	for i := range maxRemembered + 1 {
		if got := ask("GET", "/stats/summary", fmt.Sprint("guess ", i)); got != http.StatusUnauthorized {
			t.Fatalf("a guess is answered with %d", got)
		}
	}
	before := k.asked.Load()
	if got := ask("GET", "/stats/summary", "operator"); got != http.StatusTeapot || k.asked.Load() != before {
		t.Errorf("the operator is answered with %d after %d questions", got, k.asked.Load()-before)
	}
}

// An exec that begins as a WebSocket is a GET, and still runs something.
func TestH02_RunningSomethingIsACreation(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/exec/a/b/c", "/attach/a/b/c", "/portForward/a/b"} {
		if verb, sub := attributes(httptest.NewRequest(http.MethodGet, path, nil)); verb != "create" || sub != "proxy" {
			t.Errorf("%s is %s of %s", path, verb, sub)
		}
	}
}
