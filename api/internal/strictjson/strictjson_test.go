package strictjson

import (
	"encoding/json"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"unicode/utf8"
)

type doc struct {
	Name string            `json:"name"`
	N    *int32            `json:"n,omitempty"`
	Env  map[string]string `json:"env,omitempty"`
	List []doc             `json:"list,omitempty"`
	Any  map[string]any    `json:"any,omitempty"`
	Raw  json.RawMessage   `json:"raw,omitempty"`
	Not  string            `json:"-"`
}

func TestWhatIsAccepted(t *testing.T) {
	t.Parallel()
	n := int32(7)
	var d doc
	err := Unmarshal([]byte(` {"name":"a","n":7,"env":{"A":"1","a":"2"},"list":[{"name":"b"},{"name":"c"}],
		"any":{"N":{"n":1,"N":2}},"raw":{"r":[{"R":1}]}} `), &d, "name")
	want := doc{Name: "a", N: &n, Env: map[string]string{"A": "1", "a": "2"}, List: []doc{{Name: "b"}, {Name: "c"}},
		Any: map[string]any{"N": map[string]any{"n": 1.0, "N": 2.0}}, Raw: json.RawMessage(`{"r":[{"R":1}]}`)}
	if err != nil || !reflect.DeepEqual(d, want) {
		t.Fatalf("%+v: %v", d, err)
	}
}

func TestA08_WhatIsRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ body, says string }{
		"nothing":            {``, "ends too early"},
		"truncated":          {`{"name":"a"`, "too early"},
		"not json":           {`hello`, "not JSON"},
		"array":              {`[]`, "must be a JSON object"},
		"null":               {`null`, "must be a JSON object"},
		"string":             {`"x"`, "must be a JSON object"},
		"unknown field":      {`{"name":"a","tenant_id":"x"}`, `unknown field "tenant_id"`},
		"nested unknown":     {`{"name":"a","list":[{"name":"b","x":1}]}`, `unknown field "x"`},
		"another case":       {`{"name":"a","Name":"b"}`, `unknown field "Name"`},
		"only another case":  {`{"NAME":"a"}`, `unknown field "NAME"`},
		"nested other case":  {`{"name":"a","list":[{"Name":"b"}]}`, `unknown field "Name"`},
		"folded case":        {`{"name":"a","li\u017ft":[]}`, "unknown field"}, // ſ folds to s
		"hidden field":       {`{"name":"a","-":"x"}`, `unknown field "-"`},
		"duplicate in any":   {`{"name":"a","any":{"x":{"A":1,"A":2}}}`, `"A" is there twice`},
		"duplicate in raw":   {`{"name":"a","raw":{"A":1,"A":2}}`, `"A" is there twice`},
		"endless number":     {`{"name":"a","n":` + strings.Repeat("9", 10_000) + `}`, `"n" must not be a number 999`},
		"duplicate":          {`{"name":"a","name":"b"}`, `"name" is there twice`},
		"nested duplicate":   {`{"name":"a","env":{"A":"1","A":"2"}}`, `"A" is there twice`},
		"escaped duplicate":  {`{"name":"a","n\u0061me":"b"}`, `"name" is there twice`},
		"second value":       {`{"name":"a"} {"name":"b"}`, "follows"},
		"trailing garbage":   {`{"name":"a"}x`, "follows"},
		"NaN":                {`{"name":"a","n":NaN}`, "not JSON"},
		"wrong type":         {`{"name":5}`, `"name" must not be a number`},
		"overflow":           {`{"name":"a","n":99999999999}`, `"n" must not be a number`},
		"fraction":           {`{"name":"a","n":1.5}`, `"n" must not be a number`},
		"missing":            {`{"n":1}`, "name is required"},
		"null for required":  {`{"name":null}`, "name is required"},
		"invalid utf-8":      {"{\"name\":\"\xff\"}", "UTF-8"},
		"utf-16":             {"\xfe\xff{}", "UTF-8"},
		"deep":               {`{"list":` + strings.Repeat(`[`, 10_000), "deep"},
		"key as value":       {`{name:"a"}`, "not JSON"},
		"comment":            {`{"name":"a"/**/}`, "not JSON"},
		"long unknown field": {`{"name":"a","` + strings.Repeat("x", 10_000) + `":1}`, "unknown field"},
		"control char":       {"{\"name\":\"a\nb\"}", "not JSON"},
	} {
		var d doc
		err := Unmarshal([]byte(c.body), &d, "name")
		if err == nil || !strings.Contains(err.Error(), c.says) || len(err.Error()) > 200 {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

func TestA08_MemoryIsBounded(t *testing.T) {
	body := []byte(`{"env":{` + strings.Repeat(`"k":"v",`, 100_000) + `"z":"v"}}`)
	var many strings.Builder
	many.WriteString(`{"env":{"x":"y"`)
	for i := range 100_000 {
		many.WriteString(`,"`)
		many.WriteString(strings.Repeat("k", 1+i%7))
		many.WriteString(string(rune('a' + i%26)))
		many.WriteString(string(rune(0x4e00 + i%20_000)))
		many.WriteString(`":""`)
	}
	many.WriteString(`}}`)
	for _, b := range [][]byte{body, []byte(many.String())} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		var d doc
		if err := Unmarshal(b, &d); err == nil {
			t.Error("a hundred thousand keys were accepted")
		}
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > uint64(100*len(b)) {
			t.Errorf("%d bytes cost %d", len(b), used)
		}
	}
}

func FuzzUnmarshal(f *testing.F) {
	f.Add([]byte(`{"name":"a","n":7,"env":{"A":"1"},"list":[{"name":"b"}]}`))
	f.Add([]byte(`{"name":"a"}x`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var d doc
		if Unmarshal(b, &d) != nil {
			return
		}
		// What is accepted is one value that every parser reads alike.
		if !utf8.Valid(b) || !json.Valid(b) {
			t.Fatalf("%q was accepted", b)
		}
		out, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		var again doc
		if err := Unmarshal(out, &again); err != nil || !reflect.DeepEqual(normal(d), normal(again)) {
			t.Fatalf("%q: %+v, then %+v: %v", b, d, again, err)
		}
	})
}

// normal forgets the difference between empty and absent, which omitempty loses.
func normal(d doc) string {
	b, _ := json.Marshal(d)
	return string(b)
}
