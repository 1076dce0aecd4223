// Package capture makes templates from sandboxes: what a sandbox has changed in
// its root filesystem becomes a layer over the image that it was started from, the
// image is pushed below the team's prefix, and the template names it by digest.
//
// A template is stored first, in a state from which nothing can be made, and its
// work goes on behind the answer: capturing while the node reads the sandbox,
// publishing while the image is pushed, reconciling while the template is changed.
// The server that began a capture renews its lease; when that server ends, the
// capture has failed, and so have those that Close interrupts. The package owns its
// captures' goroutines and keeps nothing else.
package capture

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/images"
	"s0.run/api/internal/nodes"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/store"
	"s0.run/api/internal/templates"
	"s0.run/internal/errdefs"
	"s0.run/internal/imageref"
	"s0.run/internal/sandbox"
)

const (
	// captureTimeout bounds a whole capture; the registry's credential lives longer.
	captureTimeout = 9 * time.Minute
	// A lease lasts some renewals, so that one that the database missed is no end.
	lease, renewal = time.Minute, 15 * time.Second
	// endTimeout bounds the word that a capture has failed.
	endTimeout = 10 * time.Second
	// atOnce bounds captures of one server: each compresses a layer.
	atOnce = 2
)

// Registry says where images of a team go, and with which credential.
type Registry interface {
	ServerCredentials(ctx context.Context, team uuid.UUID) (c images.Credentials, prefix string, err error)
}

// Config names what a capture works with. Every field is required.
type Config struct {
	Store    *store.Store
	Catalog  *templates.Catalog
	Nodes    *nodes.Set
	Registry Registry
	// Trusted are the registries for which the operator vouches. Others are reached
	// at addresses of the public internet alone.
	Trusted imageref.Registries
	Changed func(context.Context) // called after a template's state changed
	Log     *slog.Logger
}

// Capturer is safe for concurrent use.
type Capturer struct {
	cfg  Config
	ctx  context.Context // of all captures
	stop context.CancelFunc
	work sync.WaitGroup
	busy chan struct{}

	public http.RoundTripper // to registries that are nobody's here
}

// New makes a Capturer.
func New(cfg Config) *Capturer {
	c := &Capturer{cfg: cfg, busy: make(chan struct{}, atOnce), public: publicOnly()}
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c
}

// Close ends all captures and waits until it is known that they failed.
func (c *Capturer) Close() {
	c.stop()
	c.work.Wait()
}

// Request is a template as its author asked for it.
type Request struct {
	TeamID, UserID uuid.UUID
	TemplateID     string
	SandboxID      sandbox.ID
	Overrides      openapi.TemplateFromSandboxOverrides
	Rules          templates.Rules
}

// Begin stores the template and begins to make its image.
func (c *Capturer) Begin(ctx context.Context, req Request) (store.Template, error) {
	sb, err := c.source(ctx, req)
	if err != nil {
		return store.Template{}, err
	}
	spec, err := c.spec(ctx, req, sb)
	if err != nil {
		return store.Template{}, err
	}
	_, prefix, err := c.cfg.Registry.ServerCredentials(ctx, req.TeamID) // it must have a registry
	if err != nil {
		return store.Template{}, err
	}
	select {
	case c.busy <- struct{}{}:
	default:
		return store.Template{}, errdefs.New(errdefs.Exhausted, "too many templates are being made from sandboxes").WithRetryAfter(renewal)
	}
	row, err := c.cfg.Store.BeginCapture(ctx, store.NewCapture{
		TeamID: req.TeamID, UserID: req.UserID, TemplateID: req.TemplateID, SandboxID: string(sb.ID), Spec: spec, Lease: lease,
	})
	if err != nil {
		<-c.busy
		return row, err
	}
	c.work.Go(func() {
		defer func() { <-c.busy }()
		c.run(&job{Capturer: c, template: row, sandbox: sb, prefix: prefix, stage: store.StageCapturing})
	})
	return row, nil
}

// source is the sandbox, which must run.
func (c *Capturer) source(ctx context.Context, req Request) (store.Sandbox, error) {
	sb, err := c.cfg.Store.Sandbox(ctx, req.TeamID, req.SandboxID)
	if err == nil && sb.Status != sandbox.Running {
		err = errdefs.New(errdefs.Conflict, "sandbox %s is not running", sb.ID)
	}
	return sb, err
}

// spec is that of the sandbox's template, with what the author wants otherwise.
// Slots are kept only when he asks for them.
func (c *Capturer) spec(ctx context.Context, req Request, sb store.Sandbox) (json.RawMessage, error) {
	source, err := c.cfg.Catalog.Find(ctx, req.TeamID, sb.TemplateID)
	if errdefs.Is(err, errdefs.NotFound) {
		return nil, errdefs.New(errdefs.Conflict, "the template of sandbox %s is gone, and with it the spec for another", sb.ID)
	}
	if err != nil {
		return nil, err
	}
	if source.Slot.RuntimeClass != sandbox.GVisor {
		return nil, errdefs.New(errdefs.InvalidArgument, "a template can be made from a sandbox of runtime class gvisor alone")
	}
	spec, o := templates.Shown(source.Spec), req.Overrides
	spec.Pool = &openapi.PoolSpec{}
	if o.Pool != nil {
		spec.Pool = o.Pool
	}
	if o.Description != nil {
		spec.Description = o.Description
	}
	if o.DisplayName != nil {
		spec.DisplayName = o.DisplayName
	}
	if o.Tags != nil {
		spec.Tags = o.Tags
	}
	if err := req.Rules.Validate(&spec); err != nil {
		return nil, err
	}
	return json.Marshal(spec)
}

// run makes one template's image and says how that went.
func (c *Capturer) run(j *job) {
	log := c.cfg.Log.With("template", j.template.ID, "sandbox", j.sandbox.ID, "team", j.sandbox.TeamID)
	ctx, cancel := context.WithTimeout(c.ctx, captureTimeout)
	defer cancel()
	ctx, give := context.WithCancelCause(ctx)
	defer give(nil)
	renewed := make(chan struct{})
	go func() {
		defer close(renewed)
		j.renew(ctx, give)
	}()
	image, err := j.capture(ctx)
	if err == nil {
		err = j.enter(ctx, store.StageReconciling)
	}
	if err == nil {
		err = c.cfg.Store.FinishCapture(ctx, j.template.ID, image)
	}
	give(nil)
	<-renewed
	ended, done := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer done()
	if err != nil {
		log.Warn("a template could not be made from a sandbox", "err", err, "cause", context.Cause(ctx))
		if err := c.cfg.Store.FailCapture(ended, j.template.ID, reason(ctx, err)); err != nil {
			log.Warn("could not say so; its lease will", "err", err)
		}
	} else {
		log.Info("made a template from a sandbox", "image", image)
	}
	c.cfg.Changed(ended)
}

// reason is what a tenant is told of an error.
func reason(ctx context.Context, err error) string {
	switch e := errdefs.From(err); {
	case e.Kind != errdefs.Internal:
		return e.Message
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return "it took too long"
	}
	return "internal error"
}
