package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/audit"
	"s0.run/api/internal/members"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodecert"
)

// settleTimeout bounds what is recorded of a change that was refused.
const settleTimeout = 5 * time.Second

// Nodes is what an operator decides about a cluster's nodes, beside its servers: they
// follow the database. Each change leaves an audit record, which is stored with it (A24).
type Nodes struct {
	store *store.Store
	who   string // of records: no user of the API decides here
}

// Node is a node as the cluster has it.
type Node struct {
	Name           string
	Endpoint       string
	JoinedAt       time.Time
	CertifiedUntil time.Time
	SeenAt         time.Time // zero: never
	Draining       bool
	Removed        bool
}

// OpenNodes connects to a cluster's database.
func OpenNodes(ctx context.Context, databaseURL string) (*Nodes, error) {
	s, err := store.Open(ctx, databaseURL)
	if err != nil {
		return nil, err
	}
	host, _ := os.Hostname() // a record without it is one still
	return &Nodes{store: s, who: fmt.Sprintf("%s (uid %d)", host, os.Getuid())}, nil
}

// Close ends every connection.
func (n *Nodes) Close() { n.store.Close() }

// NewToken makes a token with which so many nodes, or one of a name, may join for so long.
func (n *Nodes) NewToken(ctx context.Context, node string, uses int, life time.Duration) (token string, until time.Time, err error) {
	err = n.audited(ctx, "nodes.token", node, func(ctx context.Context) error {
		token, until, err = members.NewToken(ctx, n.store, node, uses, life)
		return err
	})
	return token, until, err
}

// List lists the nodes that have joined, those that were removed as well.
func (n *Nodes) List(ctx context.Context) ([]Node, error) {
	rows, err := n.store.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	var list []Node
	for _, r := range rows {
		node := Node{Name: r.Name, Endpoint: r.Endpoint, JoinedAt: r.JoinedAt, CertifiedUntil: r.CertifiedUntil, Draining: r.DrainingAt != nil, Removed: r.RemovedAt != nil}
		if r.SeenAt != nil {
			node.SeenAt = *r.SeenAt
		}
		list = append(list, node)
	}
	return list, nil
}

// Drain has a node get nothing new and what runs there paused, or ends that.
func (n *Nodes) Drain(ctx context.Context, name string, drain bool) error {
	operation := "nodes.drain"
	if !drain {
		operation = "nodes.undrain"
	}
	return n.audited(ctx, operation, name, func(ctx context.Context) error { return n.store.DrainNode(ctx, name, drain) })
}

// Remove ends a node's membership at once and for good. What it has that is not in the
// object store is lost.
func (n *Nodes) Remove(ctx context.Context, name string) error {
	return n.audited(ctx, "nodes.remove", name, func(ctx context.Context) error { return n.store.RemoveNode(ctx, name) })
}

// audited makes a change with its record. What was refused is recorded afterwards.
func (n *Nodes) audited(ctx context.Context, operation, resource string, change func(ctx context.Context) error) error {
	rec := &audit.Record{ID: uuid.Must(uuid.NewV7()), Operation: operation, Address: n.who}
	rec.Begin(uuid.Nil, resource)
	err := change(audit.With(ctx, rec))
	if err == nil { // it is stored
		return nil
	}
	outcome, e := audit.Refused, errdefs.From(err)
	if e.Kind.HTTPStatus() >= http.StatusInternalServerError {
		outcome = audit.Failed
	}
	rec.End(outcome, e.Code)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	return errors.Join(err, n.store.PutAudit(ctx, rec))
}

// NodeCAPin makes sure of the authority in a directory and answers by what nodes know it.
func NodeCAPin(dir string) (string, error) {
	a, err := nodecert.EnsureAuthority(dir)
	if err != nil {
		return "", fmt.Errorf("the nodes' authority: %w", err)
	}
	return a.Pin(), nil
}
