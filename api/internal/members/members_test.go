package members

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/fakenode"
	"s0.run/api/internal/nodes"
	"s0.run/api/internal/placement"
	"s0.run/api/internal/ratelimit"
	"s0.run/api/internal/store"
	"s0.run/internal/daemon"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/nodecert"
	"s0.run/internal/s0test"
	"s0.run/internal/sandbox"
)

// fixture is an API server's part that nodes see.
type fixture struct {
	*testing.T
	dsn     string
	store   *store.Store
	ca      *nodecert.Authority
	keeper  *Keeper
	table   *placement.Table
	address string // where nodes join
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{T: t, dsn: s0test.Postgres(t), table: placement.New()}
	var err error
	if f.store, err = store.Open(t.Context(), f.dsn); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.store.Close)
	if f.ca, err = nodecert.EnsureAuthority(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	f.keeper = f.replica(f.table, ratelimit.New(1e6, 1e6))
	f.address = f.listen(f.keeper)
	return f
}

// replica is one more API server's.
func (f *fixture) replica(table *placement.Table, attempts *ratelimit.Limiter) *Keeper {
	return New(Config{Attempts: attempts, Store: f.store, Authority: f.ca, Cluster: "c", Table: table, Log: slog.New(slog.DiscardHandler)})
}

func (f *fixture) listen(k *Keeper) string {
	f.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	srv := k.Server()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- daemon.Serve(ctx, srv, tls.NewListener(daemon.Bound(l, MaxConns, MaxConnsOfOne), srv.TLSConfig), 0)
	}()
	f.Cleanup(func() {
		cancel()
		<-done
	})
	return l.Addr().String()
}

func (f *fixture) token(node string, uses int) string {
	f.Helper()
	token, _, err := NewToken(f.Context(), f.store, node, uses, time.Hour)
	if err != nil {
		f.Fatal(err)
	}
	return token
}

