package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
)

// ListTemplates lists the team's own and the public templates.
func (c *Client) ListTemplates(ctx context.Context) (*TemplateList, error) {
	return do[TemplateList](ctx, c, call{method: http.MethodGet, path: templatePath()})
}

// CreateTemplate creates a template of the team's.
func (c *Client) CreateTemplate(ctx context.Context, id string, spec TemplateSpec) (*Template, error) {
	body := CreateTemplateRequest{TemplateID: id, Spec: spec}
	return do[Template](ctx, c, call{method: http.MethodPost, path: templatePath(), body: body})
}

// CreateTemplateFromSandbox begins to make a template from a running sandbox. Its
// status says how that goes.
func (c *Client) CreateTemplateFromSandbox(ctx context.Context, req TemplateFromSandboxRequest) (*Template, error) {
	return do[Template](ctx, c, call{method: http.MethodPost, path: templatePath("from-sandbox"), body: req})
}

// GetTemplate returns a template; the team's own goes before a public one.
func (c *Client) GetTemplate(ctx context.Context, id string) (*Template, error) {
	return do[Template](ctx, c, call{method: http.MethodGet, path: templatePath(id)})
}

// UpdateTemplate replaces a template's spec.
func (c *Client) UpdateTemplate(ctx context.Context, id string, spec TemplateSpec) (*Template, error) {
	body := UpdateTemplateRequest{Spec: spec}
	return do[Template](ctx, c, call{method: http.MethodPut, path: templatePath(id), body: body})
}

// DeleteTemplate deletes a template; its sandboxes keep running.
func (c *Client) DeleteTemplate(ctx context.Context, id string) (*DeletedTemplate, error) {
	return do[DeletedTemplate](ctx, c, call{method: http.MethodDelete, path: templatePath(id)})
}

// CreateSandbox claims a sandbox; it serves when the call returns. When the
// connection is lost on the way, the sandbox may exist all the same: callers who
// repeat claims use [Client.CreateSandboxOnce].
func (c *Client) CreateSandbox(ctx context.Context, req ClaimRequest) (*ClaimResponse, error) {
	return do[ClaimResponse](ctx, c, call{method: http.MethodPost, path: sandboxPath(), body: req})
}

// CreateSandboxOnce claims one sandbox, however often it is called with the same
// key and request. It takes a little longer than CreateSandbox.
func (c *Client) CreateSandboxOnce(ctx context.Context, key string, req ClaimRequest) (*ClaimResponse, error) {
	header := http.Header{"Idempotency-Key": {key}}
	return do[ClaimResponse](ctx, c, call{method: http.MethodPost, path: sandboxPath(), header: header, body: req})
}

// ListSandboxesOptions chooses what ListSandboxes returns. The zero value is the
// first page of all sandboxes.
type ListSandboxesOptions struct {
	Status     SandboxState // defaults to any
	TemplateID string       // defaults to any
	Paused     *bool        // defaults to any
	Limit      int          // 1 to 200; defaults to the server's page size
	Offset     int
}

// ListSandboxes lists the team's sandboxes, newest first.
func (c *Client) ListSandboxes(ctx context.Context, opts ListSandboxesOptions) (*SandboxList, error) {
	return do[SandboxList](ctx, c, call{method: http.MethodGet, path: sandboxPath(), query: opts.query()})
}

func (o ListSandboxesOptions) query() url.Values {
	q := url.Values{}
	if o.Status != "" {
		q.Set("status", string(o.Status))
	}
	if o.TemplateID != "" {
		q.Set("template_id", o.TemplateID)
	}
	if o.Paused != nil {
		q.Set("paused", strconv.FormatBool(*o.Paused))
	}
	if o.Limit != 0 {
		q.Set("limit", strconv.Itoa(o.Limit))
	}
	if o.Offset != 0 {
		q.Set("offset", strconv.Itoa(o.Offset))
	}
	return q
}

// GetSandbox returns a sandbox.
func (c *Client) GetSandbox(ctx context.Context, id string) (*Sandbox, error) {
	return do[Sandbox](ctx, c, call{method: http.MethodGet, path: sandboxPath(id)})
}

// GetSandboxStatus returns a sandbox's status in brief.
func (c *Client) GetSandboxStatus(ctx context.Context, id string) (*SandboxStatus, error) {
	return do[SandboxStatus](ctx, c, call{method: http.MethodGet, path: sandboxPath(id, "status")})
}

// UpdateSandbox changes those settings that the config carries.
func (c *Client) UpdateSandbox(ctx context.Context, id string, config SandboxUpdateConfig) (*Sandbox, error) {
	body := UpdateSandboxRequest{Config: config}
	return do[Sandbox](ctx, c, call{method: http.MethodPut, path: sandboxPath(id), body: body})
}

// RefreshSandbox starts the sandbox's ttl and hard_ttl again from now. A nil
// duration keeps the sandbox's own; it is in seconds.
func (c *Client) RefreshSandbox(ctx context.Context, id string, duration *int32) (*RefreshResponse, error) {
	body := RefreshRequest{Duration: duration}
	return do[RefreshResponse](ctx, c, call{method: http.MethodPost, path: sandboxPath(id, "refresh"), body: body})
}

// PauseSandbox saves the sandbox with everything in it, and returns when that is
// durable. A sandbox with much memory takes long.
func (c *Client) PauseSandbox(ctx context.Context, id string) (*PauseResponse, error) {
	return do[PauseResponse](ctx, c, call{method: http.MethodPost, path: sandboxPath(id, "pause")})
}

// PauseSandboxFiles saves the sandbox's files alone; its next life starts from them, with
// the same contexts.
func (c *Client) PauseSandboxFiles(ctx context.Context, id string) (*PauseResponse, error) {
	return do[PauseResponse](ctx, c, call{method: http.MethodPost, path: sandboxPath(id, "pause"), body: PauseRequest{Memory: new(bool)}})
}

// ResumeSandbox lets a paused sandbox run again, and returns when it serves.
func (c *Client) ResumeSandbox(ctx context.Context, id string) (*ResumeResponse, error) {
	return do[ResumeResponse](ctx, c, call{method: http.MethodPost, path: sandboxPath(id, "resume")})
}

// ForkSandbox makes paused sandboxes that are what this one is now. Without a call's key
// it may be made twice if it is sent twice: see [Client.ForkSandboxOnce].
func (c *Client) ForkSandbox(ctx context.Context, id string, req ForkRequest) (*ForkResponse, error) {
	return do[ForkResponse](ctx, c, call{method: http.MethodPost, path: sandboxPath(id, "fork"), body: req})
}

// ForkSandboxOnce is ForkSandbox that may be repeated with the same key: it answers the
// same children.
func (c *Client) ForkSandboxOnce(ctx context.Context, id, key string, req ForkRequest) (*ForkResponse, error) {
	header := http.Header{"Idempotency-Key": {key}}
	return do[ForkResponse](ctx, c, call{method: http.MethodPost, path: sandboxPath(id, "fork"), body: req, header: header})
}

// DeleteSandbox terminates a sandbox and deletes its state.
func (c *Client) DeleteSandbox(ctx context.Context, id string) error {
	return exec(ctx, c, call{method: http.MethodDelete, path: sandboxPath(id)})
}

func templatePath(rest ...string) string {
	return "/api/v1/templates" + escape(rest...)
}

func sandboxPath(rest ...string) string {
	return "/api/v1/sandboxes" + escape(rest...)
}
