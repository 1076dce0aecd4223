package api_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// nasty are texts that must stay texts, wherever they are put.
var nasty = map[string]string{
	"SQL":          `x' OR 1=1; DROP TABLE sandboxes; --`,
	"a line break": "x\r\nX-Injected: 1",
	"NUL":          "x\x00y",
}

// A13, A18: whatever text stands in a query or in a body, it becomes no statement, no
// header and no failure of ours; a NUL, which the database can't keep, is refused.
func TestA13_A18_TextIsData(t *testing.T) {
	t.Parallel()
	w := newWalk(t)
	w.ours.name("sandbox")
	all := operations(t)
	slices.SortFunc(all, func(a, b operation) int { return strings.Compare(order(a), order(b)) })
	tested := 0
	for _, o := range all {
		if o.public() || o.method == http.MethodDelete || o.op.Extensions["x-caller"] == "system-admin" {
			continue
		}
		by := w.ours.people["owner"]
		if o.op.Extensions["x-caller"] == "api-key" {
			by = w.ours.keys["admin"]
		}
		for _, r := range o.withText(t, by.sends(o.example(t, w.ours.name))) {
			w.checkText(o, r)
			tested++
		}
	}
	if tested < 300 {
		t.Errorf("only %d places were tested", tested)
	}
	by := w.ours.people["owner"]
	if a := w.probe(by.sends(request{method: "GET", path: "/api/v1/sandboxes"})); a.status != 200 {
		t.Errorf("afterwards the list answers %d %s", a.status, a.raw)
	}
	for line := range strings.Lines(w.log.String()) {
		if strings.Contains(line, "SQLSTATE 22") || strings.Contains(line, "SQLSTATE 42") {
			t.Errorf("the database was asked what it can't take: %s", line) // data exceptions, syntax errors
		}
	}
	w.checkLog()
}

// spoiled is a request with a nasty text in one place.
type spoiled struct {
	request
	where, what string
}

func (w *walk) checkText(o operation, r spoiled) {
	w.t.Helper()
	a := w.probe(r.request)
	switch {
	case a.status >= 500 && a.status != mayFail[o.op.OperationID]:
		w.t.Errorf("%s with %s in %s: %d %s", o, r.what, r.where, a.status, a.raw)
	case a.header.Get("X-Injected") != "":
		w.t.Errorf("%s with %s in %s: the answer has a header of the client's", o, r.what, r.where)
	case r.what == "NUL" && a.status < 400 && !insideSandbox.MatchString(o.path):
		w.t.Errorf("%s with %s in %s: %d %s", o, r.what, r.where, a.status, a.raw)
	}
}

// insideSandbox are the paths whose bodies procd, or what serves a volume, judges (B10), and
// here nobody.
var insideSandbox = regexp.MustCompile(`/sandboxes/\{id\}/(contexts|files|sessions)|/sandboxvolumes/\{id\}/files`)

// withText puts each nasty text into each parameter of the query and each text of the body.
func (o operation) withText(t *testing.T, r request) (all []spoiled) {
	t.Helper()
	for what, text := range nasty {
		for _, p := range o.op.Parameters {
			if p.Value.In != "query" {
				continue
			}
			u, err := url.Parse(r.path)
			if err != nil {
				t.Fatal(err)
			}
			q := u.Query()
			q.Set(p.Value.Name, text)
			u.RawQuery = q.Encode()
			with := r
			with.path = u.String()
			all = append(all, spoiled{with, "?" + p.Value.Name, what})
		}
		body, ok := r.body.(string)
		if !ok || !o.takesJSON() {
			continue
		}
		for _, where := range texts(t, body) {
			with := r
			with.body = replaceText(t, body, where, text)
			all = append(all, spoiled{with, where, what})
		}
	}
	return all
}

// texts lists the places of a body's texts.
func texts(t *testing.T, body string) (all []string) {
	t.Helper()
	eachText(t, body, func(where, was string) string {
		all = append(all, where)
		return was
	})
	return all
}

func replaceText(t *testing.T, body, where, text string) string {
	t.Helper()
	return eachText(t, body, func(at, was string) string {
		if at == where {
			return text
		}
		return was
	})
}

// eachText is the body with each of its texts replaced.
func eachText(t *testing.T, body string, replace func(where, was string) string) string {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		t.Fatalf("the example is no JSON: %s", body)
	}
	b, err := json.Marshal(walkText("", v, replace))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func walkText(where string, v any, replace func(where, was string) string) any {
	switch v := v.(type) {
	case string:
		return replace(where, v)
	case []any:
		for i := range v {
			v[i] = walkText(where+"[]", v[i], replace)
		}
	case map[string]any:
		for name := range v {
			v[name] = walkText(where+"."+name, v[name], replace)
		}
	}
	return v
}

// A14: nobody asks the control plane for more than a page, anywhere.
func TestA14_PagesAreBounded(t *testing.T) {
	t.Parallel()
	w := newWalk(t)
	tested := 0
	for _, o := range operations(t) {
		if o.public() || o.op.Extensions["x-caller"] == "system-admin" || insideSandbox.MatchString(o.path) ||
			o.op.Parameters.GetByInAndName("query", "limit") == nil {
			continue
		}
		by := w.ours.people["owner"]
		for _, limit := range []string{"1000001", "0", "-1", "1e3", "99999999999999999999"} {
			r := by.sends(o.example(t, w.ours.name))
			u, err := url.Parse(r.path)
			if err != nil {
				t.Fatal(err)
			}
			q := u.Query()
			q.Set("limit", limit)
			u.RawQuery = q.Encode()
			r.path = u.String()
			if a := w.probe(r); a.status != 400 {
				t.Errorf("%s with limit=%s: %d %.200s", o, limit, a.status, a.raw)
			}
		}
		tested++
	}
	if tested < 5 {
		t.Errorf("only %d lists were tested", tested)
	}
}
