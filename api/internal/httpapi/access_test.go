package httpapi

import (
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"s0.run/api/internal/auth"
)

// callers are the contract's words for who may call.
var callers = map[string]caller{
	"": anyInTeam, "user": user, "user-in-team": userTeam, "api-key": keyAlone, "system-admin": systemAdmin,
	"member": member, "member-or-self": memberOrSelf, "owner": owner,
}

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
			if caller, _ := op.Extensions["x-caller"].(string); got.who != nobody && got.who != callers[caller] {
				t.Errorf("%s is for %d, the contract says %q", pattern, got.who, caller)
			}
			if got.perm != "" && !slices.Contains([]caller{anyInTeam, userTeam, member, memberOrSelf}, got.who) {
				t.Errorf("%s needs a permission and no team", pattern)
			}
			if named := []caller{member, memberOrSelf, owner}; strings.HasPrefix(path, "/teams/{id}") != slices.Contains(named, got.who) {
				t.Errorf("%s: only paths that name a team are for its members", pattern)
			}
		}
	}
	if seen != len(operations) {
		t.Errorf("the table lists %d operations, the contract %d of them", len(operations), seen)
	}
}
