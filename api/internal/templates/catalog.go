package templates

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"

	"github.com/google/uuid"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

// envAppDomain is the variable that names the domain of a sandbox's services.
const envAppDomain = "SANDBOX0_APP_DOMAIN"

// Catalog is every template of every team, in memory.
type Catalog struct {
	store     *store.Store
	appDomain string
	log       *slog.Logger

	loading sync.Mutex // one load at a time, so that an older one never wins

	mu    sync.RWMutex
	all   []*Template
	names map[name]*Template
}

type name struct {
	team uuid.UUID // uuid.Nil: public
	id   string
}

// NewCatalog makes an empty catalogue; Load fills it. Every sandbox is told
// appDomain, the domain under which its services are reached.
func NewCatalog(s *store.Store, appDomain string, log *slog.Logger) *Catalog {
	return &Catalog{store: s, appDomain: appDomain, log: log, names: map[name]*Template{}}
}

// Load reads every template. When it fails, the catalogue stays as it was.
func (c *Catalog) Load(ctx context.Context) error {
	c.loading.Lock()
	defer c.loading.Unlock()
	rows, err := c.store.AllTemplates(ctx)
	if err != nil {
		return err
	}
	all := make([]*Template, 0, len(rows))
	names := make(map[name]*Template, len(rows))
	for _, row := range rows {
		t, err := c.Decode(row)
		if err != nil { // of a newer version, perhaps: its own replicas serve it
			c.log.Error("leaving out a template that can't be read", "err", err)
			continue
		}
		all = append(all, t)
		names[nameOf(row)] = t
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all, c.names = all, names
	return nil
}

// Decode reads a row whose spec was checked when it was stored.
func (c *Catalog) Decode(row store.Template) (*Template, error) {
	t := &Template{Row: row}
	if err := json.Unmarshal(row.Spec, &t.Spec); err != nil {
		return nil, fmt.Errorf("template %s: %w", row.ID, err)
	}
	slot, err := slotSpec(&t.Spec)
	if err != nil {
		return nil, fmt.Errorf("template %s: %w", row.ID, err)
	}
	// What every sandbox is told belongs to the slot: told at the claim, it would
	// cost each claim a round trip into the sandbox.
	slot.Env[envAppDomain] = c.appDomain
	if image := t.PinnedImage(); image != nil {
		slot.Image = *image
	}
	t.Slot = slot
	t.PoolKey = poolKey(row.ID, slot)
	t.Unavailable = unavailable(t)
	if p := t.Spec.Pool; p != nil && t.Unavailable == nil {
		t.MinIdle, t.MaxIdle = p.MinIdle, p.MaxIdle
	}
	return t, nil
}

// unavailable says why nothing can be made from a template.
func unavailable(t *Template) *errdefs.Error {
	c := t.Row.Capture
	switch {
	case t.Row.Unavailable != "":
		return errdefs.New(errdefs.Unavailable, "%s", t.Row.Unavailable)
	case c != nil && c.State == store.CaptureCreating:
		return errdefs.New(errdefs.Conflict, "template %s is still being made from sandbox %s", t.Row.TemplateID, c.SandboxID)
	case c != nil && c.State == store.CaptureFailed:
		return errdefs.New(errdefs.Conflict, "template %s could not be made from sandbox %s: %s", t.Row.TemplateID, c.SandboxID, c.Message)
	}
	return nil
}

func nameOf(row store.Template) name {
	n := name{id: row.TemplateID}
	if row.TeamID != nil {
		n.team = *row.TeamID
	}
	return n
}

// All lists every template, for the pools.
func (c *Catalog) All() []*Template {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.all
}

// Find gives the template that a team means by a name. A name that is not in
// memory may be a minute-old template of another replica: the store is asked.
func (c *Catalog) Find(ctx context.Context, team uuid.UUID, id string) (*Template, error) {
	c.mu.RLock()
	t := c.names[name{team, id}]
	if t == nil {
		t = c.names[name{uuid.Nil, id}]
	}
	c.mu.RUnlock()
	if t != nil {
		return t, nil
	}
	row, err := c.store.Template(ctx, team, id)
	if err != nil {
		return nil, err
	}
	return c.Decode(row)
}
