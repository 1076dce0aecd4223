// Package strictjson decodes a client's JSON and refuses whatever two parsers
// might read differently: unknown and duplicate keys, keys in another case than
// the contract's, a second value, invalid UTF-8, absurd depth. It is pure; the
// caller bounds the input's size.
//
// Its errors are meant for the client: they say where and what, and quote no
// more than a key's first bytes.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"unicode/utf8"
)

const (
	maxDepth = 32
	maxKeys  = 10_000 // of all objects together
	maxQuote = 64
)

// Unmarshal decodes one JSON object into dst, a pointer to a struct. Every
// required key must be there and not null.
func Unmarshal(data []byte, dst any, required ...string) error {
	if !utf8.Valid(data) {
		return errors.New("the body is not valid UTF-8")
	}
	top, err := scan(data, plainType(reflect.TypeOf(dst)))
	if err != nil {
		return err
	}
	for _, key := range required {
		if !top[key] {
			return fmt.Errorf("%s is required", key)
		}
	}
	return explain(json.Unmarshal(data, dst))
}

// scan walks the tokens along the type that they are for and answers which keys
// the top object has, null ones apart.
func scan(data []byte, t reflect.Type) (map[string]bool, error) {
	s := &scanner{dec: json.NewDecoder(bytes.NewReader(data)), top: map[string]bool{}}
	s.dec.UseNumber()
	tok, err := s.dec.Token()
	if err != nil {
		return nil, explain(err)
	}
	if tok != json.Delim('{') {
		return nil, errors.New("the body must be a JSON object")
	}
	if err := s.object(t, 1); err != nil {
		return nil, err
	}
	if _, err := s.dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	return s.top, nil
}

type scanner struct {
	dec  *json.Decoder
	keys int
	top  map[string]bool
}

func (s *scanner) object(t reflect.Type, depth int) error {
	seen := map[string]bool{}
	for s.dec.More() {
		tok, err := s.dec.Token()
		if err != nil {
			return explain(err)
		}
		key := tok.(string) // the decoder lets nothing else stand here
		if seen[key] {
			return fmt.Errorf("key %s is there twice", quote(key))
		}
		seen[key] = true
		if s.keys++; s.keys > maxKeys {
			return errors.New("the body has too many keys")
		}
		field, known := fieldOf(t, key)
		if !known {
			return fmt.Errorf("unknown field %s", quote(key))
		}
		value, err := s.value(field, depth)
		if err != nil {
			return err
		}
		if depth == 1 && value != nil {
			s.top[key] = true
		}
	}
	return s.end()
}

func (s *scanner) array(t reflect.Type, depth int) error {
	var elem reflect.Type
	if t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) {
		elem = t.Elem()
	}
	for s.dec.More() {
		if _, err := s.value(elem, depth); err != nil {
			return err
		}
	}
	return s.end()
}

func (s *scanner) end() error {
	_, err := s.dec.Token()
	return explain(err)
}

// value reads one value that is for a t; it answers nil for null alone.
func (s *scanner) value(t reflect.Type, depth int) (json.Token, error) {
	tok, err := s.dec.Token()
	if err != nil {
		return nil, explain(err)
	}
	delim, nested := tok.(json.Delim)
	if !nested {
		return tok, nil
	}
	if depth >= maxDepth {
		return nil, errors.New("the body is nested too deeply")
	}
	t = plainType(t)
	if delim == '{' {
		return delim, s.object(t, depth+1)
	}
	return delim, s.array(t, depth+1)
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

// plainType is what t's fields can be known of: what it points to, or nil when it
// has its own way to read JSON.
func plainType(t reflect.Type) reflect.Type {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t != nil && reflect.PointerTo(t).Implements(unmarshaler) {
		return nil
	}
	return t
}

// fieldOf is the type of an object's field, nil where anything goes. The decoder
// itself would take a name in any case.
func fieldOf(t reflect.Type, key string) (field reflect.Type, known bool) {
	switch {
	case t == nil:
		return nil, true
	case t.Kind() == reflect.Map:
		return t.Elem(), true
	case t.Kind() != reflect.Struct: // the decoder says what is wrong with that
		return nil, true
	}
	for i := range t.NumField() {
		f := t.Field(i)
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name == key && name != "-" {
			return f.Type, true
		}
	}
	return nil, false
}

// explain turns the decoder's errors into what a client can use.
func explain(err error) error {
	if err == nil {
		return nil
	}
	if t, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		value := t.Value // such as: number 1e400
		if len(value) > maxQuote {
			value = value[:maxQuote] + "…"
		}
		if t.Field == "" {
			return fmt.Errorf("the body must not be a %s", value)
		}
		return fmt.Errorf("%s must not be a %s", quote(t.Field), value)
	}
	if s, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("not JSON at byte %d", s.Offset)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the JSON ends too early")
	}
	return errors.New("not the JSON that is expected")
}

func quote(s string) string {
	if len(s) > maxQuote {
		s = s[:maxQuote]
	}
	return fmt.Sprintf("%q", s)
}
