package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/claim"
	"s0.run/api/internal/egress"
	"s0.run/api/internal/nodes"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/quantity"
	"s0.run/api/internal/services"
	"s0.run/api/internal/store"
	"s0.run/api/internal/templates"
	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
)

const (
	defaultPage = 50
	maxPage     = 200
	maxOffset   = 1_000_000
	maxKeyBytes = 128

	// silenceIsAnswer is how long a sandbox or its node may be silent before what the
	// row says is not shown as the truth any more: a daemon that restarts takes less.
	silenceIsAnswer = 10 * time.Second
)

// CreateSandbox implements POST /api/v1/sandboxes.
func (a *API) CreateSandbox(w http.ResponseWriter, r *http.Request, params openapi.CreateSandboxParams) {
	var req openapi.ClaimRequest
	err := decode(w, r, controlBytes, &req, "template")
	var sb store.Sandbox
	if err == nil {
		sb, err = a.claim(r, req, value(params.IdempotencyKey))
	}
	out := openapi.ClaimResponse{
		SandboxID: string(sb.ID), Status: openapi.SandboxState(sb.Status), PodName: string(sb.ID), Template: sb.TemplateID, ClusterID: new(sb.ID.Cluster()),
	}
	if err == nil && len(req.Mounts) > 0 {
		out.BootstrapMounts = a.bootstrapMounts(r, sb)
	}
	a.answer(w, r, http.StatusCreated, out, err)
}

func (a *API) claim(r *http.Request, req openapi.ClaimRequest, key string) (store.Sandbox, error) {
	if req.Template == "" {
		return store.Sandbox{}, errdefs.New(errdefs.InvalidArgument, "template is required")
	}
	name, err := templates.ParseID(req.Template)
	if err != nil {
		return store.Sandbox{}, errdefs.New(errdefs.NotFound, "template not found")
	}
	if err := checkClaim(req, key); err != nil {
		return store.Sandbox{}, err
	}
	config := value(req.Config)
	if err := normalize(&config.Services, &config.ExposedPorts); err != nil {
		return store.Sandbox{}, err
	}
	exposed := services.Config{Services: config.Services, ExposedPorts: config.ExposedPorts, AutoResume: config.AutoResume}
	if err := exposed.Check(); err != nil {
		return store.Sandbox{}, err
	}
	var snapshot uuid.UUID
	if id := value(req.SnapshotID); id != "" {
		if snapshot, err = snapshotID(id); err != nil {
			return store.Sandbox{}, err
		}
	}
	mounts, err := mountsOf(req.Mounts)
	if err != nil {
		return store.Sandbox{}, err
	}
	p := principalOf(r)
	return a.cfg.Claimer.Claim(r.Context(), claim.Request{
		TeamID: p.TeamID, UserID: p.UserID, Template: name, Config: config, Key: key, SnapshotID: snapshot, Mounts: mounts,
	})
}

// checkClaim refuses what this server does not serve: nothing that was asked for
// is left out silently.
func checkClaim(req openapi.ClaimRequest, key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	c := value(req.Config)
	return checkConfig(c.EnvVars)
}

func checkKey(key string) error {
	if len(key) > maxKeyBytes || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errdefs.New(errdefs.InvalidArgument, "Idempotency-Key must be printable ASCII of at most %d bytes", maxKeyBytes)
	}
	return nil
}

// checkConfig checks what claims and updates have in common.
func checkConfig(env map[string]string) error {
	if err := templates.CheckEnv(env); err != nil {
		return errdefs.New(errdefs.InvalidArgument, "config.env_vars: %v", err)
	}
	return nil
}

// ListSandboxes implements GET /api/v1/sandboxes.
func (a *API) ListSandboxes(w http.ResponseWriter, r *http.Request, params openapi.ListSandboxesParams) {
	f, err := filterOf(params)
	var list []store.Sandbox
	var total int
	if err == nil {
		list, total, err = a.cfg.Store.Sandboxes(r.Context(), principalOf(r).TeamID, f)
	}
	out := openapi.SandboxList{Sandboxes: []openapi.SandboxSummary{}, Count: total, HasMore: f.Offset+len(list) < total}
	for _, sb := range list {
		out.Sandboxes = append(out.Sandboxes, openapi.SandboxSummary{
			ID: string(sb.ID), TemplateID: sb.TemplateID, Status: openapi.SandboxState(sb.Status), Paused: sb.Status == sandbox.Paused, Unreachable: a.unreachable(sb),
			RuntimeGeneration: int64(sb.Generation), ClusterID: new(sb.ID.Cluster()),
			CreatedAt: sb.CreatedAt, ExpiresAt: timeOut(sb.ExpiresAt), HardExpiresAt: timeOut(sb.HardExpiresAt), UpdatedAt: sb.UpdatedAt,
		})
	}
	a.answer(w, r, http.StatusOK, out, err)
}

