// Package openapi holds the types and routes of the REST API, generated from
// api/openapi.yaml. It has no state and no behaviour of its own: api's httpapi
// implements [ServerInterface]. The contract is changed in the YAML file alone.
package openapi

//go:generate go tool -modfile=../../../hack/tools/gen/go.mod oapi-codegen -config oapi-codegen.yaml ../../openapi.yaml
