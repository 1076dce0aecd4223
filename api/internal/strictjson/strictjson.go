// Package strictjson decodes a client's JSON and refuses whatever two parsers
// might read differently: unknown and duplicate keys, a second value, invalid
// UTF-8, absurd depth. It is pure; the caller bounds the input's size.
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
	top, err := scan(data)
	if err != nil {
		return err
	}
	for _, key := range required {
		if !top[key] {
			return fmt.Errorf("%s is required", key)
		}
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	return explain(dec.Decode(dst))
}

// scan walks the tokens and answers which keys the top object has, null ones
// apart.
func scan(data []byte) (map[string]bool, error) {
	s := &scanner{dec: json.NewDecoder(bytes.NewReader(data)), top: map[string]bool{}}
	s.dec.UseNumber()
	tok, err := s.dec.Token()
	if err != nil {
		return nil, explain(err)
	}
	if tok != json.Delim('{') {
		return nil, errors.New("the body must be a JSON object")
	}
	if err := s.object(1); err != nil {
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

func (s *scanner) object(depth int) error {
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
		value, err := s.value(depth)
		if err != nil {
			return err
		}
		if depth == 1 && value != nil {
			s.top[key] = true
		}
	}
	return s.end()
}

func (s *scanner) array(depth int) error {
	for s.dec.More() {
		if _, err := s.value(depth); err != nil {
			return err
		}
	}
	return s.end()
}

func (s *scanner) end() error {
	_, err := s.dec.Token()
	return explain(err)
}

// value reads one value; it answers nil for null alone.
func (s *scanner) value(depth int) (json.Token, error) {
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
	if delim == '{' {
		return delim, s.object(depth + 1)
	}
	return delim, s.array(depth + 1)
}

// explain turns the decoder's errors into what a client can use.
func explain(err error) error {
	if err == nil {
		return nil
	}
	if t, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		if t.Field == "" {
			return fmt.Errorf("the body must not be a %s", t.Value)
		}
		return fmt.Errorf("%s must not be a %s", quote(t.Field), t.Value)
	}
	if s, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("not JSON at byte %d", s.Offset)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the JSON ends too early")
	}
	text := strings.TrimPrefix(err.Error(), "json: ") // such as: unknown field "x"
	if !strings.HasPrefix(text, "unknown field") {
		text = "not the JSON that is expected"
	}
	return errors.New(text[:min(len(text), maxQuote+len(`unknown field ""`))])
}

func quote(s string) string {
	if len(s) > maxQuote {
		s = s[:maxQuote]
	}
	return fmt.Sprintf("%q", s)
}
