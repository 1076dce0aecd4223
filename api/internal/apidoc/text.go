package apidoc

import (
	"encoding/json"
	"html/template"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// prose turns a description into paragraphs: text between empty lines, code
// between backquotes. Everything else is shown as it is.
func prose(text string) (list []template.HTML) {
	for paragraph := range strings.SplitSeq(strings.TrimSpace(text), "\n\n") {
		if paragraph = strings.TrimSpace(paragraph); paragraph != "" {
			list = append(list, inline(paragraph))
		}
	}
	return list
}

func inline(text string) template.HTML {
	var b strings.Builder
	for i, part := range strings.Split(text, "`") {
		switch escaped := template.HTMLEscapeString(part); i % 2 {
		case 1:
			b.WriteString("<code>" + escaped + "</code>")
		default:
			b.WriteString(escaped)
		}
	}
	return template.HTML(b.String())
}

// typeOf says what a schema wants, in a line.
func typeOf(s node) template.HTML {
	if name, ok := strings.CutPrefix(s.text("$ref"), "#/components/schemas/"); ok {
		name = template.HTMLEscapeString(name)
		return template.HTML(`<a href="#schema-` + name + `">` + name + `</a>`)
	}
	escaped := template.HTMLEscapeString
	switch values := s.get("enum").strings(); {
	case len(values) > 0:
		return template.HTML("<code>" + escaped(strings.Join(values, " | ")) + "</code>")
	case !s.get("allOf").absent():
		return joined(s.get("allOf").items(), " and ")
	case !s.get("oneOf").absent():
		return joined(s.get("oneOf").items(), " or ")
	case s.text("type") == "array":
		return "array of " + typeOf(s.get("items"))
	case !s.get("additionalProperties").get("type").absent() || !s.get("additionalProperties").get("$ref").absent():
		return "map to " + typeOf(s.get("additionalProperties"))
	}
	return template.HTML(escaped(strings.Join(slices.DeleteFunc([]string{
		or(s.text("type"), "any"), s.text("format"), bounds(s), def(s),
	}, func(part string) bool { return part == "" }), ", ")))
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func joined(list []node, with string) template.HTML {
	parts := make([]string, len(list))
	for i, n := range list {
		parts[i] = string(typeOf(n))
	}
	return template.HTML(strings.Join(parts, with))
}

func bounds(s node) string {
	low, high := or(s.text("minimum"), s.text("minLength")), or(s.text("maximum"), s.text("maxLength"))
	switch {
	case low != "" && high != "":
		return low + " to " + high
	case low != "":
		return "at least " + low
	case high != "":
		return "at most " + high
	}
	return ""
}

func def(s node) string {
	if v := s.text("default"); v != "" {
		return "default " + v
	}
	return ""
}

// example is a body: the contract's own, or one made of its schema.
func (d drawer) example(contentType string, media node) string {
	if !strings.HasSuffix(contentType, "json") {
		return ""
	}
	if own := media.get("example"); !own.absent() {
		return indent(own)
	}
	return d.sample(media.get("schema"))
}

func indent(n node) string {
	var v any
	if n.Decode(&v) != nil {
		return ""
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return ""
	}
	return string(b)
}

// sample is JSON that a schema allows, with every property.
func (d drawer) sample(s node) string {
	var b strings.Builder
	d.write(&b, s, "\n", nil)
	return b.String()
}

// write writes a value of a schema. within are the schemas that it is part of: one
// that contains itself ends there.
func (d drawer) write(b *strings.Builder, s node, newline string, within []string) {
	if ref := s.text("$ref"); ref != "" {
		if slices.Contains(within, ref) || len(within) > 8 {
			b.WriteString("{}")
			return
		}
		within = append(slices.Clip(within), ref)
		s = d.resolve(s)
	}
	if own := s.get("example"); !own.absent() {
		b.WriteString(strings.ReplaceAll(indent(own), "\n", newline))
		return
	}
	properties := s.get("properties")
	switch {
	case len(s.get("allOf").items()) > 0:
		d.write(b, s.get("allOf").items()[0], newline, within)
	case len(s.get("oneOf").items()) > 0:
		d.write(b, s.get("oneOf").items()[0], newline, within)
	case len(s.get("enum").items()) > 0:
		b.WriteString(strconv.Quote(s.get("enum").strings()[0]))
	case s.text("type") == "array":
		b.WriteString("[")
		d.write(b, s.get("items"), newline, within)
		b.WriteString("]")
	case !properties.absent():
		d.writeObject(b, properties, newline, within)
	default:
		b.WriteString(scalar(s))
	}
}

func (d drawer) writeObject(b *strings.Builder, properties node, newline string, within []string) {
	b.WriteString("{")
	separator := ""
	for name, p := range properties.entries() {
		b.WriteString(separator + newline + "  " + strconv.Quote(name) + ": ")
		d.write(b, p, newline+"  ", within)
		separator = ","
	}
	b.WriteString(newline + "}")
}

func scalar(s node) string {
	switch s.text("type") {
	case "integer", "number":
		return or(s.text("default"), or(s.text("minimum"), "0"))
	case "boolean":
		return or(s.text("default"), "true")
	case "string":
		switch s.text("format") {
		case "date-time":
			return `"2026-01-02T15:04:05Z"`
		case "byte":
			return `"aGVsbG8="`
		}
		return strconv.Quote(or(s.text("default"), "…"))
	}
	return "{}"
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
