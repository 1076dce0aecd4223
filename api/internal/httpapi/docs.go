package httpapi

import (
	"net/http"

	"s0.run/api/internal/apidoc"
)

// docsPolicy lets the page be what it is and nothing more: no script, nothing
// from elsewhere, in no frame.
var docsPolicy = "default-src 'none'; style-src '" + apidoc.StyleHash + "'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// GetDocs implements GET /docs.
func (a *API) GetDocs(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Security-Policy", docsPolicy)
	w.Header().Set("Referrer-Policy", "no-referrer")
	a.serveText(w, r, "text/html; charset=utf-8", a.cfg.Doc.Page)
}

// GetOpenAPIYAML implements GET /openapi.yaml.
func (a *API) GetOpenAPIYAML(w http.ResponseWriter, r *http.Request) {
	a.serveText(w, r, "application/yaml", a.cfg.Doc.YAML)
}

// GetOpenAPIJSON implements GET /openapi.json.
func (a *API) GetOpenAPIJSON(w http.ResponseWriter, r *http.Request) {
	a.serveText(w, r, "application/vnd.oai.openapi+json", a.cfg.Doc.JSON)
}
