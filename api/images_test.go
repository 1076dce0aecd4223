package api_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	connectrpc "connectrpc.com/connect"

	"s0.run/api"
	"s0.run/api/internal/fakenode"
	"s0.run/internal/nodeapi"
	"s0.run/internal/regauth"
)

// withRegistry gives a server a registry that nobody asks, and nodes that resolve.
func withRegistry(t *testing.T, keyFile *string, resolve func(image string) (string, error)) option {
	return func(cfg *api.Config, n *fakenode.Node) {
		*keyFile = filepath.Join(t.TempDir(), "registry.key")
		cfg.Registry, cfg.PushRegistry, cfg.RegistryKeyFile = "127.0.0.1:5", "images.example:443", *keyFile
		n.OnResolve = resolve
	}
}

func digestOf(n int64) string { return fmt.Sprintf("sha256:%064x", n) }

func unresolved(string) (string, error) {
	return "", connectrpc.NewError(connectrpc.CodeInvalidArgument, errors.New("no such image"))
}

type registryCredentials struct {
	Provider, PushRegistry, PullRegistry, Username, Password string
	ExpiresAt                                                time.Time
}

func TestA04_RegistryCredentials(t *testing.T) {
	t.Parallel()
	var keyFile string
	i := start(t, withRegistry(t, &keyFile, unresolved))
	key := i.key("builder")
	ask := func(token string, body any) answer {
		return i.send(request{method: "POST", path: "/api/v1/registry/credentials", token: token, body: body})
	}
	var c registryCredentials
	ask(key, `{}`).want(200, &c)
	signer, err := regauth.LoadKey(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	g, err := signer.Open(c.Username, c.Password, time.Now())
	if err != nil || !g.MayPush(c.Username+"/app") || g.MayPush("t-ffffffff/app") || g.Admin || !g.Expires.Equal(c.ExpiresAt) {
		t.Errorf("the credential: %+v, %v", g, err)
	}
	if c.Provider != "builtin" || c.PushRegistry != "images.example:443" || c.PullRegistry != "127.0.0.1:5" || !strings.HasPrefix(c.Username, "t-") || len(c.Username) != 10 {
		t.Errorf("%+v", c)
	}
	if left := time.Until(c.ExpiresAt); left > 3*time.Hour || left < time.Hour {
		t.Errorf("it works for %v", left)
	}
	var again registryCredentials
	ask(key, nil).want(200, &again)
	if again.Username != c.Username {
		t.Errorf("the prefix was %s and is %s", c.Username, again.Username)
	}
	for target, status := range map[string]int{
		"app": 200, "app:v1": 200, c.Username + "/app:v1": 200, "images.example:443/" + c.Username + "/a/b": 200, "127.0.0.1:5/" + c.Username + "/a": 200,
		"t-ffffffff/app": 403, "s0/default": 403, "127.0.0.1:5/s0/default": 403, c.Username + "0/app": 403, "ghcr.io/" + c.Username + "/app": 403,
		c.Username + "/../t-ffffffff/app": 400, "App": 400, "a b": 400,
	} {
		if a := ask(key, map[string]string{"targetImage": target}); a.status != status {
			t.Errorf("%q: %d %s, want %d", target, a.status, a.msg, status)
		}
	}
	ask(i.key("viewer"), `{}`).refused(403, "forbidden")
	if strings.Contains(i.log.String(), c.Password) {
		t.Error("A22: the password is in the log")
	}

	none := start(t)
	none.send(request{method: "POST", path: "/api/v1/registry/credentials", token: none.key("admin"), body: `{}`}).refused(503, "unavailable")
}

func imageSpec(image string) map[string]any {
	return map[string]any{"mainContainer": map[string]any{"image": image, "resources": map[string]any{"memory": "1Gi"}}, "pool": map[string]any{"minIdle": 1, "maxIdle": 1}}
}

func TestA04_TemplatesNameTheirTeamsImages(t *testing.T) {
	t.Parallel()
	var keyFile string
	i := start(t, withRegistry(t, &keyFile, unresolved))
	key := i.key("admin")
	var c registryCredentials
	i.send(request{method: "POST", path: "/api/v1/registry/credentials", token: key, body: `{}`}).want(200, &c)
	n := 0
	for image, status := range map[string]int{
		"127.0.0.1:5/" + c.Username + "/app:1":        201,
		"images.example:443/" + c.Username + "/app:1": 201,
		"127.0.0.1:5/s0/default:latest":               201,
		"python:3.13":                                 201,
		"ghcr.io/someone/app":                         201,
		"127.0.0.1:5/t-ffffffff/app:1":                403,
		"127.0.0.1:5/" + c.Username + "x/app":         403,
		"127.0.0.1:5/" + c.Username:                   403,
		"images.example:443/t-ffffffff/app":           403,
		"169.254.169.254/latest/meta-data":            403,
		"localhost:5000/x":                            403,
		"registry.corp/x":                             403,
		"ghcr.io:443/x":                               403,
	} {
		n++
		body := map[string]any{"template_id": fmt.Sprint("t", n), "spec": imageSpec(image)}
		a := i.send(request{method: "POST", path: "/api/v1/templates", token: key, body: body})
		if a.status != status {
			t.Errorf("%s: %d %s, want %d", image, a.status, a.msg, status)
		}
		if status != 201 {
			continue
		}
		a = i.send(request{method: "PUT", path: fmt.Sprint("/api/v1/templates/t", n), token: key, body: map[string]any{"spec": imageSpec("127.0.0.1:5/t-ffffffff/app:1")}})
		a.refused(403, "forbidden")
	}
}

type pinnedTemplate struct {
	Spec   struct{ MainContainer struct{ Image string } }
	Status struct{ Image string }
}

// A tag is asked for when the template is stored, and is what it was then on every
// node, until the template is stored again.
func TestDigestsArePinned(t *testing.T) {
	t.Parallel()
	var keyFile string
	var now atomic.Int64
	i := start(t, withRegistry(t, &keyFile, func(image string) (string, error) {
		if n := now.Load(); n > 0 && image == "ghcr.io/a/b:1" {
			return digestOf(n), nil
		}
		return unresolved(image)
	}))
	key := i.key("admin")
	warms := func(image string) func() bool {
		return func() bool {
			pools, _ := i.node.Pools()
			for _, p := range pools {
				if p.GetSpec().GetImage() == image {
					return true
				}
			}
			return false
		}
	}
	now.Store(1)
	var tmpl pinnedTemplate
	put := func() {
		i.send(request{method: "PUT", path: "/api/v1/templates/mine", token: key, body: map[string]any{"spec": imageSpec("ghcr.io/a/b:1")}}).want(200, &tmpl)
	}
	i.send(request{method: "POST", path: "/api/v1/templates", token: key, body: map[string]any{"template_id": "mine", "spec": imageSpec("ghcr.io/a/b:1")}}).want(201, &tmpl)
	if tmpl.Status.Image != "ghcr.io/a/b@"+digestOf(1) || tmpl.Spec.MainContainer.Image != "ghcr.io/a/b:1" {
		t.Errorf("created: %+v", tmpl)
	}
	fakenode.Eventually(t, "the first image", warms("ghcr.io/a/b@"+digestOf(1)))
	now.Store(2) // the tag moves on
	i.send(request{method: "GET", path: "/api/v1/templates/mine", token: key}).want(200, &tmpl)
	if tmpl.Status.Image != "ghcr.io/a/b@"+digestOf(1) {
		t.Errorf("it moves with its tag: %+v", tmpl)
	}
	put()
	if tmpl.Status.Image != "ghcr.io/a/b@"+digestOf(2) {
		t.Errorf("stored again: %+v", tmpl)
	}
	fakenode.Eventually(t, "the second image", warms("ghcr.io/a/b@"+digestOf(2)))
	now.Store(0) // X44: the registry is away; what it was stays
	put()
	if tmpl.Status.Image != "ghcr.io/a/b@"+digestOf(2) {
		t.Errorf("stored while the registry is away: %+v", tmpl)
	}
	i.send(request{method: "PUT", path: "/api/v1/templates/mine", token: key, body: map[string]any{"spec": imageSpec("ghcr.io/a/c@" + digestOf(9))}}).want(200, &tmpl)
	if tmpl.Status.Image != "ghcr.io/a/c@"+digestOf(9) {
		t.Errorf("by digest: %+v", tmpl)
	}
}

// What could not be asked for while there was no node is asked for when one comes: a pool
// that is filled before is filled twice.
func TestANodeThatComesIsAskedForDigests(t *testing.T) {
	t.Parallel()
	var keyFile string
	asked := make(chan string, 64)
	i := start(t, withRegistry(t, &keyFile, func(image string) (string, error) {
		asked <- image
		return digestOf(1), nil
	}))
	select {
	case <-asked:
	case <-time.After(20 * time.Second): // the next look is after 30
		t.Fatal("the node was not asked")
	}
	fakenode.Eventually(t, "a pool of the digest alone", func() bool {
		pools, _ := i.node.Pools()
		for _, p := range pools {
			if p.GetSpec().GetImage() != "docker.io/library/image@"+digestOf(1) {
				return false
			}
		}
		return len(pools) == 1
	})
}

// A claim that has to wait for an image says for what, and how far it is.
func TestClaimsTellOfTheirImage(t *testing.T) {
	t.Parallel()
	i := start(t, func(cfg *api.Config, n *fakenode.Node) {
		cfg.PoolMin, cfg.PoolMax = 0, 0
		n.OnClaim = func(context.Context, *nodeapi.ClaimRequest) error {
			err := connectrpc.NewError(connectrpc.CodeUnavailable, errors.New("image x is not there yet: pulling image: 120 of 400 MB"))
			err.Meta().Set(nodeapi.CodeHeader, nodeapi.CodeImage)
			return err
		}
	})
	a := i.send(request{method: "POST", path: "/api/v1/sandboxes", token: i.key("developer"), body: `{"template":"default"}`})
	a.refused(503, "unavailable")
	if !strings.Contains(a.msg, "pulling image: 120 of 400 MB") || a.header.Get("Retry-After") == "" {
		t.Errorf("%q, retry after %q", a.msg, a.header.Get("Retry-After"))
	}
}
