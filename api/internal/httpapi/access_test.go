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
