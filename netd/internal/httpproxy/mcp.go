package httpproxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
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
func judgeTools(tools *policy.Tools, w http.ResponseWriter, r *http.Request) (denied bool, v policy.Verdict) {
	if r.Method != http.MethodPost {
		return false, policy.Verdict{Allow: true} // opens or ends a stream; calls are posted
	}
	calls, err := readCalls(r)
	if err != nil {
		if v = tools.Unreadable(); !v.Allow {
			rpcError(w, json.RawMessage("null"), v)
		}
		return !v.Allow, v
	}
	v = policy.Verdict{Allow: true}
	for _, c := range calls {
		got := tools.Tool(c.tool)
		if !got.Allow {
			rpcError(w, c.id, got)
			return true, got
		}
		if got.WouldDeny {
			v = got
		}
	}
	return false, v
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
func readCalls(r *http.Request) ([]call, error) {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" || r.Header.Get("Content-Encoding") != "" {
		return nil, errNotMCP
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxMCP+1))
	if err != nil || len(body) > maxMCP {
		return nil, errNotMCP
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	r.TransferEncoding = nil
	return findCalls(body)
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

// unique says that no object in a value has a key twice; for a message and its
// params, whose keys decide what is meant, also not in another case. Below those,
// arguments are a tool's own. strict is how many such levels are left.
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
			folded := key
			if strict > 0 {
				folded = strings.ToLower(key)
			}
			if err != nil || !ok || keys[folded] {
				return false
			}
			keys[folded] = true
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
