package httpapi

import (
	"net/http"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"s0.run/api/internal/auth"
)

// The permission table is the contract's x-permission, operation by operation.
func TestAccessIsWhatTheContractSays(t *testing.T) {
	t.Parallel()
	doc, err := openapi3.NewLoader().LoadFromFile("../../openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			pattern := method + " " + path
			got, listed := operations[pattern]
			if !listed {
				t.Errorf("%s is not in the table", pattern)
				continue
			}
			seen++
			want, _ := op.Extensions["x-permission"].(string)
			if got.perm != auth.Permission(want) {
				t.Errorf("%s needs %q, the contract says %q", pattern, got.perm, want)
			}
			if public := op.Security != nil && len(*op.Security) == 0; public != (got.who == nobody) {
				t.Errorf("%s: public in the contract: %v", pattern, public)
			}
			if got.perm != "" && got.who != anyInTeam && got.who != userTeam {
				t.Errorf("%s needs a permission and no team", pattern)
			}
		}
	}
	if seen != len(operations) {
		t.Errorf("the table lists %d operations, the contract %d of them", len(operations), seen)
	}
}

func TestRemoteHostIsWhatAnAttackerCannotChange(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]string{
		"192.0.2.1:1000": "192.0.2.1", "[2001:db8:1:2:3:4:5:6]:1": "2001:db8:1:2::/64", "[fe80::1%eth0]:1": "fe80::/64",
		"[::ffff:192.0.2.1]:1": "::ffff:192.0.2.1", "@": "@",
	} {
		r := &http.Request{RemoteAddr: addr, Header: http.Header{"X-Forwarded-For": {"203.0.113.9"}}}
		if got := remoteHost(r); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}
