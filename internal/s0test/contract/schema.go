package contract

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
)

// ofHTTP are headers that HTTP itself has, which no contract lists.
var ofHTTP = []string{"Content-Length", "Content-Type", "Date", "Connection", "Transfer-Encoding", "Upgrade", "Sec-Websocket-Accept"}

// headers holds an answer's headers against those that its status has, and those
// that every answer may have, which are the contract's components.
func (c *Checker) headers(resp *http.Response, described openapi3.Headers) {
	for name, values := range resp.Header {
		if slices.Contains(ofHTTP, name) {
			continue
		}
		ref := find(described, name)
		if ref == nil {
			ref = find(c.doc.Components.Headers, name)
		}
		switch {
		case ref == nil:
			c.violation(resp, "header %s is not described", name)
		default: // several of a name are a list; of a number there is one
			if err := scalar(strings.Join(values, ", "), ref.Value.Schema.Value); err != nil {
				c.violation(resp, "header %s: %v", name, err)
			}
		}
	}
	for name, ref := range c.doc.Components.Headers {
		if ref.Value.Required && resp.Header.Get(name) == "" {
			c.violation(resp, "no header %s", name)
		}
	}
}

func find(headers openapi3.Headers, name string) *openapi3.HeaderRef {
	for n, ref := range headers {
		if http.CanonicalHeaderKey(n) == name {
			return ref
		}
	}
	return nil
}

// scalar holds a header's value against its schema.
func scalar(value string, schema *openapi3.Schema) error {
	if !schema.Type.Is("integer") && !schema.Type.Is("number") {
		return schema.VisitJSON(value)
	}
	n, err := strconv.ParseFloat(value, 64)
	if err != nil {
		return err
	}
	return schema.VisitJSON(n)
}

// valid holds JSON against a media type's schema.
func valid(b []byte, media *openapi3.MediaType) error {
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	if media.Schema == nil {
		return nil
	}
	return media.Schema.Value.VisitJSON(v, openapi3.VisitAsResponse())
}

// lines looks at each line of a body as it is read. One that is longer than what
// is held passes unread.
type lines struct {
	io.ReadCloser
	check func(line []byte)
	begun []byte
}

// Read implements io.Reader.
func (l *lines) Read(p []byte) (int, error) {
	n, err := l.ReadCloser.Read(p)
	for rest := p[:n]; ; {
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			if len(l.begun)+len(rest) <= maxBody {
				l.begun = append(l.begun, rest...)
			}
			return n, err
		}
		l.check(append(l.begun, rest[:i]...))
		l.begun, rest = l.begun[:0], rest[i+1:]
	}
}

// strict makes an object of the contract's have the properties that it lists and
// no other, unless it is one of several that describe a value together.
func strict(doc *openapi3.T) {
	s := strictness{open: map[*openapi3.Schema]bool{}, seen: map[*openapi3.Schema]bool{}}
	for _, item := range doc.Paths.Map() {
		for _, op := range item.Operations() {
			for _, r := range op.Responses.Map() {
				for _, media := range r.Value.Content {
					s.visit(media.Schema)
				}
			}
		}
	}
	for schema := range s.seen {
		if len(schema.Properties) > 0 && schema.AdditionalProperties.Has == nil && schema.AdditionalProperties.Schema == nil && !s.open[schema] {
			schema.AdditionalProperties.Has = new(bool)
		}
	}
}

type strictness struct{ open, seen map[*openapi3.Schema]bool }

func (s strictness) visit(ref *openapi3.SchemaRef) {
	if ref == nil || ref.Value == nil || s.seen[ref.Value] {
		return
	}
	schema := ref.Value
	s.seen[schema] = true
	for _, part := range schema.AllOf {
		s.open[part.Value] = true
		s.open[schema] = true
		s.visit(part)
	}
	for _, p := range schema.Properties {
		s.visit(p)
	}
	for _, one := range append(append(openapi3.SchemaRefs{}, schema.OneOf...), schema.AnyOf...) {
		s.visit(one)
	}
	s.visit(schema.Items)
	s.visit(schema.AdditionalProperties.Schema)
}
