package apidoc

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"strings"
)

var (
	//go:embed page.html
	pageSource string
	//go:embed page.css
	style string
)

// StyleHash is what a Content-Security-Policy allows the page's style by.
var StyleHash = func() string {
	sum := sha256.Sum256([]byte(style))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}()

// page is what the template shows.
type page struct {
	Title, Version string
	Intro          []template.HTML
	Style          template.CSS
	Groups         []group
	Schemas        []schemaView
}

// group is the operations of a tag.
type group struct {
	Name, About string
	Operations  []operationView
}

type operationView struct {
	ID, Method, Path, Summary string
	Caller                    string // who may call
	About                     []template.HTML
	Parameters                []parameterView
	Body                      *bodyView
	Responses                 []responseView
}

type parameterView struct {
	Name, In string
	Required bool
	Type     template.HTML
	About    []template.HTML
}

type bodyView struct {
	ContentType, Example string
	Type                 template.HTML
}

type responseView struct {
	Status, Example string
	About           []template.HTML
	Type            template.HTML
	Headers         []string
}

type schemaView struct {
	Name    string
	Type    template.HTML
	About   []template.HTML
	Fields  []fieldView
	Example string
}

type fieldView struct {
	Name     string
	Required bool
	Type     template.HTML
	About    []template.HTML
}

// render makes the page.
func render(root node) ([]byte, error) {
	t, err := template.New("page").Parse(pageSource)
	if err != nil {
		return nil, err
	}
	d := drawer{root}
	info := root.get("info")
	p := page{
		Title: info.text("title"), Version: info.text("version"), Intro: prose(info.text("description")),
		Style: template.CSS(style), Groups: d.groups(), Schemas: d.schemas(),
	}
	var b bytes.Buffer
	if err := t.Execute(&b, p); err != nil {
		return nil, fmt.Errorf("drawing the contract: %w", err)
	}
	return b.Bytes(), nil
}

// drawer turns pieces of the contract into what the template shows.
type drawer struct{ root node }

// groups lists the operations below the contract's tags, in its order.
func (d drawer) groups() []group {
	byTag := map[string][]operationView{}
	for _, o := range operationsOf(d.root) {
		tag := append(o.node.get("tags").strings(), "other")[0]
		byTag[tag] = append(byTag[tag], d.operation(o))
	}
	var list []group
	for _, t := range d.root.get("tags").items() {
		name := t.text("name")
		list = append(list, group{Name: name, About: t.text("description"), Operations: byTag[name]})
		delete(byTag, name)
	}
	for _, left := range sortedKeys(byTag) {
		list = append(list, group{Name: left, Operations: byTag[left]})
	}
	return list
}

func (d drawer) operation(o operation) operationView {
	v := operationView{
		ID: o.node.text("operationId"), Method: o.method, Path: o.path, Summary: o.node.text("summary"),
		Caller: caller(o.node), About: prose(o.node.text("description")),
	}
	for _, p := range append(o.shared.items(), o.node.get("parameters").items()...) {
		p = d.resolve(p)
		v.Parameters = append(v.Parameters, parameterView{
			Name: p.text("name"), In: p.text("in"), Required: p.text("required") == "true",
			Type: typeOf(p.get("schema")), About: d.about(p),
		})
	}
	for contentType, media := range d.resolve(o.node.get("requestBody")).get("content").entries() {
		v.Body = &bodyView{ContentType: contentType, Type: typeOf(media.get("schema")), Example: d.example(contentType, media)}
		break
	}
	for status, r := range o.node.get("responses").entries() {
		v.Responses = append(v.Responses, d.response(status, d.resolve(r)))
	}
	return v
}

// about is a parameter's description, or its schema's.
func (d drawer) about(p node) []template.HTML {
	if text := p.text("description"); text != "" {
		return prose(text)
	}
	return prose(d.resolve(p.get("schema")).text("description"))
}

func caller(op node) string {
	permission := op.text("x-permission")
	switch security := op.get("security"); {
	case !security.absent() && len(security.items()) == 0:
		return "anybody"
	case permission != "":
		return "needs " + permission
	}
	return "needs a signed-in caller"
}

// response shows a status. Errors are all alike, and are told once, above.
func (d drawer) response(status string, r node) responseView {
	v := responseView{Status: status, About: prose(r.text("description"))}
	for name := range r.get("headers").entries() {
		v.Headers = append(v.Headers, name)
	}
	for contentType, media := range r.get("content").entries() {
		schema := media.get("schema")
		if data := schema.get("properties").get("data"); !data.absent() {
			schema = data
		}
		v.Type = typeOf(schema)
		if strings.HasPrefix(status, "2") {
			v.Example = d.example(contentType, media)
		}
		break
	}
	return v
}

func (d drawer) schemas() (list []schemaView) {
	for name, s := range d.root.get("components").get("schemas").entries() {
		v := schemaView{Name: name, Type: typeOf(s), About: prose(s.text("description")), Fields: d.fields("", s, 0)}
		if len(v.Fields) > 0 {
			v.Example = d.sample(s)
		}
		list = append(list, v)
	}
	return list
}

// maxDepth bounds how deep objects without a name are shown.
const maxDepth = 4

// fields lists an object's properties, those of objects without a name included.
func (d drawer) fields(prefix string, s node, depth int) (list []fieldView) {
	for _, part := range s.get("allOf").items() {
		list = append(list, d.fields(prefix, d.resolve(part), depth)...)
	}
	required := map[string]bool{}
	for _, name := range s.get("required").strings() {
		required[name] = true
	}
	for name, p := range s.get("properties").entries() {
		list = append(list, fieldView{Name: prefix + name, Required: required[name], Type: typeOf(p), About: prose(p.text("description"))})
		if depth < maxDepth {
			list = append(list, d.fields(prefix+name+".", p, depth+1)...)
			list = append(list, d.fields(prefix+name+"[].", p.get("items"), depth+1)...)
		}
	}
	return list
}

// resolve follows a reference within the contract.
func (d drawer) resolve(n node) node {
	ref, ok := strings.CutPrefix(n.text("$ref"), "#/")
	if !ok {
		return n
	}
	at := d.root
	for key := range strings.SplitSeq(ref, "/") {
		at = at.get(key)
	}
	return at
}
