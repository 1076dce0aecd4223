// Package output prints results: as tables for people, as JSON or YAML for
// programs. It knows nothing of what it prints and owns no state.
package output

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"go.yaml.in/yaml/v3"
)

// Format is how a result is printed.
type Format string

// The formats.
const (
	Table Format = "table"
	JSON  Format = "json"
	YAML  Format = "yaml"
)

// ParseFormat checks a format's name; an empty one is a table.
func ParseFormat(name string) (Format, error) {
	switch f := Format(name); f {
	case "":
		return Table, nil
	case Table, JSON, YAML:
		return f, nil
	}
	return "", fmt.Errorf("output format %q: want table, json or yaml", name)
}

// A View is how people see a result: [Rows], [Fields] or [Text].
type View interface {
	write(w io.Writer, width int) error
}

// Printer prints to W.
type Printer struct {
	W      io.Writer
	Notes  io.Writer // what is said beside the result; nothing where nil
	Format Format
	Width  int // of the terminal, in cells; 0 where lines may be as long as they like
}

// Print prints data for programs, or its view for people.
func (p Printer) Print(data any, view View) error {
	switch p.Format {
	case JSON:
		return writeJSON(p.W, data)
	case YAML:
		return writeYAML(p.W, data)
	}
	if rows, ok := view.(Rows); ok && len(rows.Rows) == 0 {
		return p.none(rows.None)
	}
	return view.write(p.W, p.Width)
}

// none says that a list is empty, where a program that counts lines does not see it.
func (p Printer) none(text string) error {
	if p.Notes == nil {
		return nil
	}
	if text == "" {
		text = "There are none."
	}
	_, err := fmt.Fprintln(p.Notes, text)
	return err
}

// PrintLine prints one of many results that come by and by: JSON on a line of its
// own, YAML as a document.
func (p Printer) PrintLine(data any, view View) error {
	switch p.Format {
	case JSON:
		enc := json.NewEncoder(p.W)
		enc.SetEscapeHTML(false)
		return enc.Encode(data)
	case YAML:
		if _, err := io.WriteString(p.W, "---\n"); err != nil {
			return err
		}
	}
	return p.Print(data, view)
}

func writeJSON(w io.Writer, data any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(data)
}

// writeYAML goes through JSON, so that both have the same fields in the same order.
func writeYAML(w io.Writer, data any) error {
	var b bytes.Buffer
	if err := writeJSON(&b, data); err != nil {
		return err
	}
	var doc yaml.Node // JSON is YAML
	if err := yaml.Unmarshal(b.Bytes(), &doc); err != nil {
		return err
	}
	blockStyle(&doc)
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		return err
	}
	return enc.Close()
}

// blockStyle forgets how JSON wrote a document: the encoder then chooses.
func blockStyle(n *yaml.Node) {
	n.Style = 0
	for _, child := range n.Content {
		blockStyle(child)
	}
}

// Text is printed as it is, with a newline at its end.
type Text string

func (t Text) write(w io.Writer, _ int) error {
	_, err := fmt.Fprintln(w, string(t))
	return err
}
