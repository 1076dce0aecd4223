// Package member makes a node one of a cluster whose API servers are elsewhere: it has a
// key of its own certified, for a token at first and for its certificate afterwards, and
// has it certified anew in good time.
//
// It owns the directory with the key, the certificate and whom to believe, and one
// goroutine while [Member.Run] runs. Connections that are open go on when a certificate
// changes. What comes over them is none of its business.
package member

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"s0.run/internal/nodecert"
)

const (
	// callTimeout bounds one attempt, the handshake included.
	callTimeout = 15 * time.Second
	// Attempts that fail are made again after a pause that grows.
	firstPause, longestPause = time.Second, time.Minute
	maxToken                 = 4 << 10
	maxMessage               = 200 // of a refusal, in a log
)

// Config says whose member a node is. Without a ControlPlane the directory is somebody
// else's: it is read again now and then, and nothing is asked for.
type Config struct {
	Dir     string
	Cluster string
	Node    string

	ControlPlane string // host:port of the API servers' listener for nodes
	TokenFile    string // opens the cluster to this node; read when it is needed
	Pin          string // of the cluster's authority; or
	TrustFile    string // its certificate
	Advertise    string // host:port where API servers reach this node's API; without a host: this machine's address on the way to them
	Log          *slog.Logger
}

// Member is safe for concurrent use.
type Member struct {
	cfg Config
	key *ecdsa.PrivateKey // of the next attempt to join; Run's alone
	now atomic.Pointer[nodecert.Credentials]
}

// Open takes up what the directory has.
func Open(cfg Config) (*Member, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	m := &Member{cfg: cfg}
	have, key, err := nodecert.Load(cfg.Dir, cfg.Cluster, cfg.Node)
	switch {
	case err == nil:
		m.now.Store(have)
	case cfg.ControlPlane == "":
		return nil, fmt.Errorf("this node's certificate: %w", err)
	case !errors.Is(err, fs.ErrNotExist):
		cfg.Log.Warn("this node's certificate is no good and asked for anew", "error", err)
	}
	m.key = key
	return m, nil
}

func (c Config) validate() error {
	if err := nodecert.ValidNode(c.Node); err != nil {
		return err
	}
	if c.ControlPlane == "" {
		return nil
	}
	if err := nodecert.ValidEndpoint(c.ControlPlane); err != nil {
		return fmt.Errorf("control plane: %w", err)
	}
	if c.Pin == "" && c.TrustFile == "" {
		return errors.New("a control plane is known by its authority's pin or certificate: neither is given")
	}
	if c.Pin != "" {
		return nodecert.ValidPin(c.Pin)
	}
	return nil
}

// TLS is how API servers, and nobody else, are talked to.
func (m *Member) TLS() *tls.Config {
	return nodecert.Server(m.now.Load, false, nodecert.OnlyAPI(m.cfg.Cluster))
}

// Run joins and renews until ctx ends. A start renews at once: the node may be somewhere
// else by now.
func (m *Member) Run(ctx context.Context) error {
	pause, wait := firstPause, time.Duration(0)
	for {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
		if err := m.attempt(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			m.cfg.Log.Warn("this node's certificate could not be had", "control_plane", m.cfg.ControlPlane, "until", m.until(), "error", err, "retry_in", pause)
			wait, pause = pause/2+rand.N(pause/2), min(2*pause, longestPause)
			continue
		}
		have := m.now.Load()
		pause, wait = firstPause, due(have.Cert.Leaf.NotBefore, have.Cert.Leaf.NotAfter, time.Now())
		if m.cfg.ControlPlane == "" {
			wait = min(wait, longestPause)
			continue
		}
		m.cfg.Log.Info("this node is a member", "cluster", m.cfg.Cluster, "until", m.until(), "renewed_in", wait)
	}
}

// due is when a certificate is renewed: somewhere between the half and the two thirds of
// its life, so that nodes that came together do not come back together.
func due(from, until, now time.Time) time.Duration {
	life := until.Sub(from)
	at := from.Add(life/2 + rand.N(life/6+1))
	return max(at.Sub(now), firstPause)
}

// until is when the node's certificate ends, for logs.
func (m *Member) until() time.Time {
	if have := m.now.Load(); have != nil {
		return have.Cert.Leaf.NotAfter
	}
	return time.Time{}
}

func (m *Member) attempt(ctx context.Context) error {
	if m.cfg.ControlPlane == "" {
		have, _, err := nodecert.Load(m.cfg.Dir, m.cfg.Cluster, m.cfg.Node)
		if err == nil {
			m.now.Store(have)
		}
		return err
	}
	if have := m.now.Load(); have != nil && time.Now().Before(have.Cert.Leaf.NotAfter) {
		err := m.renew(ctx, have)
		if no, ok := errors.AsType[refusal](err); !ok || no.status != http.StatusForbidden || m.cfg.TokenFile == "" {
			return err
		}
		m.cfg.Log.Warn("this node was removed from its cluster; it joins anew if its token is newer than that", "error", err)
	}
	return m.join(ctx)
}

