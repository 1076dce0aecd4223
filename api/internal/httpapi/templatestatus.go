package httpapi

import (
	"time"

	"s0.run/api/internal/openapi"
	"s0.run/api/internal/placement"
	"s0.run/api/internal/templates"
)

// templateStatus sums up what the nodes say of the template's pools.
func (a *API) templateStatus(t *templates.Template) *openapi.TemplateStatus {
	idle, active := int32(a.cfg.Table.Idle(t.PoolKey)), int32(a.cfg.Table.Claimed(t.OfPool))
	present := a.cfg.Table.Pools(func(key string) bool { return key == t.PoolKey })
	updated := t.Row.UpdatedAt
	if present.At.After(updated) {
		updated = present.At
	}
	return &openapi.TemplateStatus{
		Image: t.PinnedImage(), IdleCount: &idle, ActiveCount: &active, LastUpdateTime: &updated,
		Conditions: []openapi.TemplateCondition{a.poolReady(t, idle, present)}, Creation: creationOut(t.Row.Capture),
	}
}

// poolReady says whether the template keeps the slots that it should, and if not,
// why: as far as that is the template's doing.
func (a *API) poolReady(t *templates.Template, idle int32, present placement.Pool) openapi.TemplateCondition {
	c := openapi.TemplateCondition{Type: "PoolReady", Status: "True"}
	since := present.Since
	switch {
	case t.Unavailable != nil:
		c.Status, c.Reason, c.Message, since = "False", new("Unavailable"), &t.Unavailable.Message, t.Row.UpdatedAt
	case !a.cfg.Table.Offers(t.Slot.RuntimeClass):
		c.Status, c.Reason, c.Message, since = "Unknown", new("NoNode"), new("no node that offers the template's runtime class can be asked"), time.Time{}
	case present.LastError != "":
		c.Status, c.Reason, c.Message = "False", new("WarmUpFailed"), new("a sandbox of this template could not be started")
	case idle < t.MinIdle:
		c.Status, c.Reason = "False", new("Warming")
	}
	if t.Unavailable == nil && c.Status == "False" && present.Message != "" {
		c.Message = &present.Message
	}
	if !since.IsZero() {
		c.LastTransitionTime = &since
	}
	return c
}
