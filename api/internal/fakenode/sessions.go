package fakenode

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"s0.run/internal/procapi"
)

// Sessions is procd's sessions in memory, without processes: what is written to
// one, it prints. Its zero value is empty.
type Sessions struct {
	mu   sync.Mutex
	all  map[string]*session // by sandbox and id
	made int
}

type session struct {
	procapi.Session
	key     string
	inputs  map[string]bool
	events  []procapi.SessionEvent
	changed chan struct{} // closed when there are more, or none will follow
	deleted bool
}

func (s *session) add(ev procapi.SessionEvent) {
	ev.Seq, ev.SessionID, ev.RuntimeGeneration, ev.OccurredAt = s.Cursor.Latest+1, s.ID, 1, time.Now().UTC()
	s.events = append(s.events, ev)
	s.Cursor = procapi.SessionCursor{Earliest: 1, Latest: ev.Seq}
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *session) attempt() {
	number := int64(1)
	if s.Attempt != nil {
		number = s.Attempt.Number + 1
	}
	s.Attempt = &procapi.SessionAttempt{ID: fmt.Sprintf("att-%012x", number), Number: number, RuntimeGeneration: 1, PID: 7, StartedAt: time.Now().UTC()}
	s.inputs = map[string]bool{}
	s.add(procapi.SessionEvent{Type: procapi.AttemptStarted, AttemptID: s.Attempt.ID})
}

// ServeHTTP serves procapi.PathSessions and what is below.
func (f *Sessions) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	sandbox := r.Header.Get(SandboxHeader)
	rest := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, procapi.PathSessions), "/")
	id, op, _ := strings.Cut(rest, "/")
	if op == "events/stream" {
		f.stream(w, r, sandbox+" "+id)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch s := f.all[sandbox+" "+id]; {
	case rest == "" && r.Method == http.MethodGet:
		f.list(w, sandbox)
	case rest == "":
		f.create(w, r, sandbox)
	case s == nil:
		refuse(w, http.StatusNotFound, procapi.CodeSessionNotFound)
	case r.Method == http.MethodDelete:
		s.deleted = true
		s.add(procapi.SessionEvent{Type: procapi.SessionDeleted})
		delete(f.all, sandbox+" "+id)
		reply(w, http.StatusOK, struct{}{})
	default:
		s.serve(w, r, op)
	}
}

func (f *Sessions) list(w http.ResponseWriter, sandbox string) {
	var list procapi.SessionList
	for key, s := range f.all {
		if strings.HasPrefix(key, sandbox+" ") {
			list.Sessions = append(list.Sessions, s.Session)
		}
	}
	reply(w, http.StatusOK, list)
}

func (f *Sessions) create(w http.ResponseWriter, r *http.Request, sandbox string) {
	key := r.Header.Get(procapi.IdempotencyHeader)
	for _, s := range f.all {
		if key != "" && s.key == key {
			reply(w, http.StatusCreated, s.Session)
			return
		}
	}
	f.made++
	now := time.Now().UTC()
	s := &session{key: key, changed: make(chan struct{}), Session: procapi.Session{
		ID: fmt.Sprintf("sess-%012x", f.made), SpecVersion: 1, Phase: procapi.PhaseRunning, RuntimeGeneration: 1, CreatedAt: now, UpdatedAt: now, LastActivityAt: now,
	}}
	if !s.read(w, r, &s.Spec) {
		return
	}
	s.add(procapi.SessionEvent{Type: procapi.SessionCreated})
	s.attempt()
	if f.all == nil {
		f.all = map[string]*session{}
	}
	f.all[sandbox+" "+s.ID] = s
	reply(w, http.StatusCreated, s.Session)
}

func (*session) read(w http.ResponseWriter, r *http.Request, v any) bool {
	if err := json.NewDecoder(r.Body).Decode(v); err != nil {
		refuse(w, http.StatusBadRequest, "invalid_request")
		return false
	}
	return true
}

func (s *session) serve(w http.ResponseWriter, r *http.Request, op string) {
	switch op {
	case "":
		if r.Method == http.MethodPut {
			s.Spec = procapi.SessionSpec{}
			if !s.read(w, r, &s.Spec) {
				return
			}
			s.SpecVersion++
		}
	case "desired-state":
		s.Phase = procapi.PhaseStopping
	case "attempts":
		var in procapi.SessionAttemptRequest
		if !s.read(w, r, &in) {
			return
		}
		if !in.ReplaceCurrent {
			refuse(w, http.StatusConflict, procapi.CodeAttemptRunning)
			return
		}
		s.attempt()
	case "inputs":
		s.input(w, r)
		return
	case "events":
		after, _ := strconv.Atoi(r.URL.Query().Get("after"))
		limit := len(s.events)
		if l, err := strconv.Atoi(r.URL.Query().Get("limit")); err == nil {
			limit = l
		}
		rest := s.events[min(after, len(s.events)):]
		reply(w, http.StatusOK, procapi.SessionEventPage{Events: rest[:min(limit, len(rest))], Cursor: s.Cursor})
		return
	default: // signals, terminal
		reply(w, http.StatusOK, struct{}{})
		return
	}
	reply(w, http.StatusOK, s.Session)
}

func (s *session) input(w http.ResponseWriter, r *http.Request) {
	var in procapi.SessionInput
	if !s.read(w, r, &in) {
		return
	}
	if in.ExpectedAttempt != "" && in.ExpectedAttempt != s.Attempt.ID {
		refuse(w, http.StatusConflict, procapi.CodeAttemptMismatch)
		return
	}
	receipt := procapi.SessionInputReceipt{InputID: in.InputID, AttemptID: s.Attempt.ID, Accepted: true, Duplicate: s.inputs[in.InputID]}
	if !receipt.Duplicate {
		s.inputs[in.InputID] = true
		s.add(procapi.SessionEvent{Type: procapi.SessionOutput, AttemptID: s.Attempt.ID, Stream: "pty", Data: in.Data})
	}
	reply(w, http.StatusOK, receipt)
}

func (f *Sessions) stream(w http.ResponseWriter, r *http.Request, key string) {
	after, _ := strconv.Atoi(r.URL.Query().Get("after"))
	f.mu.Lock()
	s := f.all[key]
	f.mu.Unlock()
	if s == nil {
		refuse(w, http.StatusNotFound, procapi.CodeSessionNotFound)
		return
	}
	flush := http.NewResponseController(w).Flush
	for {
		_ = flush()
		f.mu.Lock()
		events, changed, deleted := s.events[min(after, len(s.events)):], s.changed, s.deleted
		f.mu.Unlock()
		for _, ev := range events {
			_ = json.NewEncoder(w).Encode(ev)
			after = int(ev.Seq)
		}
		if len(events) > 0 {
			continue
		}
		if deleted {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	}
}