func (f *fixture) exec(sql string, args ...any) {
	f.Helper()
	conn, err := pgx.Connect(f.Context(), f.dsn)
	if err != nil {
		f.Fatal(err)
	}
	defer conn.Close(f.Context())
	if _, err := conn.Exec(f.Context(), sql, args...); err != nil {
		f.Fatal(err)
	}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := nodecert.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// ask makes a request as a node does.
func (f *fixture) ask(with *tls.Config, path string, key *ecdsa.PrivateKey, req nodecert.Request) (answer nodecert.Answer, status int, err error) {
	f.Helper()
	if req.CSR, err = nodecert.NewCSR(key); err != nil {
		f.Fatal(err)
	}
	body, err := json.Marshal(req)
	if err != nil {
		f.Fatal(err)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	transport := &http.Transport{TLSClientConfig: with, Protocols: protocols}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(f.Context(), time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+f.address+path, bytes.NewReader(body))
	if err != nil {
		f.Fatal(err)
	}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return answer, 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode == http.StatusOK {
		err = json.Unmarshal(text, &answer)
	}
	return answer, resp.StatusCode, err
}

func (f *fixture) join(token, node string, key *ecdsa.PrivateKey) (*nodecert.Credentials, int) {
	f.Helper()
	answer, status, err := f.ask(nodecert.Introduced(f.ca.Pin(), "c"), nodecert.JoinPath, key,
		nodecert.Request{Token: token, Cluster: "c", Node: node, Endpoint: "127.0.0.1:1"})
	if err != nil {
		f.Fatal(err)
	}
	if status != http.StatusOK {
		return nil, status
	}
	have, err := answer.Take(key, "c", node)
	if err != nil {
		f.Fatal(err)
	}
	return have, status
}

func (f *fixture) renew(have *nodecert.Credentials, node string, key *ecdsa.PrivateKey) (nodecert.Answer, int, error) {
	return f.ask(nodecert.Client(have, nodecert.API("c")), nodecert.RenewPath, key, nodecert.Request{Cluster: "c", Node: node, Endpoint: "127.0.0.1:2"})
}

func identity(t *testing.T, have *nodecert.Credentials) nodecert.Identity {
	t.Helper()
	id, err := nodecert.IdentityOf(have.Cert.Leaf)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// H04: a token admits as many nodes as it says, of the name that it says, for as long as it says.
func TestH04_Tokens(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	once := f.token("", 1)
	key := newKey(t)
	have, status := f.join(once, "n1", key)
	if status != http.StatusOK {
		t.Fatal(status)
	}
	if id := identity(t, have); id.Cluster != "c" || id.Node != "n1" {
		t.Errorf("it is certified as %s", id)
	}
	again, status := f.join(once, "n1", key) // whose answer was lost
	if status != http.StatusOK || identity(t, again) != identity(t, have) {
		t.Errorf("the same node once more: %d", status)
	}
	late := f.token("", 5)
	f.exec("UPDATE node_tokens SET expires_at = now() WHERE uses_left = 5")
	ofN5 := f.token("n5", 1)
	for name, c := range map[string]struct {
		token, node string
		want        int
	}{
		"a token that is used up":      {once, "n2", http.StatusUnauthorized},
		"one that is over":             {late, "n2", http.StatusUnauthorized},
		"one of another node":          {ofN5, "n2", http.StatusUnauthorized},
		"one that nobody made":         {"s0n_0123456789abcdef_" + "0123456789012345678901234567890123456789", "n2", http.StatusUnauthorized},
		"one with another secret":      {ofN5[:len(ofN5)-40] + "0123456789012345678901234567890123456789", "n5", http.StatusUnauthorized},
		"none":                         {"", "n2", http.StatusUnauthorized},
		"a name that there is already": {f.token("", 1), "n1", http.StatusConflict},
		"a name that is none":          {f.token("", 1), "N_2", http.StatusBadRequest},
	} {
		if _, status := f.join(c.token, c.node, newKey(t)); status != c.want {
			t.Errorf("%s: %d, want %d", name, status, c.want)
		}
	}
	if _, status := f.join(ofN5, "n5", newKey(t)); status != http.StatusOK {
		t.Errorf("the node that a token is for: %d", status)
	}
	other := nodecert.Request{Token: f.token("", 1), Cluster: "d", Node: "n9", Endpoint: "127.0.0.1:1"}
	if _, status, err := f.ask(nodecert.Introduced(f.ca.Pin(), "c"), nodecert.JoinPath, newKey(t), other); err != nil || status != http.StatusForbidden {
		t.Errorf("a node of another cluster: %d, %v", status, err)
	}
}

// H04: a token does not lie where it can be read.
func TestH04_TokensAreHashed(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	token := f.token("", 1)
	conn, err := pgx.Connect(t.Context(), f.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var row string
	if err := conn.QueryRow(t.Context(), "SELECT row_to_json(t)::text || encode(secret_sha256, 'escape') FROM node_tokens t").Scan(&row); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains([]byte(row), []byte(token[len(token)-40:])) {
		t.Errorf("stored as %s", row)
	}
}

// H04: nobody guesses tokens, at any rate.
func TestH04_AttemptsAreBounded(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	limited := f.replica(placement.New(), ratelimit.New(1e-3, attemptBurst))
	f.address = f.listen(limited)
	var refused, limitedBy int
	for range attemptBurst + 20 {
		switch _, status := f.join("s0n_0123456789abcdef_0123456789012345678901234567890123456789", "n", newKey(t)); status {
		case http.StatusUnauthorized:
			refused++
		case http.StatusTooManyRequests:
			limitedBy++
		default:
			t.Fatal(status)
		}
	}
	if limitedBy != 20 || refused != attemptBurst {
		t.Errorf("%d refused, %d told to wait", refused, limitedBy)
	}
}

// logged is what is worth a line.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logged) lines() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.text.Bytes(), []byte("\n"))
}

// A09, H04: who has no turn is not listened to; who says nonsense or guesses fills no log.
func TestA09_RefusalsCostLittle(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var log logged
	f.address = f.listen(New(Config{Attempts: ratelimit.New(1e-6, 3), Store: f.store, Authority: f.ca, Cluster: "c", Table: placement.New(), Log: slog.New(slog.NewTextHandler(&log, nil))}))
	token := f.token("", 1)
	for _, c := range []struct {
		path, cluster, endpoint, token string
		want, lines                    int
	}{
		{nodecert.JoinPath, "c", "nowhere", token, http.StatusBadRequest, 0},
		{nodecert.JoinPath, "c", "127.0.0.1:1", "guessed", http.StatusUnauthorized, 0},
		{nodecert.RenewPath, "c", "127.0.0.1:1", "", http.StatusUnauthorized, 0},
		{nodecert.JoinPath, "d", "127.0.0.1:1", token, http.StatusForbidden, 1},
		{nodecert.JoinPath, "c", strings.Repeat("x", 2*nodecert.MaxMessage), token, http.StatusTooManyRequests, 1}, // not 400: it was not read
	} {
		req := nodecert.Request{Token: c.token, Cluster: c.cluster, Node: "n1", Endpoint: c.endpoint}
		if _, status, err := f.ask(nodecert.Introduced(f.ca.Pin(), "c"), c.path, newKey(t), req); err != nil || status != c.want || log.lines() != c.lines {
			t.Errorf("%s: %d, %v, %d lines, want %d and %d", c.path, status, err, log.lines(), c.want, c.lines)
		}
	}
}

// H03, H04: a node's certificate is worth its own renewal, while the node is a member.
func TestH03_Renewal(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	reusable := f.token("", 5)
	have, _ := f.join(reusable, "n1", newKey(t))
	second, _ := f.join(reusable, "n2", newKey(t))
	next := newKey(t)
	answer, status, err := f.renew(have, "n1", next)
	if err != nil || status != http.StatusOK {
		t.Fatalf("%d, %v", status, err)
	}
	renewed, err := answer.Take(next, "c", "n1")
	if err != nil || identity(t, renewed) != identity(t, have) {
		t.Fatalf("renewed: %v", err)
	}
	if _, status, err := f.renew(second, "n1", newKey(t)); err != nil || status != http.StatusForbidden {
		t.Errorf("in another node's name: %d, %v", status, err)
	}
	if _, status, err := f.ask(nodecert.Introduced(f.ca.Pin(), "c"), nodecert.RenewPath, newKey(t), nodecert.Request{Cluster: "c", Node: "n1", Endpoint: "127.0.0.1:3"}); err != nil || status != http.StatusUnauthorized {
		t.Errorf("without a certificate: %d, %v", status, err)
	}
	strange, err := nodecert.EnsureAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		by   *nodecert.Authority
		id   nodecert.Identity
		life time.Duration
	}{
		"another authority's": {strange, identity(t, have), time.Hour},
		"one that is over":    {f.ca, identity(t, have), -time.Minute},
		"another cluster's":   {f.ca, nodecert.Identity{Cluster: "d", Node: "n1", Membership: uuid.New()}, time.Hour},
		"an API server's":     {f.ca, nodecert.API("c"), time.Hour},
	} {
		key := newKey(t)
		cert, err := c.by.Issue(c.id, key.Public(), c.life)
		if err != nil {
			t.Fatal(err)
		}
		creds := &nodecert.Credentials{Cert: &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}, Trust: f.ca.Trust()}
		if _, status, err := f.renew(creds, "n1", newKey(t)); err == nil {
			t.Errorf("%s: %d", name, status)
		}
	}
	if err := f.store.RemoveNode(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	if _, status, err := f.renew(renewed, "n1", newKey(t)); err != nil || status != http.StatusForbidden {
		t.Errorf("of a node that was removed: %d, %v", status, err)
	}
	if _, status := f.join(reusable, "n1", newKey(t)); status != http.StatusForbidden {
		t.Errorf("by a token of before its removal: %d", status)
	}
	back, status := f.join(f.token("", 1), "n1", newKey(t))
	if status != http.StatusOK || identity(t, back) == identity(t, have) {
		t.Errorf("by a new token: %d", status)
	}
	if _, status, err := f.renew(renewed, "n1", newKey(t)); err != nil || status != http.StatusForbidden {
		t.Errorf("of what it was before: %d, %v", status, err)
	}
}

// member is a fake node that has joined.
func (f *fixture) member(name string) (*fakenode.Node, *nodecert.Credentials) {
	f.Helper()
	key := newKey(f.T)
	have, status := f.join(f.token("", 1), name, key)
	if status != http.StatusOK {
		f.Fatal(status)
	}
	n := fakenode.Start(f.T, &fakenode.Node{Name: name, Cluster: "c", ObjectStore: true})
	f.moved(name, n.ListenTLS(f.T, nodecert.Server(func() *nodecert.Credentials { return have }, false, nodecert.OnlyAPI("c"))))
	return n, have
}

// moved says where a node is.
func (f *fixture) moved(name, endpoint string) {
	f.Helper()
	f.exec("UPDATE nodes SET endpoint = $2 WHERE name = $1", name, endpoint)
	f.keeper.Kick()
}

// follow runs a server's set of nodes, with the list as it is in the database.
func (f *fixture) follow(k *Keeper, table *placement.Table) *nodes.Set {
	f.Helper()
	set := nodes.New(nodes.Config{DialMember: k.Dial, Cluster: "c", Table: table, Log: slog.New(slog.DiscardHandler), OnSync: func(string) {}, OnEnd: func(string, sandbox.ID) {}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 3)
	go func() { done <- set.Run(ctx) }()
	go func() { done <- k.Run(ctx, set) }()
	go func() {
		done <- f.store.Listen(ctx, func(string) { k.Kick() })
	}()
	f.Cleanup(func() {
		cancel()
		for range cap(done) {
			if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
				f.Error(err)
			}
		}
	})
	return set
}

func (f *fixture) synced(table *placement.Table, want ...string) {
	f.Helper()
	fakenode.Eventually(f.T, "synced nodes", func() bool {
		var got []string
		for _, n := range table.Synced() {
			got = append(got, n.Name)
		}
		slices.Sort(got)
		return slices.Equal(got, want)
	})
}

// H03: nodes come and go while servers run, and who is removed is refused at once: streams
// that are open end, and nobody is called.
func TestH03_ARemovedNodeIsHungUpOn(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	other := placement.New()
	replica := f.replica(other, nil)
	sets := []*nodes.Set{f.follow(f.keeper, f.table), f.follow(replica, other)}
	n, _ := f.member("n1")
	n.AddSlots("p", 2)
	f.synced(f.table, "n1")
	f.synced(other, "n1")
	f.member("n2")
	f.synced(f.table, "n1", "n2")
	f.synced(other, "n1", "n2")
	rpc, err := sets[1].RPC("n1")
	if err != nil {
		t.Fatal(err)
	}
	stream, err := rpc.Watch(t.Context(), &nodeapi.WatchRequest{})
	if err != nil || !stream.Receive() {
		t.Fatalf("%v, %v", err, stream.Err())
	}
	if err := f.store.RemoveNode(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	for stream.Receive() { // until it is hung up on
	}
	f.synced(f.table, "n2")
	f.synced(other, "n2")
	for _, set := range sets {
		if _, err := set.RPC("n1"); !errdefs.Is(err, errdefs.Unavailable) {
			t.Errorf("a removed node is called: %v", err)
		}
	}
	if _, err := rpc.Info(t.Context(), &nodeapi.InfoRequest{}); connect.CodeOf(err) != connect.CodeUnavailable && connect.CodeOf(err) != connect.CodeCanceled {
		t.Errorf("who had a client calls it: %v", err)
	}
}

// H04: where a node says that it is, another one answers; nobody talks to it.
func TestH04_AnotherNodeInItsPlace(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	n1, have := f.member("n1")
	n1.AddSlots("p", 1)
	rogue := fakenode.Start(t, &fakenode.Node{Name: "n2", Cluster: "c"})
	rogue.AddSlots("p", 7)
	if _, status := f.join(f.token("", 1), "n2", newKey(t)); status != http.StatusOK {
		t.Fatal(status)
	}
	// It has n1's certificate, and the name of n2.
	f.moved("n2", rogue.ListenTLS(t, nodecert.Server(func() *nodecert.Credentials { return have }, false, nodecert.OnlyAPI("c"))))
	f.follow(f.keeper, f.table)
	f.synced(f.table, "n1")
	// It is n1 as well as n1 is, and says that it is n2.
	f.moved("n1", rogue.ListenTLS(t, nodecert.Server(func() *nodecert.Credentials { return have }, false, nodecert.OnlyAPI("c"))))
	f.synced(f.table)
	if f.table.Free() != 0 {
		t.Errorf("%d slots of nobody's can be claimed", f.table.Free())
	}
}

// A server's own certificate is made anew before it is over; one that is over is refused.
func TestAServersCertificateIsRenewed(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.member("n1")
	list, err := f.store.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := nodes.Member{Name: "n1", Membership: list[0].Membership, Endpoint: list[0].Endpoint}
	cert, err := f.ca.IssueAPI("c", -time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	old := &nodecert.Credentials{Cert: cert, Trust: f.ca.Trust()}
	c, err := tls.Dial("tcp", m.Endpoint, nodecert.Client(old, nodecert.Identity{Cluster: "c", Node: m.Name, Membership: m.Membership}))
	if err == nil { // the client of TLS 1.3 is done before the server has looked
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if err == nil {
		t.Error("a server whose certificate is over was let in")
	}
	f.keeper.mine = old
	conn, err := f.keeper.Dial(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if now := f.keeper.credentials(); now == old || now != f.keeper.credentials() {
		t.Error("it is not renewed once")
	}
}

// Drained nodes get nothing new, and have what they had when that is over.
func TestDrain(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.follow(f.keeper, f.table)
	n, _ := f.member("n1")
	n.AddSlots("p", 3)
	fakenode.Eventually(t, "free slots", func() bool { return f.table.Free() == 3 })
	if err := f.store.DrainNode(t.Context(), "n1", true); err != nil {
		t.Fatal(err)
	}
	fakenode.Eventually(t, "the drain", func() bool { return f.table.Free() == 0 && f.table.Closed("n1") })
	n.AddSlots("p", 1)
	if _, ok := f.table.ColdNode(sandbox.GVisor, nil); ok {
		t.Error("a drained node is chosen for a cold start")
	}
	if _, ok := f.table.StoreNode("", nil); ok {
		t.Error("a drained node is chosen for a resume")
	}
	if err := f.store.DrainNode(t.Context(), "n1", false); err != nil {
		t.Fatal(err)
	}
	fakenode.Eventually(t, "what it had, and has got", func() bool { return f.table.Free() == 4 })
	if err := f.store.DrainNode(t.Context(), "n7", true); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("a node that is not: %v", err)
	}
}

// A09: who connects and says nothing, or no end of it, keeps no node from joining.
func TestA09_HandshakesAreBounded(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", f.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(2 * time.Minute))
		return c
	}
	silent := dial()
	slow := dial()
	if _, err := slow.Write([]byte{22, 3, 1, 2, 0, 1}); err != nil { // the beginning of a ClientHello
		t.Fatal(err)
	}
	huge := dial()
	record := append([]byte{22, 3, 1, 64, 0, 1, 255, 255, 255}, make([]byte, 16<<10)...) // a ClientHello of 16 MiB
	for range 64 {
		if _, err := huge.Write(record[:5+16<<10]); err != nil {
			break
		}
	}
	if _, status := f.join(f.token("", 1), "n1", newKey(t)); status != http.StatusOK {
		t.Errorf("a node joins meanwhile: %d", status)
	}
	for name, c := range map[string]net.Conn{"silent": silent, "slow": slow, "huge": huge} {
		for {
			_, err := c.Read(make([]byte, 1024))
			if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
				t.Errorf("%s is not hung up on", name)
			}
			if err != nil {
				break
			}
		}
	}
}
