// Package apidoc serves the contract: openapi.yaml as it is, as JSON, and as a
// page that people read.
//
// The page is made once, on the server, of nothing but the contract: no script,
// no font, no image, nothing from elsewhere. The package decides nothing about
// requests; it knows what the contract says.
package apidoc

import (
	"encoding/json"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Doc is the contract in its forms. It does not change.
type Doc struct {
	YAML []byte
	JSON []byte
	Page []byte

	operations map[string]string
}

// New reads the contract.
func New(source []byte) (*Doc, error) {
	var document yaml.Node
	if err := yaml.Unmarshal(source, &document); err != nil {
		return nil, fmt.Errorf("the contract: %w", err)
	}
	if len(document.Content) != 1 {
		return nil, fmt.Errorf("the contract: want one document, have %d", len(document.Content))
	}
	root := at(document.Content[0])
	d := &Doc{YAML: source, operations: map[string]string{}}
	for _, o := range operationsOf(root) {
		d.operations[o.method+" "+o.path] = o.node.text("operationId")
	}
	var plain any
	if err := document.Decode(&plain); err != nil {
		return nil, fmt.Errorf("the contract: %w", err)
	}
	var err error
	if d.JSON, err = json.Marshal(plain); err != nil {
		return nil, fmt.Errorf("the contract as JSON: %w", err)
	}
	if d.Page, err = render(root); err != nil {
		return nil, err
	}
	return d, nil
}

// OperationID names the operation of a route, `METHOD /path/{name}`; empty when
// the contract has none.
func (d *Doc) OperationID(route string) string { return d.operations[route] }

// operation is one of the contract, with where it is found.
type operation struct {
	method, path string
	node         node
	shared       node // parameters of every operation of its path
}

func operationsOf(root node) (list []operation) {
	for path, item := range root.get("paths").entries() {
		for key, op := range item.entries() {
			if method := strings.ToUpper(key); methods[method] {
				list = append(list, operation{method, path, op, item.get("parameters")})
			}
		}
	}
	return list
}

var methods = map[string]bool{"GET": true, "PUT": true, "POST": true, "DELETE": true, "PATCH": true, "HEAD": true, "OPTIONS": true}
