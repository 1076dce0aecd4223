package claim

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"strings"

	"github.com/google/uuid"

	"s0.run/api/internal/egress"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/quantity"
	"s0.run/api/internal/store"
	"s0.run/api/internal/templates"
	"s0.run/api/internal/volumes"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/policy"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
)

// Request is a claim as a client asked for it.
type Request struct {
	TeamID   uuid.UUID
	UserID   uuid.UUID
	Template string // its name, lower-cased
	Config   openapi.SandboxConfig
	Key      string // the idempotency key; empty: none

	SnapshotID uuid.UUID         // whose files it begins with; uuid.Nil: none
	Mounts     []store.MountWant // volumes that it shall have
}

// plan is a request that was checked against its template.
type plan struct {
	req       Request
	tmpl      *templates.Template
	row       store.NewSandbox // without what the slot decides
	env       map[string]string
	cpuMillis int64
	snapshot  *store.Snapshot  // it begins with; nil: none
	where     volumes.Where    // it may be, for its volumes
	policy    *policy.Policy   // nil: the default
	network   *nodeapi.Network // what the node is told of it
}

func (c *Claimer) plan(req Request, tmpl *templates.Template) (*plan, error) {
	if tmpl.Unavailable != nil {
		return nil, tmpl.Unavailable
	}
	memory, err := Memory(req.Config.Resources, tmpl.Slot.MemoryBytes)
	if err != nil {
		return nil, err
	}
	if tmpl.Slot.RuntimeClass == sandbox.Kata && memory != tmpl.Slot.MemoryBytes {
		return nil, errdefs.New(errdefs.InvalidArgument, "resources.memory: a sandbox of runtime class %q has its template's", sandbox.Kata)
	}
	ttl, err := tmpl.TTL(req.Config.TTL)
	if err != nil {
		return nil, err
	}
	hardTTL := int32(0)
	if req.Config.HardTTL != nil {
		hardTTL = *req.Config.HardTTL
	}
	if req.Config.TTL == nil && hardTTL > 0 {
		ttl = min(ttl, hardTTL) // the template's default gives way
	}
	if err := CheckTTLs(ttl, hardTTL); err != nil {
		return nil, err
	}
	hook, err := c.webhook(req.Config.Webhook)
	if err != nil {
		return nil, err
	}
	stored := req.Config
	stored.Webhook = nil // it has a place of its own, from which nothing reads it back
	effective, err := egress.Merged(tmpl.Spec.Network, req.Config.Network)
	if err == nil && effective != nil {
		stored.Network = new(openapi.SandboxNetworkPolicy)
		*stored.Network, err = egress.Wire(effective)
	}
	if err != nil {
		return nil, err
	}
	config, err := json.Marshal(stored)
	if err == nil {
		req.Mounts, err = mountsOf(tmpl, req.Mounts)
	}
	if err != nil {
		return nil, err
	}
	p := &plan{
		req: req, tmpl: tmpl, env: req.Config.EnvVars, cpuMillis: templates.CPUFor(memory), policy: effective,
		row: store.NewSandbox{
			TeamID: req.TeamID, UserID: req.UserID, TemplateID: tmpl.Row.TemplateID,
			Config: config, MemoryBytes: memory, TTLSeconds: ttl, HardTTLSeconds: hardTTL, Webhook: hook,
			Mounts: len(req.Mounts),
		},
	}
	if req.Key != "" {
		p.row.IdempotencyKey, p.row.RequestHash = req.Key, req.hash()
	}
	return p, nil
}

func (c *Claimer) webhook(w *openapi.WebhookConfig) (*store.NewWebhook, error) {
	if w == nil {
		return nil, nil
	}
	hook := &store.NewWebhook{URL: value(w.URL), Secret: store.Secret(value(w.Secret)), WatchDir: value(w.WatchDir)}
	if len(hook.WatchDir) > procapi.MaxWatchDir || strings.ContainsRune(hook.WatchDir, 0) {
		return nil, errdefs.New(errdefs.InvalidArgument, "config.webhook.watch_dir: want a path of at most %d bytes", procapi.MaxWatchDir)
	}
	var err error
	hook.Destination, err = c.cfg.Hooks.Check(hook.URL, hook.Secret)
	return hook, err
}

func value(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// hash identifies what was asked for, however it was spelled.
func (r *Request) hash() []byte {
	var snapshot *uuid.UUID
	if r.SnapshotID != uuid.Nil {
		snapshot = &r.SnapshotID
	}
	b, err := json.Marshal(struct {
		Template string
		Config   openapi.SandboxConfig
		Snapshot *uuid.UUID        `json:",omitempty"`
		Mounts   []store.MountWant `json:",omitempty"`
	}{r.Template, r.Config, snapshot, r.Mounts})
	if err != nil {
		panic("a decoded request must marshal: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return sum[:]
}

func (p *plan) sameRequest(hash []byte) bool { return bytes.Equal(p.row.RequestHash, hash) }

// CheckTTLs checks the two times to live of a sandbox, in seconds; 0 is none.
func CheckTTLs(ttl, hardTTL int32) error {
	if ttl < 0 || hardTTL < 0 {
		return errdefs.New(errdefs.InvalidArgument, "ttl and hard_ttl must not be negative")
	}
	if ttl > 0 && hardTTL > 0 && ttl > hardTTL {
		return errdefs.New(errdefs.InvalidArgument, "ttl must not be greater than hard_ttl")
	}
	return nil
}

// Memory reads the memory that a config asks for, otherwise when it asks for none.
func Memory(r *openapi.SandboxResources, otherwise int64) (int64, error) {
	if r == nil || r.Memory == nil {
		return otherwise, nil
	}
	n, err := quantity.Memory(*r.Memory)
	if err != nil {
		return 0, errdefs.New(errdefs.InvalidArgument, "resources.memory: %v", err)
	}
	if n < sandbox.MinMemoryBytes || n > sandbox.MaxMemoryBytes {
		return 0, errdefs.New(errdefs.InvalidArgument, "resources.memory: want 128Mi to 32Gi")
	}
	return n, nil
}
