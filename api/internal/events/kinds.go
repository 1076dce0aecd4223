package events

import (
	"s0.run/api/internal/store"
	"s0.run/internal/procapi"
)

// kind is what the contract's audit view says of a type of event.
type kind struct {
	source    string // who tells it
	eventType string
	phase     string
	outcome   string
	actor     string // kind of who did it
	resource  string // kind of what it happened to

	resourceID string // fields of the payload that name it, the first that is there; none: it is the sandbox
}

const (
	lifecycle = "lifecycle"
	network   = "network_audit"
	process   = "process"
	file      = "file"

	service  = "service"
	workload = "sandbox_workload"
)

// kinds are all types of events there are.
var kinds = map[string]kind{
	"sandbox.ready":   {store.SourceManager, lifecycle, "result", "completed", service, "sandbox", ""},
	"sandbox.paused":  {store.SourceManager, lifecycle, "result", "completed", service, "sandbox", ""},
	"sandbox.resumed": {store.SourceManager, lifecycle, "result", "completed", service, "sandbox", ""},
	"sandbox.killed":  {store.SourceManager, lifecycle, "result", "completed", service, "sandbox", ""},
	"sandbox.deleted": {store.SourceManager, lifecycle, "result", "completed", service, "sandbox", ""},

	flowAllowed:   {store.SourceNetd, network, "effect", "completed", workload, "network", "host dest_ip"},
	flowDenied:    {store.SourceNetd, network, "attempt", "denied", workload, "network", "host dest_ip"},
	flowWouldDeny: {store.SourceNetd, network, "effect", "completed", workload, "network", "host dest_ip"},
	flowFailed:    {store.SourceNetd, network, "effect", "error", workload, "network", "host dest_ip"},
	flowMore:      {store.SourceNetd, network, "effect", "completed", workload, "sandbox", ""},

	procapi.EventProcessStarted: {store.SourceProcd, process, "effect", "completed", workload, "process", "process_id"},
	procapi.EventProcessExited:  {store.SourceProcd, process, "effect", "succeeded", workload, "process", "process_id"},
	procapi.EventProcessCrashed: {store.SourceProcd, process, "effect", "failed", workload, "process", "process_id"},
	procapi.EventFileModified:   {store.SourceProcd, file, "effect", "completed", workload, "file", "path"},
	procapi.EventAgent:          {store.SourceProcd, process, "effect", "completed", workload, "sandbox", ""},
	procapi.EventsDropped:       {store.SourceProcd, process, "effect", "error", workload, "sandbox", ""},
}

// Query is what a client may narrow a list of events by; empty fields do not.
type Query struct {
	Source       string
	EventType    string
	Outcome      string
	ActorKind    string
	ResourceType string
	Action       string // the type, as webhooks call it
}

// Types are the types of events that a query asks for; nil is any.
func (q Query) Types() []string {
	if q == (Query{}) {
		return nil
	}
	types := []string{}
	for t, k := range kinds {
		if fits(q.Source, k.source) && fits(q.EventType, k.eventType) && fits(q.Outcome, k.outcome) &&
			fits(q.ActorKind, k.actor) && fits(q.ResourceType, k.resource) && fits(q.Action, t) {
			types = append(types, t)
		}
	}
	return types
}

func fits(want, is string) bool { return want == "" || want == is }
