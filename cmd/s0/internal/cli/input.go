package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// maxDocumentBytes bounds a document that the user gives us.
const maxDocumentBytes = 16 << 20

// readDocument reads YAML or JSON from a file, "-" for stdin.
func readDocument(path string) (map[string]any, error) {
	b, err := readAll(path)
	if err != nil {
		return nil, err
	}
	var doc map[string]any
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return doc, nil
}

// decodeDocument makes an API type of a document. A field that the type does not
// have is an error that names it.
func decodeDocument[T any](path string, doc map[string]any) (T, error) {
	var into T
	b, err := json.Marshal(doc) // the types know their fields by their JSON names
	if err != nil {
		return into, fmt.Errorf("%s: %w", path, err)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&into); err != nil {
		return into, fmt.Errorf("%s: %s", path, strings.TrimPrefix(err.Error(), "json: "))
	}
	return into, nil
}

func readAll(path string) ([]byte, error) {
	f := os.Stdin
	if path != "-" {
		var err error
		if f, err = os.Open(path); err != nil {
			return nil, err
		}
		defer f.Close()
	}
	b, err := io.ReadAll(io.LimitReader(f, maxDocumentBytes+1))
	if err == nil && len(b) > maxDocumentBytes {
		err = fmt.Errorf("%s: longer than %d bytes", path, maxDocumentBytes)
	}
	return b, err
}

// seconds is a flag for a time span: "90", "90s" and "1m30s" are the same. Not
// given and 0 are different things.
type seconds struct{ value *int32 }

func (s *seconds) String() string {
	if s.value == nil {
		return ""
	}
	return strconv.Itoa(int(*s.value))
}

func (s *seconds) Type() string { return "duration" }

func (s *seconds) Set(text string) error {
	if _, err := strconv.Atoi(text); err == nil {
		text += "s"
	}
	d, err := time.ParseDuration(text)
	n := int64(d / time.Second)
	if err != nil || n < 0 || n > math.MaxInt32 || d%time.Second != 0 {
		return errors.New("want whole seconds, such as 90, 90s or 15m")
	}
	v := int32(n)
	s.value = &v
	return nil
}

// optionalBool is a flag that is true, false or not given.
type optionalBool struct{ value *bool }

func (b *optionalBool) String() string {
	if b.value == nil {
		return ""
	}
	return strconv.FormatBool(*b.value)
}

func (b *optionalBool) Type() string { return "bool" }

func (b *optionalBool) Set(text string) error {
	v, err := strconv.ParseBool(text)
	if err != nil {
		return errors.New("want true or false")
	}
	b.value = &v
	return nil
}

// parseEnv reads NAME=VALUE pairs. NAME alone takes the value from our own
// environment, so that a secret need not be on the command line.
func parseEnv(pairs []string) (map[string]string, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	env := map[string]string{}
	for _, pair := range pairs {
		name, value, given := strings.Cut(pair, "=")
		if name == "" {
			return nil, fmt.Errorf("--env %q: want NAME=VALUE", pair)
		}
		if !given {
			var ok bool
			if value, ok = os.LookupEnv(name); !ok {
				return nil, fmt.Errorf("--env %s: there is no such variable here; want NAME=VALUE", name)
			}
		}
		env[name] = value
	}
	return env, nil
}
