package apidoc_test

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"s0.run/api/internal/apidoc"
)

func load(t *testing.T) (*apidoc.Doc, *openapi3.T) {
	t.Helper()
	source, err := os.ReadFile("../../openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	d, err := apidoc.New(source)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := openapi3.NewLoader().LoadFromData(d.JSON)
	if err != nil {
		t.Fatalf("the JSON is not the contract: %v", err)
	}
	return d, doc
}

func TestThePageHasEverything(t *testing.T) {
	t.Parallel()
	d, doc := load(t)
	page := string(d.Page)
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			if got := d.OperationID(method + " " + path); got != op.OperationID {
				t.Errorf("%s %s is %q, want %s", method, path, got, op.OperationID)
			}
			if !strings.Contains(page, `<section id="`+op.OperationID+`">`) || !strings.Contains(page, path) {
				t.Errorf("%s is not on the page", op.OperationID)
			}
		}
	}
	for name := range doc.Components.Schemas {
		if !strings.Contains(page, `<section id="schema-`+name+`">`) {
			t.Errorf("%s is not on the page", name)
		}
	}
	if len(page) > 4<<20 {
		t.Errorf("%d bytes", len(page))
	}
	if d.OperationID("GET /nothing") != "" {
		t.Error("a route that is not has a name")
	}
}

// The page leads nowhere that is not, and brings nothing from elsewhere.
func TestThePageIsWhole(t *testing.T) {
	t.Parallel()
	d, _ := load(t)
	page := string(d.Page)
	ids := map[string]bool{}
	for _, m := range regexp.MustCompile(` id="([^"]+)"`).FindAllStringSubmatch(page, -1) {
		if ids[m[1]] {
			t.Errorf("two of %s", m[1])
		}
		ids[m[1]] = true
	}
	for _, m := range regexp.MustCompile(`href="([^"]+)"`).FindAllStringSubmatch(page, -1) {
		switch target, inside := strings.CutPrefix(m[1], "#"); {
		case inside && !ids[target]:
			t.Errorf("a link to %s leads nowhere", target)
		case !inside && m[1] != "/openapi.yaml" && m[1] != "/openapi.json":
			t.Errorf("a link to %s", m[1])
		}
	}
	for _, no := range []string{"<script", "<link", "<img", "src=", "@import", "url(", " style=", " on" + "click"} {
		if strings.Contains(page, no) {
			t.Errorf("the page has %s", no)
		}
	}
}

// What a request or an answer looks like is shown as JSON that is JSON.
func TestExamplesAreJSON(t *testing.T) {
	t.Parallel()
	d, _ := load(t)
	found := regexp.MustCompile(`(?s)<pre>(.*?)</pre>`).FindAllStringSubmatch(string(d.Page), -1)
	if len(found) < 50 {
		t.Fatalf("%d examples", len(found))
	}
	unescape := strings.NewReplacer("&#34;", `"`, "&#39;", "'", "&lt;", "<", "&gt;", ">", "&#43;", "+", "&amp;", "&")
	for _, m := range found {
		if text := unescape.Replace(m[1]); !json.Valid([]byte(text)) {
			t.Errorf("not JSON: %.200s", text)
		}
	}
}

func TestAContractThatIsNone(t *testing.T) {
	t.Parallel()
	for _, source := range []string{"", "\t", "a: ["} {
		if _, err := apidoc.New([]byte(source)); err == nil {
			t.Errorf("%q was read", source)
		}
	}
}
