package kubetest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
)

// KillAPIServer ends the API server at once, as a crash does. What it said is kept.
func (c *Cluster) KillAPIServer() {
	for _, p := range c.procs {
		if p.name == apiserver {
			_ = p.cmd.Process.Kill()
			<-p.done
		}
	}
}

// RestartAPIServer starts it again, and returns when it answers.
func (c *Cluster) RestartAPIServer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for i, p := range c.procs {
		if p.name != apiserver {
			continue
		}
		again, err := c.start(apiserver, false)
		if err != nil {
			return err
		}
		c.procs[i] = again
		return again.await(ctx, c.Dir, func(ctx context.Context) error { return ask(ctx, c.admin, c.URL+"/readyz") })
	}
	return fmt.Errorf("there was no %s", apiserver)
}

// Write is one request that changed something, or tried to.
type Write struct {
	Agent                 string // who asked, as it calls itself
	Verb                  string
	Resource, Subresource string
	Namespace, Name       string
	Status                int
}

// auditPolicy has every change written down before it is answered.
const auditPolicy = `{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived", "ResponseStarted"],
	"rules": [{"level": "None", "verbs": ["get", "list", "watch"]}, {"level": "Metadata"}]}`

func (c *Cluster) writeAuditPolicy() error {
	return os.WriteFile(c.path("audit-policy.json"), []byte(auditPolicy), 0o600)
}

// Writes are all changes so far that the API server was asked for.
func (c *Cluster) Writes() ([]Write, error) {
	f, err := os.Open(c.path("audit.log"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []Write
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e struct {
			Verb      string `json:"verb"`
			UserAgent string `json:"userAgent"`
			Object    struct {
				Resource, Subresource, Namespace, Name string
			} `json:"objectRef"`
			Response struct{ Code int } `json:"responseStatus"`
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("the audit log: %w", err)
		}
		agent, _, _ := strings.Cut(e.UserAgent, "/")
		all = append(all, Write{agent, e.Verb, e.Object.Resource, e.Object.Subresource, e.Object.Namespace, e.Object.Name, e.Response.Code})
	}
	return all, lines.Err()
}

// OK reports whether it changed something.
func (w Write) OK() bool { return w.Status < http.StatusBadRequest }
