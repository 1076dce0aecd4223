package services

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"

	"s0.run/internal/sandbox"
)

// Domain is where the services of a region's sandboxes are found: a sandbox's
// port has the host `<id>--p<port>.<domain>`.
type Domain struct {
	scheme string // http or https
	name   string // <region>.<root>, lower case
	port   string // "": the scheme's own
}

// labelMark separates a sandbox's id from a port. No id contains it in front of
// a number at its end.
const labelMark = "--p"

var domainPattern = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)

// NewDomain makes the domain of a region below root, such as `apps.example.com`,
// `http://apps.example.test:8080` or `https://…`, which is the default.
func NewDomain(region, root string) (Domain, error) {
	d := Domain{scheme: "https"}
	rest := strings.ToLower(root)
	if scheme, host, ok := strings.Cut(rest, "://"); ok {
		d.scheme, rest = scheme, host
	}
	if host, port, err := net.SplitHostPort(rest); err == nil {
		rest, d.port = host, port
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return Domain{}, fmt.Errorf("public domain %q: the port is none", root)
		}
	}
	d.name = strings.ToLower(region) + "." + rest
	if d.scheme != "http" && d.scheme != "https" {
		return Domain{}, fmt.Errorf("public domain %q: want http or https", root)
	}
	if !domainPattern.MatchString(d.name) || len(d.name) > 253-64 {
		return Domain{}, fmt.Errorf("public domain %q with the region %q is no domain name", root, region)
	}
	return d, nil
}

// Scheme is http or https.
func (d Domain) Scheme() string { return d.scheme }

// String is the domain with its port, as sandboxes and clients are told it.
func (d Domain) String() string {
	if d.port == "" {
		return d.name
	}
	return net.JoinHostPort(d.name, d.port)
}

// URL is where a sandbox's port is reached.
func (d Domain) URL(id sandbox.ID, port int32) string {
	return fmt.Sprintf("%s://%s%s%d.%s", d.scheme, id, labelMark, port, d)
}

// Address is a port of a sandbox, as a request names it.
type Address struct {
	ID   sandbox.ID
	Port int32
}

// ErrNoAddress is returned for what names no sandbox's port.
var ErrNoAddress = errors.New("not the address of a sandbox's port")

// Parse reads a Host header. It reports whether the host lies in the domain;
// one that does may still name nothing. Case, a final dot and the port are not
// part of a name.
func (d Domain) Parse(host string) (a Address, within bool, err error) {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	label, ok := strings.CutSuffix(name, "."+d.name)
	if !ok {
		return Address{}, name == d.name, ErrNoAddress
	}
	at := strings.LastIndex(label, labelMark)
	if at < 0 {
		return Address{}, true, ErrNoAddress
	}
	a, err = ParseAddress(label[:at], label[at+len(labelMark):])
	return a, true, err
}

// ParseAddress reads an id and a port that were sent apart from each other.
func ParseAddress(id, port string) (Address, error) {
	parsed, err := sandbox.ParseID(id)
	if err != nil {
		return Address{}, ErrNoAddress
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != port { // one spelling
		return Address{}, ErrNoAddress
	}
	return Address{parsed, int32(n)}, nil
}
