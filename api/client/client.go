// Package client is the Go client of the s0 API.
package client

//go:generate ../../build/tools/oapi-codegen -config oapi-codegen.yaml ../openapi.yaml
