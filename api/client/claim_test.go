package client

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
)

func TestClaimSandboxTriesAgainWithTheSameKey(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answers []int // 0: the connection breaks
		code    string
		calls   int32
		fails   bool
	}{
		"at once":                 {[]int{201}, "", 1, false},
		"the server stops":        {[]int{0, 503, 201}, "unavailable", 3, false},
		"a proxy's words":         {[]int{502, 504, 201}, "", 3, false},
		"too many starts":         {[]int{429, 201}, "claim_start_throttled", 2, false},
		"a used-up quota":         {[]int{429}, "quota_exceeded", 1, true},
		"a request that is wrong": {[]int{400}, "bad_request", 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var calls atomic.Int32
			var key atomic.Value
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				n := calls.Add(1)
				if first := key.Swap(r.Header.Get("Idempotency-Key")); n > 1 && first != r.Header.Get("Idempotency-Key") || r.Header.Get("Idempotency-Key") == "" {
					t.Errorf("call %d has the key %q", n, r.Header.Get("Idempotency-Key"))
				}
				switch status := c.answers[n-1]; status {
				case 0:
					panic(http.ErrAbortHandler)
				case 201:
					w.WriteHeader(status)
					fmt.Fprint(w, `{"success":true,"data":{"sandbox_id":"s","status":"running","pod_name":"s","template":"t"}}`)
				default:
					w.WriteHeader(status)
					fmt.Fprintf(w, `{"success":false,"error":{"code":%q,"message":"no"}}`, c.code)
				}
			}))
			t.Cleanup(srv.Close)
			cl, err := New(Config{BaseURL: srv.URL})
			if err != nil {
				t.Fatal(err)
			}
			sb, err := cl.ClaimSandbox(t.Context(), ClaimRequest{Template: "t"})
			if (err != nil) != c.fails || !c.fails && sb.SandboxID != "s" || calls.Load() != c.calls {
				t.Errorf("%v, %v after %d calls", sb, err, calls.Load())
			}
		})
	}
}
