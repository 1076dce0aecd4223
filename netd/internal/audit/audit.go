// Package audit keeps one record of every flow until somebody takes it away.
//
// Records hold names, verdicts and sizes, and nothing of what a flow carried: no
// path, no header, no credential's value. The queue is bounded; what has no room
// in it is counted and lost, for a sandbox must not stall because nobody reads.
package audit

import (
	"context"
	"net/netip"
	"sync"
	"time"
)

// Record is one flow, in the contract's words.
type Record struct {
	Timestamp          time.Time  `json:"timestamp"`
	FlowID             string     `json:"flow_id"`
	SandboxID          string     `json:"sandbox_id"`
	Generation         uint64     `json:"generation"`
	TeamID             string     `json:"team_id"`
	SrcIP              netip.Addr `json:"src_ip"`
	DestIP             netip.Addr `json:"dest_ip"`
	DestPort           uint16     `json:"dest_port"`
	Transport          string     `json:"transport"`
	Protocol           string     `json:"protocol"`
	Host               string     `json:"host,omitempty"`
	ClassifierResult   string     `json:"classifier_result,omitempty"`
	Action             string     `json:"action"` // allow, deny, or would-deny of a policy that is not enforced
	Reason             string     `json:"reason,omitempty"`
	Outcome            string     `json:"outcome"` // completed, denied, error
	DurationMS         int64      `json:"duration_ms"`
	EgressBytes        int64      `json:"egress_bytes"`
	IngressBytes       int64      `json:"ingress_bytes"`
	Adapter            string     `json:"adapter,omitempty"` // splice, terminate, dns
	AuthRuleName       string     `json:"auth_rule_name,omitempty"`
	AuthRef            string     `json:"auth_ref,omitempty"`
	AuthFailurePolicy  string     `json:"auth_failure_policy,omitempty"`
	AuthBypassed       bool       `json:"auth_bypassed"`
	AuthResolved       bool       `json:"auth_resolved"`
	AuthCacheHit       bool       `json:"auth_cache_hit"`
	AuthResolveError   string     `json:"auth_resolve_error,omitempty"`
	ProtocolOperations []string   `json:"protocol_operations,omitempty"` // of HTTP the methods with their statuses
	Error              string     `json:"error,omitempty"`
}

// What happened to a flow.
const (
	Allow     = "allow"
	Deny      = "deny"
	WouldDeny = "would-deny"

	Completed = "completed"
	Denied    = "denied"
	Failed    = "error"
)

// DefaultSize is the contract's queue.
const DefaultSize = 1024

// Queue holds records. It is safe for concurrent use.
type Queue struct {
	ready chan struct{} // holds one when there may be something

	mu      sync.Mutex
	records []Record
	size    int
	dropped uint64
}

// NewQueue makes a queue of so many records at most.
func NewQueue(size int) *Queue { return &Queue{size: size, ready: make(chan struct{}, 1)} }

// Add queues a record, or counts it when there is no room. It never blocks.
func (q *Queue) Add(r Record) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.records) >= q.size {
		q.dropped++
		return
	}
	q.records = append(q.records, r)
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// Take waits for records and takes all there are. dropped is how many had no room
// since the queue was made.
func (q *Queue) Take(ctx context.Context) (records []Record, dropped uint64, err error) {
	for {
		q.mu.Lock()
		records, dropped = q.records, q.dropped
		q.records = nil
		q.mu.Unlock()
		if len(records) > 0 {
			return records, dropped, nil
		}
		select {
		case <-q.ready:
		case <-ctx.Done():
			return nil, dropped, ctx.Err()
		}
	}
}
