package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"s0.run/api/internal/claim"
	"s0.run/api/internal/egress"
	"s0.run/api/internal/nodes"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/services"
	"s0.run/api/internal/store"
	"s0.run/api/internal/templates"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
)

// updateAttempts bounds how often an update starts over because the row changed
// under it.
const updateAttempts = 3

// Change changes a sandbox's config into what change makes of its row, which is
// asked again when the row has changed meanwhile. The node is told first: what it
// refuses is not stored. Both are told the whole new value, so that repeating a
// change that failed half way makes it whole.
func (k *Keeper) Change(
	ctx context.Context, team uuid.UUID, id sandbox.ID, change func(store.Sandbox) (openapi.SandboxUpdateConfig, error),
) (store.Sandbox, error) {
	for range updateAttempts {
		row, err := k.cfg.Store.Sandbox(ctx, team, id)
		if err != nil {
			return store.Sandbox{}, err
		}
		c, err := change(row)
		if err != nil {
			return store.Sandbox{}, err
		}
		patch, err := json.Marshal(c)
		if err != nil {
			return store.Sandbox{}, err
		}
		u := store.SandboxUpdate{Config: patch, TTL: c.TTL, HardTTL: c.HardTTL}
		if err := checkUpdate(row, c, &u); err != nil {
			return store.Sandbox{}, err
		}
		if err := k.updateAtNode(ctx, row, c, u.MemoryBytes); err != nil {
			return store.Sandbox{}, err
		}
		updated, err := k.cfg.Store.UpdateSandbox(ctx, team, row, u)
		if errdefs.Is(err, errdefs.Exhausted) && u.MemoryBytes != nil {
			k.takeMemoryBack(ctx, row)
		}
		if !errors.Is(err, store.ErrChanged) {
			return updated, err
		}
	}
	return store.Sandbox{}, errdefs.New(errdefs.Conflict, "the sandbox is being changed by others")
}

func checkUpdate(row store.Sandbox, c openapi.SandboxUpdateConfig, u *store.SandboxUpdate) error {
	if row.Status != sandbox.Running && row.Status != sandbox.Paused {
		return errdefs.New(errdefs.Conflict, "the sandbox is %s", row.Status)
	}
	ttl, hardTTL := row.TTLSeconds, row.HardTTLSeconds
	if c.TTL != nil {
		ttl = *c.TTL
	}
	if c.HardTTL != nil {
		hardTTL = *c.HardTTL
	}
	if err := claim.CheckTTLs(ttl, hardTTL); err != nil {
		return err
	}
	exposed, err := services.Stored(row.Config)
	if err == nil {
		err = exposed.With(c).Check()
	}
	if err != nil || c.Resources == nil || c.Resources.Memory == nil {
		return err
	}
	memory, err := claim.Memory(c.Resources, row.MemoryBytes)
	u.MemoryBytes = &memory
	return err
}

func (k *Keeper) updateAtNode(ctx context.Context, row store.Sandbox, c openapi.SandboxUpdateConfig, memory *int64) error {
	if c.EnvVars == nil && memory == nil && c.Network == nil {
		return nil
	}
	rpc, err := k.cfg.Nodes.RPC(row.Node)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req := &nodeapi.UpdateRequest{Id: string(row.ID), Generation: uint64(row.Generation)}
	if c.EnvVars != nil {
		req.ReplaceEnv, req.Env = true, c.EnvVars
	}
	if c.Network != nil {
		if req.Network, err = k.networkMessage(ctx, row, *c.Network); err != nil {
			return err
		}
	}
	if memory != nil {
		req.MemoryBytes, req.CpuMillis = *memory, templates.CPUFor(*memory)
	}
	_, err = rpc.Update(ctx, req)
	k.catchUp(ctx, row, err)
	return updateError(err)
}

func (k *Keeper) networkMessage(ctx context.Context, row store.Sandbox, wire openapi.SandboxNetworkPolicy) (*nodeapi.Network, error) {
	p, err := egress.Read(wire)
	if err != nil {
		return nil, err
	}
	return k.cfg.Network.Message(ctx, row.TeamID, p)
}

// takeMemoryBack gives a sandbox at its node the memory that its row says, after a
// quota has refused more.
func (k *Keeper) takeMemoryBack(ctx context.Context, row store.Sandbox) {
	err := k.updateAtNode(context.WithoutCancel(ctx), row, openapi.SandboxUpdateConfig{}, &row.MemoryBytes)
	if err != nil {
		k.cfg.Log.Warn("a sandbox has more memory than its row says until it is changed again",
			"sandbox", row.ID, "gen", row.Generation, "team", row.TeamID, "err", err)
	}
}

// updateError says what a tenant may know of a node's refusal.
func updateError(err error) error {
	if err == nil {
		return nil
	}
	if stale(err) {
		return errdefs.New(errdefs.Unavailable, "the sandbox is being paused, resumed or restored").WithRetryAfter(time.Second).WithCause(err)
	}
	switch connect.CodeOf(err) {
	case connect.CodeFailedPrecondition, connect.CodeAborted, connect.CodeNotFound:
		return errdefs.New(errdefs.Conflict, "the sandbox can't be changed like this in its present state").WithCause(err)
	case connect.CodeInvalidArgument:
		return errdefs.New(errdefs.InvalidArgument, "the sandbox's node refuses this config").WithCause(err)
	}
	return nodes.ErrUnreachable.WithCause(err)
}
