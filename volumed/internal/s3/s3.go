// Package s3 reads a tenant's bucket.
//
// Who says where the bucket is may run the server, too: every answer is bounded in size
// and time, nothing that it names is followed, and what a list is said to have is refused
// where it is no part of what was asked for. Requests are signed by Signature V4. A Client
// connects through the function that it was given and keeps connections alone; it never
// logs, and its errors say nothing of credentials.
package s3

import (
	"context"
	"crypto/x509"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// tryTimeout bounds one exchange, of which there are maxTries: a server that takes
	// longer for a few MiB is none to work on.
	tryTimeout, maxTries = 15 * time.Second, 3
	// retryAfter is before the second try, and doubles.
	retryAfter = 200 * time.Millisecond
	// headerTimeout is of an answer's begin, idleTimeout of connections that are kept.
	headerTimeout, idleTimeout = 10 * time.Second, time.Minute
	maxConns                   = 16
	maxHeader                  = 64 << 10
	// MaxKeys is a page's, which is at most as long as keys of 1 KiB make it.
	MaxKeys = 1000
	maxPage = 6 << 20
	// maxTag is an ETag's length: it is kept for as long as its object is known.
	maxTag = 256
	// maxRefusal is what is read of an error.
	maxRefusal = 16 << 10
)

// What errors are, by [errors.Is].
var (
	ErrNotFound = errors.New("no such object")
	ErrNoBucket = errors.New("no such bucket")
	ErrDenied   = errors.New("access to the bucket is denied")
	ErrChanged  = errors.New("the object was replaced")
	ErrRegion   = errors.New("the bucket is in another region")
)

// Credential opens a bucket. It shows itself to nobody.
type Credential struct {
	accessKey, secretKey, sessionToken string
}

// NewCredential makes one; the token may be empty.
func NewCredential(accessKey, secretKey, sessionToken string) Credential {
	return Credential{accessKey, secretKey, sessionToken}
}

// Format says nothing, whatever the verb.
func (Credential) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "REDACTED") }

// Config of a Client. All fields but Roots are required.
type Config struct {
	Bucket     Bucket
	Credential Credential
	Dial       func(ctx context.Context) (net.Conn, error) // to the bucket's Authority
	Roots      *x509.CertPool                              // nil: the machine's
}

// Client is safe for concurrent use.
type Client struct {
	cfg  Config
	at   site
	http *http.Client
}

