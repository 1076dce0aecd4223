package answer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"unicode/utf8"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

// maxDepth bounds the nesting of a request; ours need less than ten.
const maxDepth = 32

// Decode reads a request's JSON body into out, a pointer to a struct of procapi's.
func Decode(w http.ResponseWriter, r *http.Request, out any) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, procapi.MaxJSONBytes))
	if isTooBig(err) {
		return Invalid("body of more than %d bytes", procapi.MaxJSONBytes)
	}
	if err != nil {
		return errdefs.WithCode(errdefs.InvalidArgument, "invalid_request", "reading the body failed").WithCause(err)
	}
	if err := Unmarshal(body, out); err != nil {
		return Invalid("body: %s", err)
	}
	return nil
}

// Unmarshal decodes JSON and refuses what two readers might understand in
// different ways: unknown, duplicate and differently spelt fields, text that is no
// UTF-8, anything behind the value. encoding/json alone accepts most of it.
func Unmarshal(body []byte, out any) error {
	if len(bytes.TrimSpace(body)) == 0 {
		return errors.New("JSON is required")
	}
	if !utf8.Valid(body) {
		return errors.New("not valid UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	if err := walk(dec, reflect.TypeOf(out).Elem(), 0); err != nil {
		return plain(err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("something follows the JSON value")
	}
	return plain(json.Unmarshal(body, out))
}

// plain makes an error of encoding/json fit to be shown.
func plain(err error) error {
	var typ *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &typ):
		return fmt.Errorf("%s: want %s, got %s", typ.Field, kindName(typ.Type), typ.Value)
	case errors.As(err, &syntax):
		return fmt.Errorf("not valid JSON at byte %d", syntax.Offset)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return errors.New("JSON ends too early")
	}
	return err
}

func kindName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Struct, reflect.Map, reflect.Pointer:
		return "an object"
	case reflect.Slice:
		return "an array"
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	}
	return "a number that fits " + t.Kind().String()
}

// walk checks the fields of the next value against t, or only for duplicates
// where t is nil.
func walk(dec *json.Decoder, t reflect.Type, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("nested deeper than %d", maxDepth)
	}
	tok, err := dec.Token()
	if err != nil {
		return err
	}
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch tok {
	case json.Delim('{'):
		return walkObject(dec, t, depth)
	case json.Delim('['):
		var elem reflect.Type
		if t != nil && t.Kind() == reflect.Slice {
			elem = t.Elem()
		}
		for dec.More() {
			if err := walk(dec, elem, depth+1); err != nil {
				return err
			}
		}
		_, err = dec.Token() // the closing bracket
	}
	return err
}

func walkObject(dec *json.Decoder, t reflect.Type, depth int) error {
	seen := map[string]bool{}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return err
		}
		name := tok.(string) // the decoder accepts nothing else for a key
		if seen[name] {
			return fmt.Errorf("field %.64q appears twice", name)
		}
		seen[name] = true
		value, known := fieldType(t, name)
		if !known {
			return fmt.Errorf("unknown field %.64q", name)
		}
		if err := walk(dec, value, depth+1); err != nil {
			return err
		}
	}
	_, err := dec.Token() // the closing brace
	return err
}

// fieldType is the type of an object's field, nil if anything goes.
func fieldType(t reflect.Type, name string) (value reflect.Type, known bool) {
	switch {
	case t == nil:
		return nil, true
	case t.Kind() == reflect.Map:
		return t.Elem(), true
	case t.Kind() != reflect.Struct: // a type error, which json.Unmarshal words better
		return nil, true
	}
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous { // its fields are the struct's own
			if value, known := fieldType(f.Type, name); known {
				return value, true
			}
		}
		if tag, _, _ := strings.Cut(f.Tag.Get("json"), ","); tag == name {
			return f.Type, true
		}
	}
	return nil, false
}

// Encode is JSON as the wire has it: not escaped for HTML.
func Encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return b.Bytes(), err
}
