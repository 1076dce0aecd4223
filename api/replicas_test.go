package api_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/gorilla/websocket"

	"s0.run/api"
	"s0.run/api/client"
	"s0.run/api/internal/fakenode"
	"s0.run/internal/nodeapi"
)

// faultTime is how long the tests that break things at random go on: S0_FAULT_TIME,
// or a moment.
func faultTime(t *testing.T) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(os.Getenv("S0_FAULT_TIME"))
	if err != nil {
		d = time.Second
	}
	return d
}

// seeded gives chance that can be repeated: the seed is in the log of a test that
// fails, and S0_FAULT_SEED brings it back.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed, err := strconv.ParseUint(os.Getenv("S0_FAULT_SEED"), 10, 64)
	if err != nil {
		seed = rand.Uint64()
	}
	t.Logf("S0_FAULT_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, seed))
}

// claimed is what porcupine knows of claims: which sandbox each key has, and that
// none has two.
type claimed map[string]string

// claimModel is a claim by key, done at once: a key's first claim gives a sandbox
// that nobody has, each later one gives the same. A claim that failed may have
// been done or not; if so, a later one of its key tells.
var claimModel = porcupine.Model{
	Init: func() any { return claimed{} },
	Step: func(state, input, output any) (bool, any) {
		s, key, id := state.(claimed), input.(string), output.(string)
		if id == "" {
			return true, s
		}
		if has, known := s[key]; known {
			return has == id, s
		}
		next := claimed{key: id}
		for k, v := range s {
			if v == id {
				return false, s
			}
			next[k] = v
		}
		return true, next
	},
	Equal:             func(a, b any) bool { return fmt.Sprint(a) == fmt.Sprint(b) },
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("claim(%v) = %v", input, output) },
}