// New makes a Client; nothing is dialled yet.
func New(cfg Config) (*Client, error) {
	at, err := cfg.Bucket.site()
	if err != nil {
		return nil, err
	}
	return &Client{cfg: cfg, at: at, http: &http.Client{
		Transport: &http.Transport{
			DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return cfg.Dial(ctx) },
			TLSClientConfig: tlsConfig(cfg.Roots), TLSHandshakeTimeout: headerTimeout,
			ResponseHeaderTimeout: headerTimeout, MaxResponseHeaderBytes: maxHeader, IdleConnTimeout: idleTimeout,
			MaxConnsPerHost: maxConns, MaxIdleConnsPerHost: maxConns, DisableCompression: true,
			TLSNextProto: noHTTP2,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Close drops the connections that are idle.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Object is what is known of one.
type Object struct {
	Key      string
	Size     int64
	ETag     string // of this content of it
	Modified time.Time
}

// Page is a part of a list, in the order of its names.
type Page struct {
	Objects  []Object
	Prefixes []string // each ends with the slash
	Next     string   // what the next page is asked for with; empty: there is none
}

// list is a page as it is on the wire.
type list struct {
	EncodingType          string
	IsTruncated           bool
	NextContinuationToken string
	Contents              []struct {
		Key          string
		Size         int64
		ETag         string
		LastModified time.Time
	}
	CommonPrefixes []struct{ Prefix string }
}

// List reads what is directly below a prefix, at most so many; after is a page's Next.
func (c *Client) List(ctx context.Context, prefix, after string, most int) (Page, error) {
	q := url.Values{
		"list-type": {"2"}, "delimiter": {"/"}, "encoding-type": {"url"},
		"prefix": {prefix}, "max-keys": {strconv.Itoa(min(most, MaxKeys))},
	}
	if after != "" {
		q.Set("continuation-token", after)
	}
	var page Page
	err := c.try(ctx, http.MethodGet, "", q, nil, func(resp *http.Response) error {
		var got list
		if err := xml.NewDecoder(io.LimitReader(resp.Body, maxPage)).Decode(&got); err != nil {
			return fmt.Errorf("reading a list: %w", err)
		}
		var err error
		page, err = got.page(prefix)
		return err
	})
	return page, err
}

// page takes a list apart, and refuses what is not of it.
func (l *list) page(prefix string) (p Page, err error) {
	if len(l.Contents)+len(l.CommonPrefixes) > MaxKeys {
		return p, fmt.Errorf("a list of more than %d keys", MaxKeys)
	}
	if l.IsTruncated {
		if p.Next = l.NextContinuationToken; p.Next == "" {
			return p, errors.New("a list that goes on without saying where")
		}
	}
	for _, o := range l.Contents {
		key, err := l.plain(o.Key)
		if err != nil || !strings.HasPrefix(key, prefix) || o.Size < 0 || len(o.ETag) > maxTag {
			return Page{}, errors.New("a list has what was not asked for")
		}
		p.Objects = append(p.Objects, Object{Key: key, Size: o.Size, ETag: tag(o.ETag), Modified: o.LastModified.Truncate(time.Second)})
	}
	for _, one := range l.CommonPrefixes {
		key, err := l.plain(one.Prefix)
		if err != nil || !strings.HasPrefix(key, prefix) || !strings.HasSuffix(key, "/") {
			return Page{}, errors.New("a list has what was not asked for")
		}
		p.Prefixes = append(p.Prefixes, key)
	}
	return p, nil
}

// plain is a key of a list, which not every store encodes as it was told.
func (l *list) plain(key string) (string, error) {
	if l.EncodingType != "url" {
		return key, nil
	}
	return url.QueryUnescape(key)
}

// tag is an ETag without the quotes, which a list may leave out.
func tag(quoted string) string { return strings.Trim(quoted, `"`) }

// Head asks what an object is.
func (c *Client) Head(ctx context.Context, key string) (Object, error) {
	o := Object{Key: key}
	err := c.try(ctx, http.MethodHead, key, nil, nil, func(resp *http.Response) error {
		o.Size, o.ETag = resp.ContentLength, tag(resp.Header.Get("Etag"))
		o.Modified, _ = http.ParseTime(resp.Header.Get("Last-Modified")) // without one it is of no time
		if o.Size < 0 || o.ETag == "" || len(o.ETag) > maxTag {
			return errors.New("an object without a size or an ETag of some length")
		}
		return nil
	})
	return o, err
}

// Read reads a part of an object, all of p or none. ErrChanged says that it is not o any
// more.
func (c *Client) Read(ctx context.Context, o Object, p []byte, off int64) error {
	header := http.Header{
		"Range":    {fmt.Sprintf("bytes=%d-%d", off, off+int64(len(p))-1)},
		"If-Match": {`"` + o.ETag + `"`},
	}
	err := c.try(ctx, http.MethodGet, o.Key, nil, header, func(resp *http.Response) error {
		if whole := off == 0 && int64(len(p)) == o.Size; resp.StatusCode != http.StatusPartialContent && !whole {
			return errors.New("the store does not serve a part of an object")
		}
		if tag(resp.Header.Get("Etag")) != o.ETag {
			return ErrChanged // a store that does not know If-Match
		}
		_, err := io.ReadFull(resp.Body, p)
		return err
	})
	if errors.Is(err, ErrNotFound) {
		return ErrChanged
	}
	return err
}

// try asks until there is an answer, if the fault may pass.
func (c *Client) try(ctx context.Context, method, key string, q url.Values, header http.Header, read func(*http.Response) error) error {
	wait := retryAfter
	for tries := 1; ; tries++ {
		err := c.ask(ctx, method, key, q, header, read)
		var settled *refusal
		if err == nil || errors.Is(err, ErrChanged) || errors.As(err, &settled) && !settled.passes() || tries == maxTries || ctx.Err() != nil {
			return err
		}
		pause := time.NewTimer(wait)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return ctx.Err()
		}
		wait *= 2
	}
}

func (c *Client) ask(ctx context.Context, method, key string, q url.Values, header http.Header, read func(*http.Response) error) error {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	req, err := c.request(ctx, method, key, q, header)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if plain, ok := errors.AsType[*url.Error](err); ok {
			err = plain.Err // the rest is the request
		}
		return fmt.Errorf("asking the store: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		return refused(resp)
	}
	return read(resp)
}
