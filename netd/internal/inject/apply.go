package inject

import (
	"bytes"
	"encoding/base64"
	"io"
	"net/http"
	"net/url"
	"strings"

	"s0.run/internal/errdefs"
)

// maxBody bounds a body in which placeholders are replaced (the contract's limit).
const maxBody = 1 << 20

// Apply makes a request carry the credential. It is the last to change the
// request's headers: hop-by-hop ones were removed before (F05).
func (p *Prepared) Apply(r *http.Request) error {
	p.setHeaders(r.Header)
	r.Trailer = nil
	// An answer that is compressed could not be searched for the secret (F02).
	if len(p.secrets) > 0 {
		r.Header["Accept-Encoding"] = []string{"identity"}
	}
	for i := range p.replacements {
		rep := &p.replacements[i]
		if rep.header {
			rep.inHeaders(r.Header)
		}
		if rep.query {
			r.URL.RawQuery = rep.inQuery(r.URL.RawQuery)
		}
	}
	return p.replaceBody(r)
}

func (rep *replacement) inHeaders(h http.Header) {
	for _, values := range h {
		for i, v := range values {
			values[i] = strings.ReplaceAll(v, rep.placeholder, rep.value)
		}
	}
	for i, v := range h["Authorization"] {
		h["Authorization"][i] = rep.inBasic(v)
	}
}

// inBasic looks into `Basic` credentials, which git and curl encode.
func (rep *replacement) inBasic(v string) string {
	scheme, encoded, ok := strings.Cut(v, " ")
	if !ok || !strings.EqualFold(scheme, "Basic") {
		return v
	}
	plain, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
	if err != nil || !bytes.Contains(plain, []byte(rep.placeholder)) {
		return v
	}
	plain = bytes.ReplaceAll(plain, []byte(rep.placeholder), []byte(rep.value))
	return scheme + " " + base64.StdEncoding.EncodeToString(plain)
}

func (rep *replacement) inQuery(raw string) string {
	raw = strings.ReplaceAll(raw, rep.placeholder, url.QueryEscape(rep.value))
	return strings.ReplaceAll(raw, url.QueryEscape(rep.placeholder), url.QueryEscape(rep.value))
}

func (p *Prepared) replaceBody(r *http.Request) error {
	inBody := false
	for _, rep := range p.replacements {
		inBody = inBody || rep.body
	}
	if !inBody || r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return errdefs.New(errdefs.InvalidArgument, "the request's body cannot be read").WithCause(err)
	}
	if len(body) > maxBody {
		return errdefs.New(errdefs.TooLarge, "a body of more than %d bytes cannot carry the credential %q", maxBody, p.Ref)
	}
	for _, rep := range p.replacements {
		if rep.body {
			body = bytes.ReplaceAll(body, []byte(rep.placeholder), []byte(rep.value))
		}
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	r.ContentLength = int64(len(body))
	r.TransferEncoding = nil
	r.Header.Del("Content-Length")
	return nil
}

// maxScan bounds how much of an answer's body is searched.
const maxScan = 1 << 20

// Scrub takes the credential's exact values out of an answer that reflects them
// (F02): of its headers, and of the beginning of its body. It is a net under the
// rules, not a rule: an upstream that encodes what it reflects gets past it.
func (p *Prepared) Scrub(resp *http.Response) {
	if len(p.secrets) == 0 {
		return
	}
	for _, values := range resp.Header {
		for i := range values {
			values[i] = string(p.mask([]byte(values[i])))
		}
	}
	if resp.Body != nil && resp.Body != http.NoBody && resp.Header.Get("Content-Encoding") == "" && resp.StatusCode != http.StatusSwitchingProtocols {
		resp.Body = &scrubber{ReadCloser: resp.Body, p: p, left: maxScan}
	}
}

func (p *Prepared) mask(b []byte) []byte {
	for _, s := range p.secrets {
		masked := bytes.Repeat([]byte("*"), len(s))
		// Behind each match, for a secret may be nothing but what it is masked with.
		for rest := b; ; {
			at := bytes.Index(rest, s)
			if at < 0 {
				break
			}
			rest = rest[at+copy(rest[at:], masked):]
		}
	}
	return b
}

// scrubber masks secrets in a stream and holds back only what may be the beginning
// of one.
type scrubber struct {
	io.ReadCloser
	p    *Prepared
	left int    // still to be searched
	held []byte // read, and not yet given
	err  error
}

func (s *scrubber) Read(out []byte) (int, error) {
	if len(out) == 0 {
		return 0, nil
	}
	for {
		if n := s.give(out); n > 0 {
			return n, nil
		}
		if s.err != nil {
			return 0, s.err
		}
		if s.left <= 0 && len(s.held) == 0 {
			return s.ReadCloser.Read(out)
		}
		buf := make([]byte, max(len(out), 512))
		n, err := s.ReadCloser.Read(buf)
		s.left -= n
		s.held, s.err = s.p.mask(append(s.held, buf[:n]...)), err
	}
}

// give gives what cannot become a secret any more.
func (s *scrubber) give(out []byte) int {
	ready := len(s.held)
	if s.err == nil && s.left > 0 {
		ready -= s.p.begun(s.held)
	}
	n := copy(out, s.held[:ready])
	s.held = s.held[n:]
	return n
}

// begun is how many of b's last bytes are the beginning of a secret.
func (p *Prepared) begun(b []byte) (longest int) {
	for _, secret := range p.secrets {
		for n := min(len(secret)-1, len(b)); n > longest; n-- {
			if bytes.HasSuffix(b, secret[:n]) {
				longest = n
			}
		}
	}
	return longest
}