// The model refuses what it is there to refuse.
func TestG01_TheModelOfClaims(t *testing.T) {
	t.Parallel()
	op := func(key, id string, call, end int64) porcupine.Operation {
		return porcupine.Operation{Input: key, Output: id, Call: call, Return: end}
	}
	for name, c := range map[string]struct {
		ops  []porcupine.Operation
		want bool
	}{
		"one each":                {[]porcupine.Operation{op("k1", "a", 0, 9), op("k2", "b", 1, 8), op("k1", "a", 10, 11)}, true},
		"a failure in between":    {[]porcupine.Operation{op("k1", "", 0, 1), op("k1", "a", 2, 3)}, true},
		"a slot for two keys":     {[]porcupine.Operation{op("k1", "a", 0, 9), op("k2", "a", 1, 8)}, false},
		"two sandboxes for a key": {[]porcupine.Operation{op("k1", "a", 0, 9), op("k1", "b", 1, 8)}, false},
	} {
		if got := porcupine.CheckOperations(claimModel, c.ops); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// G01: replicas that race for few slots, with keys that several of them are asked
// for at the same time, at a node that is slow and loses answers, and a database
// that loses its connections. No slot is claimed twice, no key has two sandboxes.
func TestG01_ClaimsOfManyReplicasAreLinearizable(t *testing.T) {
	t.Parallel()
	chance := seeded(t)
	var mu sync.Mutex
	dice := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return chance.IntN(n)
	}
	a := start(t, func(_ *api.Config, n *fakenode.Node) {
		n.AfterClaim = func(context.Context, *nodeapi.ClaimRequest) error {
			if dice(20) == 0 {
				return errors.New("the answer is lost")
			}
			return nil
		}
	})
	replicas := []*instance{a, replica(t, a), replica(t, a)}
	key := a.key("developer")
	began, end := time.Now(), time.Now().Add(faultTime(t))
	var ops []porcupine.Operation
	var wg sync.WaitGroup
	for c := range 9 {
		wg.Go(func() {
			for n := 0; time.Now().Before(end) || n < 4; n++ {
				op := porcupine.Operation{ClientId: c, Input: fmt.Sprint("key-", n), Call: int64(time.Since(began))}
				id := replicas[(c+n)%3].claimByKey(key, fmt.Sprint("key-", n))
				op.Output, op.Return = id, int64(time.Since(began))
				mu.Lock()
				ops = append(ops, op)
				mu.Unlock()
				if dice(30) == 0 {
					loseSessions(t, a.dsn)
				}
			}
		})
	}
	wg.Wait()
	if result := porcupine.CheckOperationsTimeout(claimModel, ops, time.Minute); result != porcupine.Ok {
		t.Errorf("%s: %d claims have no order in which each was done at once:\n%v", result, len(ops), ops)
	}
	agreeOnClaims(t, a, key, ops)
}

// agreeOnClaims waits until rows and node have what was acknowledged, all of it and
// each for itself. What was not acknowledged may be there as well.
func agreeOnClaims(t *testing.T, i *instance, token string, ops []porcupine.Operation) {
	t.Helper()
	ids := map[string]bool{}
	for _, op := range ops {
		if id := op.Output.(string); id != "" {
			ids[id] = true
		}
	}
	if len(ids) == 0 {
		t.Fatal("no claim was acknowledged: the test has not tested")
	}
	t.Logf("%d claims, %d sandboxes", len(ops), len(ids))
	there := i.node.Sandboxes()
	for id := range ids {
		if there[id] == nil {
			t.Errorf("R1: %s was acknowledged, and its node does not have it", id)
		}
		fakenode.Eventually(t, id+" has its row", func() bool { // a connection may be lost once more
			return i.send(request{method: "GET", path: "/api/v1/sandboxes/" + id, token: token}).status == 200
		})
	}
}

// loseSessions breaks the servers' connections to the database, wherever they are.
func loseSessions(t *testing.T, dsn string) {
	conn := connect(t, dsn)
	defer conn.Close(context.Background())
	if _, err := conn.Exec(context.Background(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE datname = current_database() AND application_name = 's0-api' AND pid <> pg_backend_pid()`); err != nil {
		t.Error(err)
	}
}

// claimByKey answers the sandbox's id, or nothing for an answer that says to come
// back.
func (i *instance) claimByKey(token, key string) string {
	var c struct {
		SandboxID string `json:"sandbox_id"`
	}
	a := i.send(request{method: "POST", path: "/api/v1/sandboxes", token: token, body: `{"template":"default"}`, header: http.Header{"Idempotency-Key": {key}}})
	switch a.status {
	case 201:
		a.want(201, &c)
	case 503, 429:
	default:
		i.t.Errorf("status %d: %s: %s", a.status, a.raw, i.log.line(a.header.Get("X-Request-Id")))
	}
	return c.SandboxID
}

// Replicas are restarted one after the other while clients claim and a terminal is
// open: no claim fails for a client that tries again, each makes one sandbox, and
// the terminal goes on at another replica.
func TestX40_RollingRestartUnderLoad(t *testing.T) {
	t.Parallel()
	a := start(t, func(c *api.Config, _ *fakenode.Node) { c.Drain = 50 * time.Millisecond })
	replicas := []*instance{a, replica(t, a)}
	key := a.key("developer")
	var urls [2]atomic.Value
	for n, i := range replicas {
		urls[n].Store(strings.TrimPrefix(i.url, "http://"))
	}
	base := "/api/v1/sandboxes/" + a.claim(key) + "/contexts/"
	terminal := a.attach(key, base)

	c := balanced(t, key, func(n int) string { return urls[n%2].Load().(string) })
	stop := make(chan struct{})
	ids := make(chan string, 100_000)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				sb, err := c.ClaimSandbox(context.Background(), client.ClaimRequest{Template: "default"})
				if err != nil {
					t.Errorf("a claim failed: %v", err)
					return
				}
				ids <- sb.SandboxID
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for end := time.Now().Add(faultTime(t)); ; {
		for n, i := range replicas {
			i.stop()
			if n == 0 && terminal != nil {
				terminal.closesWith(t, 1012)
				replicas[1].attach(key, base).Close()
				terminal = nil
			}
			i.again()
			urls[n].Store(strings.TrimPrefix(i.url, "http://"))
		}
		if time.Now().After(end) {
			break
		}
	}
	close(stop)
	wg.Wait()
	close(ids)
	seen := map[string]bool{}
	for id := range ids {
		if seen[id] {
			t.Errorf("G01: %s was given to two claims", id)
		}
		seen[id] = true
	}
	var list struct{ Count int }
	a.send(request{method: "GET", path: "/api/v1/sandboxes", token: key}).want(200, &list)
	if want := len(seen) + 1; list.Count != want || len(seen) < 10 {
		t.Errorf("%d sandboxes for %d claims that were acknowledged", list.Count, want)
	}
}

// balanced is a client whose connections go to one server after the other, and to
// the next when one refuses.
func balanced(t *testing.T, key string, server func(n int) string) *client.Client {
	t.Helper()
	var turn atomic.Int64
	transport := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (conn net.Conn, err error) {
		first := int(turn.Add(1))
		for n := range 2 {
			if conn, err = new(net.Dialer).DialContext(ctx, network, server(first+n)); err == nil {
				return conn, nil
			}
		}
		return nil, err
	}}
	t.Cleanup(transport.CloseIdleConnections)
	c, err := client.New(client.Config{BaseURL: "http://localhost", Token: key, HTTPClient: &http.Client{Transport: transport}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// terminal is an open WebSocket of a context.
type terminal struct{ *websocket.Conn }

// attach attaches to the sandbox's first context, which it makes if there is none.
func (i *instance) attach(token, contexts string) *terminal {
	i.t.Helper()
	var list struct{ Contexts []struct{ ID string } }
	i.send(request{method: "GET", path: strings.TrimSuffix(contexts, "/"), token: token}).want(200, &list)
	if len(list.Contexts) == 0 {
		i.send(request{method: "POST", path: strings.TrimSuffix(contexts, "/"), token: token, body: `{"type":"cmd","cmd":{"command":["cat"]}}`}).want(201, nil)
		return i.attach(token, contexts)
	}
	address := "ws" + strings.TrimPrefix(i.url, "http") + contexts + list.Contexts[0].ID + "/ws"
	conn, _, err := websocket.DefaultDialer.Dial(address, http.Header{"Authorization": {"Bearer " + token}})
	if err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(func() { conn.Close() })
	return &terminal{conn}
}

func (c *terminal) closesWith(t *testing.T, code int) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	for {
		_, _, err := c.ReadMessage()
		if err == nil {
			continue
		}
		if !websocket.IsCloseError(err, code) {
			t.Errorf("the stream ended with %v, want code %d", err, code)
		}
		return
	}
}

// A server that is told to stop says so first, and finishes what it has begun.
func TestX39_ReadinessGoesBeforeService(t *testing.T) {
	t.Parallel()
	begun, proceed := make(chan struct{}), make(chan struct{})
	begin := sync.OnceFunc(func() { close(begun) }) // a slow machine's server may ask again
	i := start(t, func(c *api.Config, n *fakenode.Node) {
		c.Drain = 5 * time.Second // for two requests on a slow machine
		n.OnClaim = func(context.Context, *nodeapi.ClaimRequest) error {
			begin()
			<-proceed
			return nil
		}
	})
	key := i.key("developer")
	done := make(chan int, 1)
	go func() {
		done <- i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: `{"template":"default"}`}).status
	}()
	<-begun
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		i.stop()
	}()
	fakenode.Eventually(t, "the server is not ready any more, and still serves", func() bool {
		return i.send(request{method: "GET", path: "/readyz"}).status == 503
	})
	i.send(request{method: "GET", path: "/api/v1/sandboxes", token: key}).want(200, nil)
	close(proceed)
	if status := <-done; status != 201 {
		t.Errorf("the claim that had begun was answered with %d", status)
	}
	<-stopped
}

// A06, X40: what changes at one replica is in force at the other within ten
// seconds, also when the other has just lost the connection that tells it.
func TestX40_ChangesReachAReplicaThatWasDeaf(t *testing.T) {
	t.Parallel()
	a := start(t)
	b := replica(t, a)
	key, jwt := a.key("developer"), a.signIn()
	b.send(request{method: "GET", path: "/api/v1/sandboxes", token: key}).want(200, nil) // in its memory
	var list struct {
		APIKeys []struct{ ID string } `json:"api_keys"`
	}
	a.send(request{method: "GET", path: "/api-keys", token: jwt}).want(200, &list)
	loseSessions(t, a.dsn)
	eventuallyDone := func(what string, do func() int, want int) {
		fakenode.Eventually(t, what, func() bool { return do() == want }) // connections are being made again
	}
	soon := func(what string, do func() int, want int) {
		t.Helper()
		began := time.Now()
		eventuallyDone(what, do, want)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("%s: it took %v", what, took)
		}
	}
	eventuallyDone("a key is revoked", func() int {
		return a.send(request{method: "POST", path: "/api-keys/" + list.APIKeys[0].ID + "/deactivate", token: jwt}).status
	}, 200)
	soon("the other replica refuses the key", func() int {
		return b.send(request{method: "GET", path: "/api/v1/sandboxes", token: key}).status
	}, 401)
	eventuallyDone("a template is made", func() int {
		return a.send(request{method: "POST", path: "/api/v1/templates", token: jwt, body: `{"template_id":"fresh","spec":` + templateSpec + `}`}).status
	}, 201)
	soon("the other replica claims from it", func() int {
		return b.send(request{method: "POST", path: "/api/v1/sandboxes", token: jwt, body: `{"template":"fresh"}`}).status
	}, 201)
}