// refusal is what the control plane said instead of yes.
type refusal struct {
	status  int
	message string
}

// Error implements error.
func (r refusal) Error() string {
	return fmt.Sprintf("refused with %d: %.*q", r.status, maxMessage, r.message)
}

// renew has a new key certified in the name of the present one.
func (m *Member) renew(ctx context.Context, have *nodecert.Credentials) error {
	key, err := nodecert.NewKey()
	if err != nil {
		return err
	}
	return m.ask(ctx, nodecert.RenewPath, nodecert.Client(have, nodecert.API(m.cfg.Cluster)), "", key)
}

// join has a key certified for a token. It is kept before, and asked about again when
// the answer is lost: the token is used up by then, and opens the cluster to this key.
func (m *Member) join(ctx context.Context) error {
	token, err := m.token()
	if err != nil {
		return err
	}
	if m.key == nil {
		key, err := nodecert.NewKey()
		if err != nil {
			return err
		}
		if err := nodecert.SaveKey(m.cfg.Dir, key); err != nil {
			return err
		}
		m.key = key
	}
	to := nodecert.Introduced(m.cfg.Pin, m.cfg.Cluster)
	if m.cfg.Pin == "" {
		trust, _, err := nodecert.ReadTrust(m.cfg.TrustFile)
		if err != nil {
			return err
		}
		to = nodecert.Client(&nodecert.Credentials{Trust: trust}, nodecert.API(m.cfg.Cluster))
	}
	return m.ask(ctx, nodecert.JoinPath, to, token, m.key)
}

func (m *Member) token() (string, error) {
	if m.cfg.TokenFile == "" {
		return "", errors.New("this node has no certificate, and no token to join with")
	}
	f, err := os.Open(m.cfg.TokenFile)
	if err != nil {
		return "", fmt.Errorf("join token: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxToken))
	if err != nil {
		return "", fmt.Errorf("join token: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// ask makes one request and takes its answer up.
func (m *Member) ask(ctx context.Context, path string, with *tls.Config, token string, key *ecdsa.PrivateKey) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := (&tls.Dialer{Config: with}).DialContext(ctx, "tcp", m.cfg.ControlPlane)
	if err != nil {
		return err
	}
	defer conn.Close()
	csr, err := nodecert.NewCSR(key)
	if err != nil {
		return err
	}
	endpoint, err := m.endpoint(conn.LocalAddr())
	if err != nil {
		return err
	}
	answer, err := exchange(ctx, conn, path, nodecert.Request{Token: token, Cluster: m.cfg.Cluster, Node: m.cfg.Node, Endpoint: endpoint, CSR: csr})
	if err != nil {
		return err
	}
	have, err := answer.Take(key, m.cfg.Cluster, m.cfg.Node)
	if err != nil {
		return fmt.Errorf("what the control plane answered: %w", err)
	}
	if err := have.Save(m.cfg.Dir); err != nil {
		return fmt.Errorf("keeping the certificate: %w", err)
	}
	m.key = key
	m.now.Store(have)
	return nil
}

// endpoint is where this node says that it is.
func (m *Member) endpoint(local net.Addr) (string, error) {
	host, port, err := net.SplitHostPort(m.cfg.Advertise)
	if err != nil {
		return "", fmt.Errorf("advertised address: %w", err)
	}
	if host == "" {
		if host, _, err = net.SplitHostPort(local.String()); err != nil {
			return "", err
		}
	}
	return net.JoinHostPort(host, port), nil
}

// exchange is one POST over a connection that is there.
func exchange(ctx context.Context, conn net.Conn, path string, req nodecert.Request) (nodecert.Answer, error) {
	var answer nodecert.Answer
	body, err := json.Marshal(req)
	if err != nil {
		return answer, err
	}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true) // as far as the transport knows
	transport := &http.Transport{Protocols: protocols, DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://api"+path, bytes.NewReader(body))
	if err != nil {
		return answer, err
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return answer, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, nodecert.MaxMessage))
	if err != nil {
		return answer, err
	}
	if resp.StatusCode != http.StatusOK {
		var said nodecert.Refusal
		_ = json.Unmarshal(text, &said) // or there is none
		return answer, refusal{resp.StatusCode, said.Message}
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return answer, fmt.Errorf("the answer: %w", err)
	}
	return answer, nil
}
