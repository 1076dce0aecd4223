// Package audit is the record of who changed what: one for each call of an
// operation that changes the control plane.
//
// A [Record] travels in its call's context. Package store writes it in the
// transaction that carries the change out, so that neither is there without the
// other; package httpapi makes it, and settles what became of a call that was
// refused. The package holds the words alone: it stores nothing and decides
// nothing. A record never carries what a request or an answer said, only who,
// what, when, from where and how it ended.
package audit

import (
	"context"
	"sync"

	"github.com/google/uuid"
)

// Outcome is how a call ended.
type Outcome string

// The outcomes.
const (
	Begun     Outcome = "begun"     // it may have been carried out: nobody has said more
	Succeeded Outcome = "succeeded" // carried out
	Refused   Outcome = "refused"   // the caller's fault
	Failed    Outcome = "failed"    // ours; a part of it may have been carried out
)

// Record is what is kept of one call. Its exported fields don't change once it
// is in a context.
type Record struct {
	ID        uuid.UUID // version 7: records are ordered by it
	TeamID    uuid.UUID // uuid.Nil: of no team
	KeyID     uuid.UUID // uuid.Nil: no API key
	Operation string    // the contract's operationId
	Address   string    // of the client
	RequestID string

	mu     sync.Mutex
	now    State
	stored State // what the database has, as far as is known
}

// State is what becomes known of a call while it runs.
type State struct {
	UserID   uuid.UUID // uuid.Nil: nobody known
	Resource string    // what was changed; empty: not known, or the team itself
	Outcome  Outcome   // empty: nothing is stored
	Code     string    // of the error that was answered
}

// Begin sets what is known before the call runs. Unless a change says otherwise,
// a call that writes something succeeds.
func (r *Record) Begin(user uuid.UUID, resource string) {
	r.now = State{UserID: user, Resource: resource, Outcome: Succeeded}
}

// State is what is known now.
func (r *Record) State() State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

// Pending is what is to be stored, and whether the database has it already.
func (r *Record) Pending() (now State, stored bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now, r.now == r.stored
}

// Stored notes that the database has a state.
func (r *Record) Stored(s State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stored = s
}

// Carried notes that a change of ours has stored the record with itself, by a
// statement of its own.
func (r *Record) Carried(resource string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now.Resource = resource
	r.stored = r.now
}

// IsStored reports whether the database has the record in any state.
func (r *Record) IsStored() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stored != State{}
}

// End sets how the call ended.
func (r *Record) End(o Outcome, code string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now.Outcome, r.now.Code = o, code
}

type recordKey struct{}

// With puts a record into a context: the changes that are made under it are of
// this call.
func With(ctx context.Context, r *Record) context.Context {
	return context.WithValue(ctx, recordKey{}, r)
}

// Without takes it out: what is done under the context is nobody's change.
func Without(ctx context.Context) context.Context {
	return context.WithValue(ctx, recordKey{}, (*Record)(nil))
}

// Of is the record of the call that a context is of, or nil.
func Of(ctx context.Context) *Record {
	r, _ := ctx.Value(recordKey{}).(*Record)
	return r
}

// Resource names what the call changes, where its path doesn't: who makes
// something names it before the change is committed.
func Resource(ctx context.Context, id string) {
	if r := Of(ctx); r != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.now.Resource = id
	}
}

// By names who calls, where the call itself finds it out.
func By(ctx context.Context, user uuid.UUID) {
	if r := Of(ctx); r != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.now.UserID = user
	}
}
