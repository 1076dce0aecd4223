package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/minio/minio-go/v7/pkg/s3utils"
	"github.com/minio/minio-go/v7/pkg/signer"
)

// nothing is the SHA-256 of a request that has no body, as none has.
const nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// noHTTP2 keeps a connection to one exchange at a time: what is read of a block is its own.
var noHTTP2 = map[string]func(string, *tls.Conn) http.RoundTripper{}

func tlsConfig(roots *x509.CertPool) *tls.Config {
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
}

// request is signed.
func (c *Client) request(ctx context.Context, method, key string, q url.Values, header http.Header) (*http.Request, error) {
	raw := c.at.scheme + "://" + c.at.host + c.at.path + "/" + s3utils.EncodePath(key)
	if len(q) > 0 {
		raw += "?" + strings.ReplaceAll(q.Encode(), "+", "%20") // as the signature has it
	}
	req, err := http.NewRequestWithContext(ctx, method, raw, nil)
	if err != nil {
		return nil, fmt.Errorf("asking for key %.200q: not an address", key)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Header.Set("User-Agent", "s0")
	req.Header.Set("X-Amz-Content-Sha256", nothing)
	cred := c.cfg.Credential
	return signer.SignV4(*req, cred.accessKey, cred.secretKey, cred.sessionToken, c.at.region), nil
}

// refusal is a store's answer that is an error.
type refusal struct {
	status int
	code   string
}

func (r *refusal) Error() string { return fmt.Sprintf("the store answers %d %.64q", r.status, r.code) }

// passes tells whether it may be another the next time.
func (r *refusal) passes() bool { return r.status >= 500 || r.status == http.StatusTooManyRequests }

// Is tells what it means.
func (r *refusal) Is(target error) bool {
	switch target {
	case ErrNoBucket:
		return r.code == "NoSuchBucket"
	case ErrNotFound:
		return r.status == http.StatusNotFound && r.code != "NoSuchBucket"
	case ErrDenied:
		return r.status == http.StatusForbidden || r.status == http.StatusUnauthorized
	case ErrChanged:
		return r.status == http.StatusPreconditionFailed || r.status == http.StatusRequestedRangeNotSatisfiable
	case ErrRegion:
		return r.status/100 == 3 || r.code == "AuthorizationHeaderMalformed"
	}
	return false
}

func refused(resp *http.Response) error {
	var said struct{ Code string }
	_ = xml.NewDecoder(io.LimitReader(resp.Body, maxRefusal)).Decode(&said) // the status says enough
	return &refusal{resp.StatusCode, said.Code}
}
