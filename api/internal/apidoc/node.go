package apidoc

import (
	"iter"

	"go.yaml.in/yaml/v3"
)

// node is a piece of the contract, whose keys keep their order. The zero node is
// one that is absent: it has nothing in it.
type node struct{ *yaml.Node }

// at follows an alias to what it stands for.
func at(n *yaml.Node) node {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return node{n}
}

// get is the value of a key.
func (n node) get(key string) node {
	for k, v := range n.entries() {
		if k == key {
			return v
		}
	}
	return node{}
}

// entries is a mapping's keys and values.
func (n node) entries() iter.Seq2[string, node] {
	return func(yield func(string, node) bool) {
		if n.Node == nil || n.Kind != yaml.MappingNode {
			return
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			if !yield(n.Content[i].Value, at(n.Content[i+1])) {
				return
			}
		}
	}
}

// items is a sequence's values.
func (n node) items() []node {
	if n.Node == nil || n.Kind != yaml.SequenceNode {
		return nil
	}
	list := make([]node, len(n.Content))
	for i, c := range n.Content {
		list[i] = at(c)
	}
	return list
}

// value is a scalar as it is written.
func (n node) value() string {
	if n.Node == nil || n.Kind != yaml.ScalarNode {
		return ""
	}
	return n.Value
}

func (n node) text(key string) string { return n.get(key).value() }

func (n node) absent() bool { return n.Node == nil }

// strings is a sequence of scalars.
func (n node) strings() (list []string) {
	for _, i := range n.items() {
		list = append(list, i.value())
	}
	return list
}
