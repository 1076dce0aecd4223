// Package nodecert is how nodes and API servers of one cluster know each other when a
// network is between them: an authority of the cluster's own, the identities that it
// certifies, and TLS configurations that demand them.
//
// An identity is one URI in a certificate: a node's names the cluster, the node and its
// membership, which is made anew each time it joins; an API server's names the cluster.
// What a certificate says is checked on every connection and by both sides; whether its
// node is still a member, the API server knows and nobody else. The package keeps no
// state; whoever has the authority's key can be everybody in it.
package nodecert

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/google/uuid"
)

// Identity is who a certificate is.
type Identity struct {
	Cluster    string
	Node       string    // empty: an API server
	Membership uuid.UUID // of a node: since it joined last
}

// API is the identity of a cluster's API servers.
func API(cluster string) Identity { return Identity{Cluster: cluster} }

// String is the URI.
func (id Identity) String() string { return id.uri().String() }

func (id Identity) uri() *url.URL {
	u := &url.URL{Scheme: "s0", Host: id.Cluster, Path: "/api"}
	if id.Node != "" {
		u.Path = "/node/" + id.Node + "/" + id.Membership.String()
	}
	return u
}

// host is the name that a client asks for in TLS. No node's is the API server's: a
// cluster's name has no dot.
func (id Identity) host() string {
	if id.Node == "" {
		return "api." + id.Cluster + suffix
	}
	return id.Node + ".node." + id.Cluster + suffix
}

// suffix ends the names of all; nobody resolves them.
const suffix = ".s0.internal"

// maxNode leaves room for the rest in a name of DNS.
const maxNode = 150

// One letter case and no dots at the ends: names that are the same to anybody are the same.
var nodePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)

// ValidNode checks a node's name.
func ValidNode(name string) error {
	if len(name) > maxNode || !nodePattern.MatchString(name) {
		return fmt.Errorf("node name %q: want at most %d lower-case letters, digits, '-' and '.', as of a host", name, maxNode)
	}
	return nil
}

// ValidEndpoint checks where a node says that it is reached.
func ValidEndpoint(endpoint string) error {
	host, port, err := net.SplitHostPort(endpoint)
	n, _ := strconv.Atoi(port)
	if err != nil || n < 1 || n > 65535 || host == "" || len(host) > 253 || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("/@?#\\", r) }) {
		return errors.New("endpoint: want host:port")
	}
	return nil
}

// IdentityOf reads a certificate that was verified. One that says more than one thing of
// itself is nobody's.
func IdentityOf(cert *x509.Certificate) (Identity, error) {
	if len(cert.URIs) != 1 || cert.URIs[0].Scheme != "s0" {
		return Identity{}, errors.New("the certificate names nobody of a cluster")
	}
	u := cert.URIs[0]
	id := Identity{Cluster: u.Host}
	if part := strings.Split(u.Path, "/"); len(part) == 4 && part[1] == "node" {
		id.Node, id.Membership = part[2], parseMembership(part[3])
	}
	if id.uri().String() != u.String() || id.Node != "" && (ValidNode(id.Node) != nil || id.Membership == uuid.Nil) {
		return Identity{}, fmt.Errorf("the certificate's identity %.200q is none", u.String())
	}
	return id, nil
}

func parseMembership(s string) uuid.UUID {
	id, err := uuid.Parse(s)
	if err != nil {
		return uuid.Nil
	}
	return id
}
