package httpproxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"

	"s0.run/internal/policy"
)

// maxMCP bounds a request that is looked into for calls of tools; maxDepth and
// maxCalls what is in it.
const (
	maxMCP       = 1 << 20
	maxDepth     = 64
	maxCalls     = 100
	strictLevels = 2 // a message, and its params
)

var errNotMCP = errors.New("not MCP that is understood")

// judgeTools looks into a request that MCP rules are about. It answers a request
// that they deny itself, and says so. The body is there again afterwards.
func judgeTools(tools *policy.Tools, w http.ResponseWriter, r *http.Request, kept *body) (denied bool, v policy.Verdict, _ error) {
	if bodiless(r) {
		return false, policy.Verdict{Allow: true}, nil // opens or ends a stream; calls are posted
	}
	calls, err := readCalls(r, kept)
	if errors.Is(err, errNoMemory) {
		return false, v, err
	}
	if err != nil {
		if v = tools.Unreadable(); !v.Allow {
			rpcError(w, json.RawMessage("null"), v)
		}
		return !v.Allow, v, nil
	}
	v = policy.Verdict{Allow: true}
	for _, c := range calls {
		got := tools.Tool(c.tool)
		if !got.Allow {
			rpcError(w, c.id, got)
			return true, got, nil
		}
		if got.WouldDeny {
			v = got
		}
	}
	return false, v, nil
}

// overrides are headers in which some servers look for another method.
var overrides = []string{"X-Http-Method", "X-Http-Method-Override", "X-Method-Override"}

// bodiless says that a request carries no message, whatever its server makes of it.
func bodiless(r *http.Request) bool {
	if r.Method == http.MethodPost || r.ContentLength != 0 {
		return false
	}
	return !slices.ContainsFunc(overrides, func(name string) bool { return len(r.Header[name]) > 0 })
}

// rpcError answers in JSON-RPC's words, as the contract says.
func rpcError(w http.ResponseWriter, id json.RawMessage, v policy.Verdict) {
	const notAllowed = -32001
	body, err := json.Marshal(map[string]any{
		"jsonrpc": "2.0", "id": id,
		"error": map[string]any{"code": notAllowed, "message": "denied by the sandbox's network policy: " + v.Reason, "data": map[string]string{"rule": v.Rule}},
	})
	if err != nil {
		http.Error(w, "denied", http.StatusForbidden)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(body) //nolint:errcheck // whoever is gone needs no answer
}

type call struct {
	id   json.RawMessage
	tool string
}

// readCalls reads the whole body and finds the calls of tools in it.
func readCalls(r *http.Request, kept *body) ([]call, error) {
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" || len(r.Header["Content-Type"]) != 1 || r.Header.Get("Content-Encoding") != "" {
		return nil, errNotMCP
	}
	if set, has := params["charset"]; has && !strings.EqualFold(set, "utf-8") {
		return nil, errNotMCP
	}
	rest := kept.ReadCloser
	var data []byte
	err = kept.whileKept(func() (err error) {
		data, err = io.ReadAll(io.LimitReader(kept, maxMCP+1))
		return err
	})
	if err != nil || len(data) > maxMCP {
		if !errors.Is(err, errNoMemory) { // it may pass where rules only tell
			err = errNotMCP
		}
		kept.ReadCloser = joined{io.MultiReader(bytes.NewReader(data), rest), rest}
		return nil, err
	}
	kept.ReadCloser, r.ContentLength = joined{bytes.NewReader(data), rest}, int64(len(data))
	r.TransferEncoding = nil
	return findCalls(data)
}

// joined is a body of which some was read already.
type joined struct {
	io.Reader
	io.Closer
}

// findCalls reads a message or a batch. What two readers could read differently (a
// key twice, keys that differ in their case alone) is refused.
func findCalls(body []byte) ([]call, error) {
	if !json.Valid(body) || !unique(json.NewDecoder(bytes.NewReader(body)), strictLevels, 0) {
		return nil, errNotMCP
	}
	var messages []json.RawMessage
	if trimmed := bytes.TrimLeft(body, " \t\r\n"); trimmed[0] != '[' {
		messages = []json.RawMessage{body}
	} else if err := json.Unmarshal(body, &messages); err != nil || len(messages) > maxCalls {
		return nil, errNotMCP
	}
	var calls []call
	for _, m := range messages {
		c, is, err := readCall(m)
		if err != nil {
			return nil, err
		}
		if is {
			calls = append(calls, c)
		}
	}
	return calls, nil
}

func readCall(message []byte) (c call, is bool, err error) {
	var fields map[string]json.RawMessage
	if json.Unmarshal(message, &fields) != nil || fields == nil {
		return c, false, errNotMCP
	}
	raw, has := fields["method"]
	if !has {
		return c, false, nil // an answer to the server
	}
	var method string
	if json.Unmarshal(raw, &method) != nil {
		return c, false, errNotMCP
	}
	if method != "tools/call" {
		return c, false, nil
	}
	var params map[string]json.RawMessage
	if json.Unmarshal(fields["params"], &params) != nil || params["name"] == nil || json.Unmarshal(params["name"], &c.tool) != nil || c.tool == "" {
		return c, false, errNotMCP
	}
	if c.id = fields["id"]; c.id == nil {
		c.id = json.RawMessage("null")
	}
	return c, true, nil
}

// meaning are the keys that decide what a message and its params mean.
var meaning = []string{"jsonrpc", "id", "method", "params", "result", "error", "name", "arguments"}

// misspelt says that a key is read as another by who does not look at its case, or at
// which of Unicode's letters it is written in, as Go's own reader.
func misspelt(key string) bool {
	return slices.ContainsFunc(meaning, func(k string) bool { return key != k && strings.EqualFold(key, k) })
}

// unique says that no object in a value has a key twice, and that the keys of a message
// and its params are what they are to every reader. Below those, arguments are a tool's
// own. strict is how many such levels are left.
func unique(dec *json.Decoder, strict, depth int) bool {
	tok, err := dec.Token()
	if err != nil || depth > maxDepth {
		return false
	}
	open, is := tok.(json.Delim)
	if !is {
		return true
	}
	keys := map[string]bool{}
	for dec.More() {
		below := strict // a batch's messages
		if open == '{' {
			tok, err := dec.Token()
			key, ok := tok.(string)
			if err != nil || !ok || keys[key] || strict > 0 && misspelt(key) {
				return false
			}
			keys[key] = true
			if below = 0; key == "params" {
				below = strict - 1
			}
		}
		if !unique(dec, below, depth+1) {
			return false
		}
	}
	_, err = dec.Token()
	return err == nil
}
