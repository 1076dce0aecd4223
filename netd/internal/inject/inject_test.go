package inject

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"

	"s0.run/internal/errdefs"
	"s0.run/internal/policy"
	"s0.run/internal/sandbox"
	"s0.run/internal/sealed"
	"s0.run/netd/internal/guest"
)

type source struct {
	secret *sealed.Secret
	err    error
}

func (s source) Secret(guest.Guest, *policy.Binding) (*sealed.Secret, bool, error) {
	return s.secret, true, s.err
}
func (source) Version(sandbox.ID, sandbox.Generation, string) int64 { return 3 }

func values(m map[string]string) source { return source{secret: &sealed.Secret{Values: m}} }

func header(name, template string) *policy.Binding {
	return &policy.Binding{Ref: "r", SourceRef: "s", Projection: policy.Projection{Type: policy.HTTPHeaders, HTTPHeaders: &policy.HeadersProj{Headers: []policy.ProjectedHeader{{Name: name, ValueTemplate: template}}}}}
}

func TestF14_WhatCannotBeMadeIsAnError(t *testing.T) {
	t.Parallel()
	const secret = "do-not-show-me"
	have := values(map[string]string{"token": secret, "lines": secret + "\r\nX: y", "big": strings.Repeat(secret, 2000)})
	for name, b := range map[string]*policy.Binding{
		"a missing key":        header("Authorization", "{{ .nothing }}"),
		"a template that none": header("Authorization", "{{ .token"),
		"a value of two lines": header("Authorization", "{{ .lines }}"),
		"too much":             header("Authorization", "{{ .big }}"),
		"another function":     header("Authorization", "{{ .token.x }}"),
		"a header of framing":  header("transfer-encoding", "{{ .token }}"),
		"the host":             header("host", "{{ .token }}"),
		"no header":            header("a b", "{{ .token }}"),
		"an unknown kind":      {Ref: "r", Projection: policy.Projection{Type: "other"}},
		"nothing projected":    {Ref: "r", Projection: policy.Projection{Type: policy.HTTPHeaders}},
		"no certificate":       {Ref: "r", Projection: policy.Projection{Type: policy.TLSClientCert}},
	} {
		_, err := Prepare(have, guest.Guest{ID: "s"}, b)
		if err == nil || !errdefs.Is(err, errdefs.Unavailable) || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Prepare(source{err: errors.New("no")}, guest.Guest{ID: "s"}, header("A", "{{ .token }}")); err == nil {
		t.Error("a source that does not open: no error")
	}
}

func TestF05_EverySpellingIsReplaced(t *testing.T) {
	t.Parallel()
	p, err := Prepare(values(map[string]string{"token": "t0ken-value"}), guest.Guest{ID: "s"}, header("x-api-key", "{{ .token }}"))
	if err != nil {
		t.Fatal(err)
	}
	r, _ := http.NewRequest("GET", "https://a/", nil)
	r.Header = http.Header{"X-Api-Key": {"a", "b"}, "x-api-key": {"c"}, "X_api_KEY": {"d"}, "X-Api-Key2": {"kept"}}
	if err := p.Apply(r); err != nil {
		t.Fatal(err)
	}
	if len(r.Header) != 3 || r.Header.Get("X-Api-Key") != "t0ken-value" || len(r.Header["X-Api-Key"]) != 1 || r.Header.Get("X-Api-Key2") != "kept" || r.Header.Get("Accept-Encoding") != "identity" {
		t.Errorf("%v", r.Header)
	}
}

// What a template may call is said where it is validated, and here it is so.
func TestTemplatesOfPoliciesAreRendered(t *testing.T) {
	t.Parallel()
	p, err := Prepare(values(map[string]string{"user": "me", "pass": "s3cret words"}), guest.Guest{ID: "s"}, header("Authorization", `Basic {{ print .user ":" .pass | base64 }}`))
	if err != nil {
		t.Fatal(err)
	}
	r, _ := http.NewRequest("GET", "https://a/", nil)
	if err := p.Apply(r); err != nil {
		t.Fatal(err)
	}
	if user, pass, ok := r.BasicAuth(); !ok || user != "me" || pass != "s3cret words" {
		t.Errorf("%v", r.Header)
	}
}

func TestPlaceholderBodiesAreBounded(t *testing.T) {
	t.Parallel()
	b := &policy.Binding{Ref: "r", Projection: policy.Projection{Type: policy.Placeholder, PlaceholderSubst: &policy.PlaceholderProj{Replacements: []policy.Replacement{{Placeholder: "HERE", ValueTemplate: "{{ .token }}", Locations: []string{"body"}}}}}}
	p, err := Prepare(values(map[string]string{"token": "long-enough-token"}), guest.Guest{ID: "s"}, b)
	if err != nil {
		t.Fatal(err)
	}
	r, _ := http.NewRequest("POST", "https://a/?HERE", strings.NewReader(strings.Repeat("x", maxBody+1)))
	if err := p.Apply(r); !errdefs.Is(err, errdefs.TooLarge) {
		t.Errorf("a body that is too large: %v", err)
	}
	r, _ = http.NewRequest("POST", "https://a/?HERE", strings.NewReader("a HERE b"))
	r.Header.Set("X", "HERE")
	if err := p.Apply(r); err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(r.Body); string(got) != "a long-enough-token b" || r.ContentLength != int64(len(got)) || r.URL.RawQuery != "HERE" || r.Header.Get("X") != "HERE" {
		t.Errorf("%q, %v, %v", got, r.URL, r.Header)
	}
}

func TestF02_SecretsAreMaskedHoweverTheyAreCut(t *testing.T) {
	t.Parallel()
	const secret = "abcabcabd-secret"
	p, err := Prepare(values(map[string]string{"token": secret}), guest.Guest{ID: "s"}, header("Authorization", "Bearer {{ .token }}"))
	if err != nil {
		t.Fatal(err)
	}
	text := "x abcabc " + secret + " abcabcabcabd-secret\n" + secret[:8]
	for _, cut := range []func(io.Reader) io.Reader{func(r io.Reader) io.Reader { return r }, iotest.OneByteReader, iotest.HalfReader, iotest.DataErrReader} {
		resp := &http.Response{StatusCode: 200, Header: http.Header{"X": {secret}}, Body: io.NopCloser(cut(strings.NewReader(text)))}
		p.Scrub(resp)
		got, err := io.ReadAll(resp.Body)
		if err != nil || bytes.Contains(got, []byte(secret)) || len(got) != len(text) || !bytes.HasSuffix(got, []byte(secret[:8])) || resp.Header.Get("X") == secret {
			t.Errorf("%q, %v, %v", got, resp.Header, err)
		}
	}
}

func TestD08_ASecretOfAsterisksEnds(t *testing.T) {
	t.Parallel()
	const text = "*** ********************* *"
	p := &Prepared{secrets: [][]byte{[]byte("********")}}
	resp := &http.Response{StatusCode: 200, Header: http.Header{"X": {text}}, Body: io.NopCloser(iotest.OneByteReader(strings.NewReader(text)))}
	p.Scrub(resp)
	if got, err := io.ReadAll(resp.Body); err != nil || string(got) != text || resp.Header.Get("X") != text {
		t.Errorf("%q, %v, %v", got, resp.Header, err)
	}
}

func FuzzScrub(f *testing.F) {
	f.Add([]byte("aaaaaaab"), []byte("aaaaaaaaaaaabaaaaaaab"), uint8(3))
	f.Fuzz(func(t *testing.T, secret, text []byte, piece uint8) {
		if len(secret) < minSecret || bytes.Contains(secret, []byte("*")) || len(text) > maxScan/2 {
			return
		}
		p := &Prepared{secrets: [][]byte{secret}}
		resp := &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(&pieces{bytes.NewReader(text), int(piece) + 1})}
		p.Scrub(resp)
		got, err := io.ReadAll(resp.Body)
		if err != nil || len(got) != len(text) || bytes.Contains(got, secret) {
			t.Fatalf("%q, %v", got, err)
		}
		if !bytes.Contains(text, secret) && !bytes.Equal(got, text) {
			t.Fatal("changed what held no secret")
		}
	})
}

type pieces struct {
	r io.Reader
	n int
}

func (p *pieces) Read(b []byte) (int, error) { return p.r.Read(b[:min(len(b), p.n)]) }
