package openapi_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

func load(t *testing.T) *openapi3.T {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromFile("../../openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func operations(doc *openapi3.T) map[string]*openapi3.Operation {
	ops := map[string]*openapi3.Operation{}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			ops[method+" "+path] = op
		}
	}
	return ops
}

// The spec is a sound OpenAPI 3.0 document: clients in any language generate from it.
func TestSpecIsValid(t *testing.T) {
	t.Parallel()
	if err := load(t).Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Fields that hold what we don't interpret ourselves.
var openFields = []string{"affinity", "metadata", "sidecars"}

// A field that we don't know is a mistake of the caller's, at any depth.
func TestRequestBodiesRefuseUnknownFields(t *testing.T) {
	t.Parallel()
	for name, op := range operations(load(t)) {
		if op.RequestBody == nil {
			continue
		}
		if media := op.RequestBody.Value.Content["application/json"]; media != nil {
			checkClosed(t, name, media.Schema.Value)
		}
	}
}

func checkClosed(t *testing.T, at string, schema *openapi3.Schema) {
	t.Helper()
	switch {
	case schema.Type.Is("array"):
		checkClosed(t, at+"[]", schema.Items.Value)
	case schema.Type.Is("object") && schema.AdditionalProperties.Schema != nil:
		checkClosed(t, at+"{}", schema.AdditionalProperties.Schema.Value)
	case schema.Type.Is("object"):
		if has := schema.AdditionalProperties.Has; has == nil || *has {
			t.Errorf("%s takes unknown fields", at)
		}
		for name, property := range schema.Properties {
			if !slices.Contains(openFields, name) {
				checkClosed(t, at+"."+name, property.Value)
			}
		}
	}
}

var permission = regexp.MustCompile(`^[a-z]+:(create|read|write|delete|manage)$`)

func TestOperationsAreComplete(t *testing.T) {
	t.Parallel()
	ids := map[string]bool{}
	for name, op := range operations(load(t)) {
		if op.OperationID == "" || ids[op.OperationID] {
			t.Errorf("%s: operationId %q is empty or taken", name, op.OperationID)
		}
		ids[op.OperationID] = true
		public := op.Security != nil && len(*op.Security) == 0
		needed, needsPermission := op.Extensions["x-permission"].(string)
		switch {
		case needsPermission && (public || !permission.MatchString(needed)):
			t.Errorf("%s: permission %q of an operation with public=%v", name, needed, public)
		case !public && op.Responses.Value("401") == nil:
			t.Errorf("%s needs a caller and has no 401", name)
		case needsPermission && op.Responses.Value("403") == nil:
			t.Errorf("%s needs a permission and has no 403", name)
		case op.RequestBody != nil && op.Responses.Value("413") == nil:
			t.Errorf("%s takes a body and has no 413", name)
		// A dimension is one of a list: another one is a bad request.
		case strings.Contains(strings.ReplaceAll(name, "{dimension}", ""), "{") && op.Responses.Value("404") == nil:
			t.Errorf("%s names a thing and has no 404", name)
		}
	}
}

// Decoders of other languages insist on the fields that are required, and times
// that mean "not set" are sent as the zero time.
func TestTimesOfASandboxAreRequired(t *testing.T) {
	t.Parallel()
	doc := load(t)
	for _, name := range []string{"Sandbox", "SandboxSummary", "SandboxStatus", "RefreshResponse"} {
		schema := doc.Components.Schemas[name].Value
		for _, field := range []string{"expires_at", "hard_expires_at"} {
			if !slices.Contains(schema.Required, field) {
				t.Errorf("%s.%s is not required", name, field)
			}
		}
	}
}
