package oidctest

import (
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"
)

const (
	maxSteps  = 20
	pageBytes = 1 << 20
)

// Browser is somebody's browser, with its cookies.
type Browser struct {
	t      testing.TB
	client *http.Client
}

// NewBrowser makes a browser without cookies.
func NewBrowser(t testing.TB) *Browser {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &Browser{t: t, client: &http.Client{
		Jar: jar, Timeout: time.Minute,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Get asks for a page and follows no redirect.
func (b *Browser) Get(to string) (resp *http.Response, body string) {
	b.t.Helper()
	resp, err := b.client.Get(to)
	return b.read(resp, err)
}

func (b *Browser) read(resp *http.Response, err error) (*http.Response, string) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(io.LimitReader(resp.Body, pageBytes))
	if err != nil {
		b.t.Fatal(err)
	}
	return resp, string(page)
}

// Answers are what somebody types into a provider's forms; other fields are left
// as they are.
type Answers map[string]string

// abort is the button beside "continue".
const abort = "abort"

// Refusing signs in with a login, and then says no.
func Refusing(login string) Answers {
	a := As(login)
	a[abort] = "yes"
	return a
}

// As signs in with a login; the provider's own pages take any password.
func As(login string) Answers { return Answers{"login": login, "password": "any"} }

// Go visits a page and does what pages ask for: follows redirects, fills forms.
// It answers the first URL that contains until, which it does not visit, or the
// first page that asks for nothing, or for what there is no answer to.
func (b *Browser) Go(to string, answers Answers, until string) (at, page string) {
	b.t.Helper()
	resp, page := b.Get(to)
	for range maxSteps {
		if next, err := resp.Location(); err == nil {
			if strings.Contains(next.String(), until) {
				return next.String(), ""
			}
			resp, page = b.Get(next.String())
			continue
		}
		form := parseForm(page)
		if form == nil || resp.StatusCode != http.StatusOK || !form.fill(answers) {
			return resp.Request.URL.String(), page
		}
		resp, page = b.submit(resp.Request.URL, form)
	}
	b.t.Fatalf("still asked for something after %d steps from %s:\n%s", maxSteps, to, page)
	return "", ""
}

func (b *Browser) submit(from *url.URL, f *form) (*http.Response, string) {
	b.t.Helper()
	to, err := from.Parse(f.action)
	if err != nil {
		b.t.Fatal(err)
	}
	resp, err := b.client.PostForm(to.String(), f.fields)
	return b.read(resp, err)
}

type form struct {
	action string
	fields url.Values
}

// fill puts the answers into the fields that ask for them, and reports whether
// something is left to be asked.
func (f *form) fill(answers Answers) (complete bool) {
	for name, value := range answers {
		if f.fields.Has(name) || name == abort && f.fields.Has("confirm") {
			f.fields.Set(name, value)
		}
	}
	for name := range f.fields {
		if f.fields.Get(name) == "" {
			return false
		}
	}
	return true
}

var (
	formPattern  = regexp.MustCompile(`(?s)<form([^>]*)>(.*?)</form>`)
	inputPattern = regexp.MustCompile(`<input([^>]*)>`)
	attrPattern  = regexp.MustCompile(`([a-z-]+)\s*=\s*"([^"]*)"`)
)

// parseForm reads a page's first form.
func parseForm(page string) *form {
	match := formPattern.FindStringSubmatch(page)
	if match == nil {
		return nil
	}
	f := &form{action: attributes(match[1])["action"], fields: url.Values{}}
	for _, input := range inputPattern.FindAllStringSubmatch(match[2], -1) {
		if a := attributes(input[1]); a["name"] != "" {
			f.fields.Set(a["name"], a["value"])
		}
	}
	return f
}

func attributes(tag string) map[string]string {
	list := map[string]string{}
	for _, a := range attrPattern.FindAllStringSubmatch(tag, -1) {
		list[a[1]] = html.UnescapeString(a[2])
	}
	return list
}
