package members

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/store"
	"s0.run/internal/daemon"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodecert"
)

const (
	// Who says nothing, or says it slowly, is hung up on (A09). A handshake has
	// headerTimeout, too.
	headerTimeout, bodyTimeout, idleTimeout = 5 * time.Second, 10 * time.Second, 30 * time.Second
	maxHeader                               = 8 << 10
	// Connections of the listener, all in all and from one network.
	MaxConns, MaxConnsOfOne = 1024, 64
)

// Server is what nodes join and renew with: a certificate is looked at where there is
// one, and asked for by what needs one.
func (k *Keeper) Server() *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+nodecert.JoinPath, func(w http.ResponseWriter, r *http.Request) { k.answer(w, r, k.mayJoin, k.join) })
	mux.HandleFunc("POST "+nodecert.RenewPath, func(w http.ResponseWriter, r *http.Request) { k.answer(w, r, k.mayRenew, k.renew) })
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	return &http.Server{
		Handler: mux, Protocols: protocols, TLSConfig: nodecert.Server(k.credentials, true, k.known),
		ReadHeaderTimeout: headerTimeout, ReadTimeout: bodyTimeout, WriteTimeout: bodyTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(k.cfg.Log.Handler(), slog.LevelDebug), // anybody can fill it
	}
}

// known admits every member of this cluster to the listener, if it ever was one.
func (k *Keeper) known(id nodecert.Identity) error {
	if id.Cluster != k.cfg.Cluster || id.Node == "" {
		return errors.New("it is no node of this cluster")
	}
	return nil
}

// answer reads a request, if it may be made, and answers it.
func (k *Keeper) answer(w http.ResponseWriter, r *http.Request, may func(*http.Request) error, to func(*http.Request, nodecert.Request) (nodecert.Answer, error)) {
	var req nodecert.Request
	var answer nodecert.Answer
	err := may(r)
	if err == nil {
		req, err = read(w, r)
	}
	if err == nil {
		answer, err = to(r, req)
	}
	w.Header().Set("Content-Type", "application/json")
	if err == nil {
		k.cfg.Log.Info("certified a node", "node", req.Node, "endpoint", req.Endpoint, "address", r.RemoteAddr, "path", r.URL.Path)
		_ = json.NewEncoder(w).Encode(answer) // or it asks again
		return
	}
	k.cfg.Log.Log(r.Context(), levelOf(err), "refused to certify a node", "node", cut(req.Node), "address", r.RemoteAddr, "path", r.URL.Path, "err", err)
	e := errdefs.From(err)
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(max(e.RetryAfter, time.Second).Seconds())))
	}
	w.WriteHeader(e.Kind.HTTPStatus())
	_ = json.NewEncoder(w).Encode(nodecert.Refusal{Message: e.Message})
}

func read(w http.ResponseWriter, r *http.Request) (req nodecert.Request, err error) {
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, nodecert.MaxMessage)).Decode(&req); err != nil {
		return req, errdefs.New(errdefs.InvalidArgument, "the request is not what a node sends").WithCause(err)
	}
	return req, nil
}

// levelOf keeps out of the log what anybody can be refused for, as often as he likes.
func levelOf(err error) slog.Level {
	switch errdefs.From(err).Kind {
	case errdefs.Exhausted, errdefs.InvalidArgument, errdefs.Unauthenticated:
		return slog.LevelDebug
	default:
		return slog.LevelWarn
	}
}

// cut bounds what anybody can write into our log.
func cut(s string) string { return s[:min(len(s), 100)] }

func (k *Keeper) mayJoin(r *http.Request) error {
	return k.turn("network " + daemon.Network(r.RemoteAddr))
}

// join admits a node that has a token.
func (k *Keeper) join(r *http.Request, req nodecert.Request) (nodecert.Answer, error) {
	id, secret, ok := splitToken(req.Token)
	if !ok {
		return nodecert.Answer{}, errdefs.New(errdefs.Unauthenticated, "there is no token in the request")
	}
	return k.certify(r.Context(), req, req.Node, func(ctx context.Context, c store.Certified) (uuid.UUID, error) {
		return k.cfg.Store.Join(ctx, id, secret, c)
	})
}

func (k *Keeper) mayRenew(r *http.Request) error {
	peer, ok := nodecert.Peer(r.TLS)
	if !ok {
		return errdefs.New(errdefs.Unauthenticated, "want a node's certificate")
	}
	return k.turn("node " + peer.Node)
}

// renew certifies a member again, as what its certificate says that it is.
func (k *Keeper) renew(r *http.Request, req nodecert.Request) (nodecert.Answer, error) {
	peer, _ := nodecert.Peer(r.TLS) // looked at before
	if req.Node != peer.Node {
		return nodecert.Answer{}, errdefs.New(errdefs.PermissionDenied, "the certificate is another node's")
	}
	held, err := nodecert.Fingerprint(r.TLS.PeerCertificates[0].PublicKey)
	if err != nil {
		return nodecert.Answer{}, err
	}
	return k.certify(r.Context(), req, peer.Node, func(ctx context.Context, c store.Certified) (uuid.UUID, error) {
		c.Held = held
		return peer.Membership, k.cfg.Store.Renew(ctx, peer.Membership, c)
	})
}

func (k *Keeper) turn(of string) error {
	if v := k.cfg.Attempts.Take(of); !v.OK {
		return errdefs.New(errdefs.Exhausted, "too many attempts").WithRetryAfter(v.RetryAfter)
	}
	return nil
}

// certify has the list take note of a node, and only then makes its certificate.
func (k *Keeper) certify(ctx context.Context, req nodecert.Request, node string, record func(context.Context, store.Certified) (uuid.UUID, error)) (nodecert.Answer, error) {
	refuse := func(err error) (nodecert.Answer, error) {
		return nodecert.Answer{}, errdefs.New(errdefs.InvalidArgument, "%v", err)
	}
	if req.Cluster != k.cfg.Cluster {
		return nodecert.Answer{}, errdefs.New(errdefs.PermissionDenied, "this is another cluster")
	}
	if err := nodecert.ValidNode(node); err != nil {
		return refuse(err)
	}
	if err := nodecert.ValidEndpoint(req.Endpoint); err != nil {
		return refuse(err)
	}
	key, err := req.KeyOf()
	if err != nil {
		return refuse(err)
	}
	print, err := nodecert.Fingerprint(key)
	if err != nil {
		return refuse(err)
	}
	membership, err := record(ctx, store.Certified{Node: node, Endpoint: req.Endpoint, Key: print, Until: time.Now().Add(k.cfg.NodeLife)})
	if err != nil {
		return nodecert.Answer{}, err
	}
	k.Kick()
	cert, err := k.cfg.Authority.Issue(nodecert.Identity{Cluster: k.cfg.Cluster, Node: node, Membership: membership}, key, k.cfg.NodeLife)
	if err != nil {
		return nodecert.Answer{}, err
	}
	return nodecert.Answer{Certificate: cert.Raw, Authorities: k.cfg.Authority.Trust().PEM}, nil
}
