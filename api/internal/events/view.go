package events

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/ndjson"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
)

const (
	defaultPage, maxPage = 100, 1000
	maxFilterBytes       = 256

	// lookEvery is how soon a watcher sees an event of which there is no hint.
	lookEvery = 2 * time.Second

	schemaVersion = 2
	controlPlane  = "s0" // the actor of what no sandbox did
)

// View shows clients what is stored.
type View struct {
	Store    *store.Store
	Feed     *Feed
	RegionID string
}

// ListQuery is what a client asks for.
type ListQuery struct {
	Query
	Start, End *time.Time
	Limit      int // 0: the default
	Cursor     string
	ActorID    string
	EventID    string
	Operation  string // an event is its own operation
}

// filter checks a query.
func (q ListQuery) filter(id sandbox.ID) (store.EventFilter, error) {
	f := store.EventFilter{After: -1, Start: q.Start, End: q.End, Limit: q.Limit, EventID: q.EventID}
	if f.Limit == 0 {
		f.Limit = defaultPage
	}
	if f.Limit < 1 || f.Limit > maxPage {
		return f, errdefs.New(errdefs.InvalidArgument, "limit must be 1 to %d", maxPage)
	}
	for _, s := range []string{q.ActorID, q.EventID, q.Operation, q.Action, q.ResourceType} {
		if len(s) > maxFilterBytes || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
			return f, errdefs.New(errdefs.InvalidArgument, "a filter is not printable ASCII of at most %d bytes", maxFilterBytes)
		}
	}
	if q.Cursor != "" {
		seq, err := strconv.ParseInt(strings.TrimPrefix(q.Cursor, "e"), 36, 64)
		if err != nil || seq < -1 || cursor(seq) != q.Cursor {
			return f, errdefs.New(errdefs.InvalidArgument, "cursor is invalid")
		}
		f.After = seq
	}
	if f.EventID == "" {
		f.EventID = q.Operation
	}
	f.Types = q.Types()
	if q.ActorID != "" {
		by := map[string]string{controlPlane: service, string(id): workload}[q.ActorID]
		if by == "" || q.ActorKind != "" && q.ActorKind != by {
			by = "nobody"
		}
		q.ActorKind = by
		f.Types = q.Types()
	}
	if q.Operation != "" && f.EventID != q.Operation {
		f.Types = []string{}
	}
	return f, nil
}

// cursor names a place in a sandbox's events; -1 is the beginning.
func cursor(seq int64) string { return "e" + strconv.FormatInt(seq, 36) }

// List answers one page.
func (v *View) List(ctx context.Context, team uuid.UUID, id sandbox.ID, q ListQuery) (openapi.SandboxEventList, error) {
	out := openapi.SandboxEventList{Events: []openapi.SandboxEvent{}}
	f, err := q.filter(id)
	if err != nil {
		return out, err
	}
	list, err := v.read(ctx, team, id, f)
	if err != nil {
		return out, err
	}
	after := f.After
	for _, e := range list {
		out.Events = append(out.Events, v.show(e))
		after = e.Seq
	}
	out.Watermark = new(cursor(after))
	if len(list) == f.Limit {
		out.NextCursor = out.Watermark
	}
	return out, nil
}

// read is NotFound for a sandbox that the team never had.
func (v *View) read(ctx context.Context, team uuid.UUID, id sandbox.ID, f store.EventFilter) ([]store.Event, error) {
	list, err := v.Store.Events(ctx, team, id, f)
	if err != nil || len(list) > 0 {
		return list, err
	}
	had, err := v.Store.HadSandbox(ctx, team, id)
	if err == nil && !had {
		err = errdefs.New(errdefs.NotFound, "sandbox not found")
	}
	return nil, err
}

// Watch answers what there is, and a source of what follows.
func (v *View) Watch(ctx context.Context, team uuid.UUID, id sandbox.ID, q ListQuery) ([]ndjson.Line, ndjson.Source, error) {
	if q.End != nil {
		return nil, nil, errdefs.New(errdefs.InvalidArgument, "a watch has no end_time")
	}
	f, err := q.filter(id)
	if err != nil {
		return nil, nil, err
	}
	list, err := v.read(ctx, team, id, f)
	if err != nil {
		return nil, nil, err
	}
	lines := v.lines(&f, list)
	return lines, func(ctx context.Context) ([]ndjson.Line, error) {
		list, err := v.await(ctx, team, id, f)
		return v.lines(&f, list), err
	}, nil
}

// lines shows a batch and moves the filter behind it.
func (v *View) lines(f *store.EventFilter, list []store.Event) []ndjson.Line {
	if len(list) == 0 {
		return nil
	}
	var lines []ndjson.Line
	for _, e := range list {
		lines = append(lines, ndjson.Line{Type: "event", Data: v.show(e), Cursor: cursor(e.Seq)})
		f.After = e.Seq
	}
	return append(lines, ndjson.Watermark(cursor(f.After)))
}

// await waits for events, no longer than a heartbeat's time.
func (v *View) await(ctx context.Context, team uuid.UUID, id sandbox.ID, f store.EventFilter) ([]store.Event, error) {
	changed, cancel := v.Feed.Watch(id)
	defer cancel()
	end := time.NewTimer(ndjson.Heartbeat)
	defer end.Stop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		list, err := v.Store.Events(ctx, team, id, f)
		if err != nil || len(list) > 0 {
			return list, err
		}
		select {
		case <-changed:
		case <-look.C:
		case <-end.C:
			return nil, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// show is the contract's view of an event.
func (v *View) show(e store.Event) openapi.SandboxEvent {
	k := kinds[e.Type]
	attributes := map[string]any{}
	if json.Unmarshal([]byte(e.Payload), &attributes) != nil || attributes == nil {
		attributes = map[string]any{"payload": json.RawMessage(e.Payload)}
	}
	actor := openapi.SandboxEventActor{Kind: openapi.SandboxEventActorKind(k.actor), ID: new(controlPlane)}
	if k.actor == workload {
		actor.ID = new(string(e.SandboxID))
	}
	resource := openapi.SandboxEventResource{Type: k.resource, ID: string(e.SandboxID)}
	for field := range strings.FieldsSeq(k.resourceID) {
		if s, ok := attributes[field].(string); ok && s != "" {
			resource.ID = s
			break
		}
	}
	if e.Delivery != store.NoDelivery {
		attributes["webhook_delivery"] = map[string]any{"state": e.Delivery, "attempts": e.Attempts, "outcome": e.Outcome}
	}
	hash := sha256.Sum256([]byte(e.Payload))
	return openapi.SandboxEvent{
		EventID: e.EventID, SchemaVersion: schemaVersion, TeamID: e.TeamID.String(), SandboxID: string(e.SandboxID),
		RegionID: v.RegionID, ClusterID: e.SandboxID.Cluster(), OccurredAt: e.OccurredAt, IngestedAt: e.IngestedAt,
		Source: openapi.SandboxEventSource(e.Source), EventType: openapi.SandboxEventType(k.eventType),
		Phase: openapi.SandboxEventPhase(k.phase), Outcome: openapi.SandboxEventOutcome(k.outcome),
		Actor: actor, Action: e.Type, Resource: resource, OperationID: e.EventID,
		Producer:   openapi.SandboxEventProducer{Service: e.Source},
		Integrity:  openapi.SandboxEventIntegrity{Algorithm: "ed25519-sha256-v1", PayloadHash: hex.EncodeToString(hash[:]), SignatureStatus: "unavailable"},
		Attributes: attributes, Cursor: cursor(e.Seq),
	}
}
