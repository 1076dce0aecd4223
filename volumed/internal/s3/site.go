package s3

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
)

// Bucket is a bucket, or what is below a prefix of one, without what opens it.
type Bucket struct {
	Provider string `json:"provider"` // aws, ali or r2
	Name     string `json:"name"`
	Prefix   string `json:"prefix"`
	Region   string `json:"region"`   // empty: the provider's first, or what its endpoint says
	Endpoint string `json:"endpoint"` // URL of scheme and host; empty: Amazon's of the region
}

// site is where a bucket is.
type site struct {
	scheme    string
	host      string // as requests name it: with a port that is not the scheme's
	authority string // with any port
	path      string // "" or the bucket's, where the host is not its own
	region    string
}

// Authority is the host and port of a bucket, the only one that a Client connects to.
func (b Bucket) Authority() (string, error) {
	at, err := b.site()
	return at.authority, err
}

func (b Bucket) site() (site, error) {
	at := site{region: b.Region}
	u, err := url.Parse(b.endpoint())
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" {
		return at, errors.New("the bucket's endpoint is not a URL of scheme https or http and a host")
	}
	host := u.Hostname()
	if b.ownHost() {
		host = b.Name + "." + host
	} else {
		at.path = "/" + b.Name
	}
	at.scheme, at.authority, at.host = u.Scheme, net.JoinHostPort(host, port(u)), host
	if u.Port() != "" || strings.Contains(host, ":") {
		at.host = at.authority
	}
	if at.region == "" {
		at.region = b.defaultRegion(u.Hostname())
	}
	return at, nil
}

func (b Bucket) endpoint() string {
	switch {
	case b.Endpoint != "":
		return b.Endpoint
	case strings.HasPrefix(b.Region, "cn-"):
		return fmt.Sprintf("https://s3.%s.amazonaws.com.cn", b.Region)
	case b.Region != "":
		return fmt.Sprintf("https://s3.%s.amazonaws.com", b.Region)
	}
	return "https://s3." + amazonsFirst + ".amazonaws.com"
}

// ownHost tells whether the bucket's name is part of its host's: what serves S3 by itself
// rarely has a name for each bucket, and no certificate is for a name with more dots.
func (b Bucket) ownHost() bool {
	return b.Provider == "ali" || b.Endpoint == "" && !strings.Contains(b.Name, ".")
}

const amazonsFirst = "us-east-1"

func (b Bucket) defaultRegion(host string) string {
	switch b.Provider {
	case "ali":
		label, _, _ := strings.Cut(host, ".")
		return label
	case "r2":
		return "auto"
	}
	return amazonsFirst
}

func port(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "https":
		return "443"
	}
	return "80"
}
