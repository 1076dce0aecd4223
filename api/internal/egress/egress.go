// Package egress is the API server's part of what sandboxes may reach and with
// whose credentials: policies between the contract's words, package policy and the
// node API, and credential sources from the moment they are told.
//
// A sandbox's effective policy lies in its row's config; its template's default was
// merged when it was claimed. A source's secret is checked, sealed to netd's public
// key and gone: what is stored no API server can open. Nodes get what their
// sandboxes' bindings name with the policy, and newer versions as [Keeper.Run] finds
// them, at once when the database tells and every few seconds otherwise. Rows say
// what is still to be told, so that any server finishes what another began.
package egress

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/nodes"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/placement"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/policy"
	"s0.run/internal/sandbox"
	"s0.run/internal/sealed"
)

const (
	pollInterval = 2 * time.Second // a rotation is felt in 5 s, although nobody was told
	passTimeout  = 5 * time.Second // of one look for what is to be told
	tellTimeout  = 5 * time.Second // of one node's call
	pageSize     = 512
	maxPending   = 1 << 16 // of one look; the next finds the rest
	perNode      = 4       // calls to one node at once
)

// Config names what a Keeper needs.
type Config struct {
	Store *store.Store
	Nodes *nodes.Set
	Table *placement.Table
	Key   *sealed.PublicKey // nil: there are no credential sources
	Log   *slog.Logger
}

// Keeper knows policies and credentials. It is safe for concurrent use.
type Keeper struct {
	cfg  Config
	kick chan struct{}
}

// New makes a Keeper.
func New(cfg Config) *Keeper { return &Keeper{cfg: cfg, kick: make(chan struct{}, 1)} }

// ErrUnavailable answers who asks for a policy where nothing would enforce it.
var ErrUnavailable = errdefs.New(errdefs.Unavailable, "network policy is unavailable in this deployment")

// Read reads a policy of the contract's and says what is wrong with it.
func Read(wire openapi.SandboxNetworkPolicy) (*policy.Policy, error) {
	p, err := plain(wire)
	if err == nil {
		err = p.Validate()
	}
	if err != nil {
		return nil, invalid(err)
	}
	return p, nil
}

// plain is Read without validation.
func plain(wire openapi.SandboxNetworkPolicy) (*policy.Policy, error) {
	data, err := json.Marshal(wire)
	if err != nil {
		return nil, err
	}
	return policy.Parse(data)
}

func invalid(err error) error { return errdefs.New(errdefs.InvalidArgument, "network: %v", err) }

// Wire is a policy in the contract's words, as it can be put again.
func Wire(p *policy.Policy) (out openapi.SandboxNetworkPolicy, _ error) {
	data, err := p.JSON()
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if out.CredentialBindings == nil {
		out.CredentialBindings = []openapi.CredentialBinding{}
	}
	return out, err
}