func filterOf(p openapi.ListSandboxesParams) (store.SandboxFilter, error) {
	f := store.SandboxFilter{Limit: defaultPage, Offset: value(p.Offset), TemplateID: value(p.TemplateID), Paused: p.Paused}
	if p.Limit != nil {
		f.Limit = *p.Limit
	}
	switch {
	case f.Limit < 1 || f.Limit > maxPage:
		return f, errdefs.New(errdefs.InvalidArgument, "limit must be 1 to %d", maxPage)
	case f.Offset < 0 || f.Offset > maxOffset:
		return f, errdefs.New(errdefs.InvalidArgument, "offset must be 0 to %d", maxOffset)
	case p.Status != nil && !p.Status.Valid():
		return f, errdefs.New(errdefs.InvalidArgument, "status is invalid")
	case !plain(f.TemplateID):
		return f, errdefs.New(errdefs.InvalidArgument, "template_id is invalid")
	}
	f.Status = sandbox.State(value(p.Status))
	return f, nil
}

// sandboxID is the gate for every id of a sandbox that a client names. One that
// can't be is answered like one that is not.
func sandboxID(id string) (sandbox.ID, error) {
	parsed, err := sandbox.ParseID(id)
	if err != nil {
		return "", errdefs.New(errdefs.NotFound, "sandbox not found")
	}
	return parsed, nil
}

// unreachable reports whether a sandbox's state can't be told, for it or its node has
// been silent: what is shown is true, or said to be unknown (R6). The contract has
// no such state. Whoever asks about one sandbox is answered 503 and may ask again;
// a list still has to name it, for its owner must be able to find and to delete
// it, and marks it. nil stands for false.
func (a *API) unreachable(sb store.Sandbox) *bool {
	if sb.Status != sandbox.Running || a.cfg.Table.SilenceOf(sb.Node, sb.ID) <= silenceIsAnswer {
		return nil
	}
	return new(true)
}

// sandbox reads a sandbox whose state can be told.
func (a *API) sandbox(r *http.Request, id string) (store.Sandbox, error) {
	parsed, err := sandboxID(id)
	if err != nil {
		return store.Sandbox{}, err
	}
	sb, err := a.cfg.Store.Sandbox(r.Context(), principalOf(r).TeamID, parsed)
	if err == nil && value(a.unreachable(sb)) {
		return store.Sandbox{}, nodes.ErrUnreachable
	}
	return sb, err
}

// GetSandbox implements GET /api/v1/sandboxes/{id}.
func (a *API) GetSandbox(w http.ResponseWriter, r *http.Request, id string) {
	sb, err := a.sandbox(r, id)
	out := a.sandboxOut(sb)
	if err == nil {
		out, err = a.withMounts(r.Context(), sb, out)
	}
	a.answer(w, r, http.StatusOK, out, err)
}

// GetSandboxStatus implements GET /api/v1/sandboxes/{id}/status.
func (a *API) GetSandboxStatus(w http.ResponseWriter, r *http.Request, id string) {
	sb, err := a.sandbox(r, id)
	a.answer(w, r, http.StatusOK, openapi.SandboxStatus{
		SandboxID: string(sb.ID), TemplateID: sb.TemplateID, TeamID: sb.TeamID.String(), UserID: new(sb.UserID.String()), PodName: string(sb.ID),
		Status: openapi.SandboxState(sb.Status), ClaimedAt: sb.ClaimedAt, CreatedAt: sb.CreatedAt,
		ExpiresAt: timeOut(sb.ExpiresAt), HardExpiresAt: timeOut(sb.HardExpiresAt),
	}, err)
}

