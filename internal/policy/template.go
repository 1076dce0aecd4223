package policy

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"text/template"
	"text/template/parse"
)

const (
	maxTemplate = 4 << 10
	maxRendered = 16 << 10
)

// Template makes a header's or a placeholder's value of a source's values.
type Template struct{ parsed *template.Template }

// templateFuncs are all that templates may call beside text/template's print and
// urlquery. Nothing that loops, or makes much of little, is among them.
var templateFuncs = template.FuncMap{
	"base64": func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
}

// ParseTemplate reads a valueTemplate: text, and {{ .name }} of the source's values,
// which print, urlquery and base64 may be applied to.
func ParseTemplate(text string) (*Template, error) {
	if len(text) > maxTemplate {
		return nil, fmt.Errorf("the template is longer than %d bytes", maxTemplate)
	}
	t, err := template.New("value").Option("missingkey=error").Funcs(templateFuncs).Parse(text)
	if err != nil {
		return nil, errors.New("not a template") // the parser's text quotes it
	}
	if t.Tree == nil || len(t.Templates()) > 1 {
		return nil, errors.New("a template is one value")
	}
	for _, n := range t.Root.Nodes {
		if !plainNode(n) {
			return nil, errors.New("a template has text, {{ .name }}, and of functions print, urlquery and base64")
		}
	}
	return &Template{t}, nil
}

func plainNode(n parse.Node) bool {
	switch n := n.(type) {
	case *parse.TextNode, *parse.FieldNode, *parse.StringNode:
		return true
	case *parse.IdentifierNode:
		return n.Ident == "print" || n.Ident == "urlquery" || n.Ident == "base64"
	case *parse.ActionNode:
		return plainNode(n.Pipe)
	case *parse.PipeNode:
		for _, c := range n.Cmds {
			for _, a := range c.Args {
				if !plainNode(a) {
					return false
				}
			}
		}
		return len(n.Decl) == 0
	}
	return false
}

// Render makes the value. Its errors say nothing of the values.
func (t *Template) Render(values map[string]string) (string, error) {
	out := limited{left: maxRendered}
	err := t.parsed.Execute(&out, values)
	switch {
	case out.left < 0:
		return "", fmt.Errorf("the value is longer than %d bytes", maxRendered)
	case err != nil:
		return "", errors.New("the source has not the values that the template needs")
	}
	return out.text.String(), nil
}

// limited stops a template that makes too much.
type limited struct {
	text strings.Builder
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, errors.New("too much")
	}
	return l.text.Write(p)
}