// Stored is the policy in a row's config; the default where it has none.
func Stored(config json.RawMessage) (*policy.Policy, error) {
	var c struct {
		Network json.RawMessage `json:"network"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, err
	}
	if len(c.Network) == 0 || string(c.Network) == "null" {
		return policy.Default(), nil
	}
	return policy.Parse(c.Network)
}

// Merged lays a claim's policy over its template's; nil when neither has one.
func Merged(template, claim *openapi.SandboxNetworkPolicy) (*policy.Policy, error) {
	var read [2]*policy.Policy
	for i, wire := range []*openapi.SandboxNetworkPolicy{template, claim} {
		if wire == nil {
			continue
		}
		p, err := plain(*wire)
		if err != nil {
			return nil, invalid(err)
		}
		read[i] = p
	}
	merged := policy.Merge(read[0], read[1])
	if merged == nil {
		return nil, nil
	}
	if err := merged.Validate(); err != nil {
		return nil, invalid(err)
	}
	return merged, nil
}

// Changed is what a sandbox's policy becomes: bindings that are not told stay.
func Changed(config json.RawMessage, change openapi.SandboxNetworkPolicy) (*openapi.SandboxNetworkPolicy, error) {
	p, err := plain(change)
	if err != nil {
		return nil, invalid(err)
	}
	if p.CredentialBindings == nil {
		old, err := Stored(config)
		if err != nil {
			return nil, err
		}
		p.CredentialBindings = old.CredentialBindings
	}
	if err := p.Validate(); err != nil {
		return nil, invalid(err)
	}
	out, err := Wire(p)
	return &out, err
}

// Enforced reports whether every node that is known enforces policies.
func (k *Keeper) Enforced() bool {
	all := k.cfg.Table.Synced()
	return len(all) > 0 && !slices.ContainsFunc(all, func(n placement.Node) bool { return !n.NetworkPolicy })
}

// Message is what a node is told of a sandbox's policy. A binding whose source is
// not there makes it invalid.
func (k *Keeper) Message(ctx context.Context, team uuid.UUID, p *policy.Policy) (*nodeapi.Network, error) {
	if !k.Enforced() {
		return nil, ErrUnavailable
	}
	data, err := p.JSON()
	if err != nil {
		return nil, err
	}
	msg := &nodeapi.Network{Policy: data}
	if len(p.CredentialBindings) == 0 {
		return msg, nil
	}
	names := make([]string, 0, len(p.CredentialBindings))
	for _, b := range p.CredentialBindings {
		names = append(names, b.SourceRef)
	}
	list, err := k.cfg.Store.SealedCredentials(ctx, team, names)
	if err != nil {
		return nil, err
	}
	if err := fits(p, list); err != nil {
		return nil, err
	}
	msg.Credentials = nodeapi.CredentialsToWire(list)
	return msg, nil
}

// projections are, for each kind of source, how it may appear.
var projections = map[string][]string{
	policy.StaticHeaders:  {policy.HTTPHeaders, policy.Placeholder},
	policy.StaticTLS:      {policy.TLSClientCert},
	policy.StaticUserPass: {policy.UsernamePassword, policy.HTTPHeaders, policy.Placeholder},
	policy.StaticSSH:      {policy.SSHProxy},
}

// fits holds bindings against the kinds of their sources.
func fits(p *policy.Policy, list []sealed.Credential) error {
	for i, b := range p.CredentialBindings {
		at := slices.IndexFunc(list, func(c sealed.Credential) bool { return c.Source == b.SourceRef })
		if at < 0 {
			return errdefs.New(errdefs.InvalidArgument, "network: credentialBindings[%d].sourceRef names no credential source", i)
		}
		if kind := list[at].Kind; !slices.Contains(projections[kind], b.Projection.Type) {
			return errdefs.New(errdefs.InvalidArgument, "network: credentialBindings[%d]: a source of kind %s has no projection %s", i, kind, b.Projection.Type)
		}
	}
	return nil
}

// Kick has Run look at once.
func (k *Keeper) Kick() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// Run tells nodes of newer credentials until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	t := &tellers{tell: k.tell, log: k.cfg.Log, ctx: ctx, busy: map[string]bool{}}
	defer t.wg.Wait()
	for {
		if err := k.pass(ctx, t); err != nil && ctx.Err() == nil {
			k.cfg.Log.Warn("could not look for newer credentials; trying again", "err", err)
		}
		select {
		case <-k.kick:
		case <-poll.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// pass goes once over what is to be told.
func (k *Keeper) pass(ctx context.Context, t *tellers) error {
	ctx, cancel := context.WithTimeout(ctx, passTimeout)
	defer cancel()
	var all []store.BoundSandbox
	for {
		after := sandbox.ID("")
		if len(all) > 0 {
			after = all[len(all)-1].ID
		}
		page, err := k.cfg.Store.PendingCredentials(ctx, after, pageSize)
		if err != nil {
			return err
		}
		all = append(all, page...)
		if len(page) < pageSize || len(all) >= maxPending {
			t.begin(all)
			return nil
		}
	}
}

func (k *Keeper) tell(ctx context.Context, sb store.BoundSandbox) error {
	rpc, err := k.cfg.Nodes.RPC(sb.Node)
	if err != nil {
		return err
	}
	list, err := k.cfg.Store.CredentialsOf(ctx, sb.TeamID, sb.ID)
	if err != nil {
		return err
	}
	calling, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	_, err = rpc.Update(calling, &nodeapi.UpdateRequest{Id: string(sb.ID), Network: &nodeapi.Network{Credentials: nodeapi.CredentialsToWire(list)}})
	if err != nil {
		return err
	}
	return k.cfg.Store.CredentialsTold(ctx, sb.TeamID, sb.ID, list)
}
