package answer

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"s0.run/internal/procapi"
)

func TestUnmarshal(t *testing.T) {
	t.Parallel()
	var got procapi.CreateContext
	body := ` {"type":"repl","repl":{"alias":"python","input":"\u0041<&>"},"env_vars":{"a":"1","A":"2"},"pty_size":{"rows":1,"cols":2},"repl":null} `
	if err := Unmarshal([]byte(body), &got); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("a duplicate field: %v", err)
	}
	body = strings.Replace(body, `,"repl":null`, "", 1)
	if err := Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	want := procapi.CreateContext{
		Type: "repl", REPL: &procapi.REPLRequest{Alias: "python", Input: "A<&>"},
		EnvVars: map[string]string{"a": "1", "A": "2"}, PTYSize: &procapi.PTYSize{Rows: 1, Cols: 2},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	b, err := Encode(procapi.ExecResult{OutputRaw: "<&>\xff"})
	if err != nil || string(b) != `{"output_raw":"<&>\ufffd"}`+"\n" {
		t.Errorf("encoded %s, %v", b, err)
	}
}

// What is accepted means the same to every reader: encoded again it is the same
// value, and no field of it was there twice or under another name.
func FuzzUnmarshal(f *testing.F) {
	for _, s := range []string{
		`{"type":"cmd","cmd":{"command":["a","b"]},"env_vars":{"A":"b"},"ttl_sec":5}`, `{"TYPE":"cmd"}`, `{"type":"a","type":"b"}`,
		`{"repl":{"repl_config":{"name":"x","candidates":[{"name":"y","args":[]}],"ready":{"startup_delay_ms":1}}}}`, `{} {}`, `[]`, `null`, "\xff", `{"a":`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var a, b procapi.CreateContext
		if Unmarshal(body, &a) != nil {
			return
		}
		again, err := Encode(a)
		if err != nil {
			t.Fatal(err)
		}
		if err := Unmarshal(again, &b); err != nil {
			t.Fatalf("%q was accepted, and then not as %q: %v", body, again, err)
		}
		if x, _ := json.Marshal(a); !reflect.DeepEqual(a, b) && string(x) != strings.TrimSpace(string(again)) {
			t.Fatalf("%q became %+v and then %+v", body, a, b)
		}
		var fields map[string]json.RawMessage
		if json.Unmarshal(body, &fields) == nil {
			for name := range fields {
				if _, known := fieldType(reflect.TypeFor[procapi.CreateContext](), name); !known {
					t.Fatalf("%q was accepted with the unknown field %q", body, name)
				}
			}
		}
	})
}
