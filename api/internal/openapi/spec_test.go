package openapi_test

import (
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

// The spec is a sound OpenAPI 3.0 document: clients in any language generate from it.
func TestSpecIsValid(t *testing.T) {
	t.Parallel()
	doc, err := openapi3.NewLoader().LoadFromFile("../../openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
}