// UpdateSandbox implements PUT /api/v1/sandboxes/{id}.
func (a *API) UpdateSandbox(w http.ResponseWriter, r *http.Request, id string) {
	var req openapi.UpdateSandboxRequest
	err := decode(w, r, controlBytes, &req, "config")
	c := req.Config
	if err == nil {
		err = checkConfig(c.EnvVars)
	}
	if err == nil {
		err = normalize(&c.Services, &c.ExposedPorts)
	}
	var sb store.Sandbox
	if err == nil {
		sb, err = a.updateConfig(r, id, func(row store.Sandbox) (_ openapi.SandboxUpdateConfig, err error) {
			change := c
			if c.Network != nil {
				change.Network, err = egress.Changed(row.Config, *c.Network)
			}
			if err == nil {
				err = a.checkTTL(r.Context(), row, c.TTL)
			}
			return change, err
		})
	}
	out := a.sandboxOut(sb)
	if err == nil {
		out, err = a.withMounts(r.Context(), sb, out)
	}
	a.answer(w, r, http.StatusOK, out, err)
}

// checkTTL holds a changed ttl against the greatest of the sandbox's template. One
// that is no more bounds nothing.
func (a *API) checkTTL(ctx context.Context, row store.Sandbox, ttl *int32) error {
	if ttl == nil {
		return nil
	}
	t, err := a.cfg.Catalog.Find(ctx, row.TeamID, row.TemplateID)
	if err != nil {
		if errdefs.Is(err, errdefs.NotFound) {
			return nil
		}
		return err
	}
	return t.CheckTTL(*ttl)
}

// RefreshSandbox implements POST /api/v1/sandboxes/{id}/refresh.
func (a *API) RefreshSandbox(w http.ResponseWriter, r *http.Request, id string) {
	var req openapi.RefreshRequest
	err := decodeOptional(w, r, &req)
	if err == nil && value(req.Duration) < 0 {
		err = errdefs.New(errdefs.InvalidArgument, "duration must not be negative")
	}
	var sb store.Sandbox
	if err == nil {
		sb, err = a.storedSandbox(r, id)
	}
	if err == nil {
		err = a.checkTTL(r.Context(), sb, req.Duration)
	}
	if err == nil {
		sb, err = a.cfg.Store.RefreshSandbox(r.Context(), sb.TeamID, sb.ID, req.Duration)
	}
	a.answer(w, r, http.StatusOK, openapi.RefreshResponse{
		SandboxID: string(sb.ID), ExpiresAt: timeOut(sb.ExpiresAt), HardExpiresAt: timeOut(sb.HardExpiresAt),
	}, err)
}

// DeleteSandbox implements DELETE /api/v1/sandboxes/{id}.
func (a *API) DeleteSandbox(w http.ResponseWriter, r *http.Request, id string) {
	parsed, err := sandboxID(id)
	if err == nil {
		err = a.cfg.Lifecycle.Delete(r.Context(), principalOf(r).TeamID, parsed)
		a.cfg.Exposure.Changed(parsed)
	}
	a.answer(w, r, http.StatusOK, openapi.Message{Message: "sandbox terminated successfully"}, err)
}

func (a *API) sandboxOut(sb store.Sandbox) openapi.Sandbox {
	exposed, _ := services.Stored(sb.Config) // was read before it was stored; a zero row has none
	out := openapi.Sandbox{
		ID: string(sb.ID), TemplateID: sb.TemplateID, TeamID: sb.TeamID.String(), UserID: new(sb.UserID.String()),
		Status: openapi.SandboxState(sb.Status), Paused: sb.Status == sandbox.Paused, AutoResume: autoResume(sb.Config),
		Services: exposed.Views(sb.ID, a.cfg.Domain), ExposedPorts: exposed.PortViews(sb.ID, a.cfg.Domain),
		Resources: &openapi.SandboxResources{Memory: new(quantity.FormatMemory(sb.MemoryBytes))},
		PodName:   string(sb.ID), RuntimeGeneration: int64(sb.Generation),
		ExpiresAt: timeOut(sb.ExpiresAt), HardExpiresAt: timeOut(sb.HardExpiresAt),
		ClaimedAt: sb.ClaimedAt, CreatedAt: sb.CreatedAt, UpdatedAt: sb.UpdatedAt,
	}
	return out
}

// autoResume reads the stored config; it is on unless it was turned off.
func autoResume(config json.RawMessage) bool {
	var c openapi.SandboxConfig
	return json.Unmarshal(config, &c) != nil || c.AutoResume == nil || *c.AutoResume
}
