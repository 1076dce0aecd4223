package procapi

import (
	"time"

	"s0.run/internal/warm"
)

// PathSessions is where execution sessions are: supervised commands that outlive
// their readers. Below it:
//
//	GET, POST       /sessions                      SessionList; SessionSpec → Session
//	GET, PUT, DELETE /sessions/{id}                Session; SessionSpec → Session
//	PUT             /sessions/{id}/desired-state   SessionDesiredState → Session
//	POST            /sessions/{id}/attempts        SessionAttemptRequest → Session
//	POST            /sessions/{id}/inputs          SessionInput → SessionInputReceipt
//	POST            /sessions/{id}/signals         SessionSignal → {}
//	PUT             /sessions/{id}/terminal        SessionResize → {}
//	GET             /sessions/{id}/events          ?after=&limit= → SessionEventPage
//	GET             /sessions/{id}/events/stream   ?after= → SessionEvents, one a line
//
// The stream ends without an error when the session is deleted.
const PathSessions = "/sessions"

// IdempotencyHeader on POST /sessions names a creation: the same again answers
// with the same session, for as long as there is one.
const IdempotencyHeader = "Idempotency-Key"

// Codes of refusals that only sessions have.
const (
	CodeSessionNotFound = "session_not_found"
	CodeTooManySessions = "too_many_sessions"
	CodeAttemptRunning  = "attempt_running"  // there is one already
	CodeAttemptMismatch = "attempt_mismatch" // the current one is not the expected one
	CodeInputConflict   = "input_conflict"   // other input came under the same id
	CodeKeyReused       = "idempotency_key_reused"
)

// Limits of sessions.
const (
	MaxSessions        = 64
	MaxSessionName     = 128
	MaxSessionKey      = 128       // of IdempotencyHeader
	MaxInputID         = 128       // of an input
	MaxReadinessOutput = 4 << 10   // bytes to wait for
	MaxSessionEvents   = 1000      // events of one page
	MaxEventPageBytes  = 1 << 20   // output in one page; at least one event is in it
	MaxSessionEvent    = 128 << 10 // one event as a line: 64 KiB of output in base64
	MaxSessionReason   = 512
	MaxSessionSpec     = 64 << 10 // bytes of a spec's command and environment, so that a list of all fits an answer
	MaxSessionProbes   = 16 << 10 // bytes of a spec's probes
	MaxSessionEnv      = 1024     // variables
	MaxSessionRestarts = 10_000

	DefaultRetention = 4 << 20 // bytes of events that a session keeps
	MinRetention     = 64 << 10
	MaxRetention     = 16 << 20
	MaxSessionTime   = 366 * 24 * time.Hour // any time that a spec names
)

// How a session's streams are connected.
const (
	IOPipes = "pipes"
	IOPTY   = "pty"
)

// What a session shall do.
const (
	DesiredRunning = "running"
	DesiredStopped = "stopped"
)

// When an attempt that ended by itself is followed by another.
const (
	RestartNever     = "never"
	RestartOnFailure = "on_failure"
	RestartAlways    = "always"
)

// What becomes of a session whose sandbox comes back without its memory.
const (
	RecoveryRestart = "restart"
	RecoveryStop    = "stop"
)

// When an attempt is ready.
const (
	ReadyProcess = "process" // once it runs
	ReadyDelay   = "delay"   // some time later
	ReadyOutput  = "output"  // once it has printed something
)

// Phases of a session.
const (
	PhasePending   = "pending"
	PhaseStarting  = "starting"  // not ready yet
	PhaseRunning   = "running"   // and ready
	PhasePaused    = "paused"    // its process was stopped with a signal
	PhaseStopping  = "stopping"  // on its way to the end
	PhaseStopped   = "stopped"   // because it shall be
	PhaseExited    = "exited"    // by itself, successfully
	PhaseBackoff   = "backoff"   // before the next attempt
	PhaseFailed    = "failed"    // and not tried again
	PhaseSuspended = "suspended" // with its sandbox
)

// Types of a session's events. A new phase is an event too: "session." and the
// phase, with why.
const (
	SessionCreated = "session.created"
	SessionUpdated = "session.updated" // its spec
	SessionDeleted = "session.deleted" // the last one
	AttemptStarted = "attempt.started"
	AttemptFailed  = "attempt.failed" // it could not be started
	AttemptExited  = "attempt.exited"
	SessionOutput  = "output"
	SessionLost    = "output.lost" // Reason says how much was printed faster than it could be kept

	ProbePassed = "probe.passed" // Reason is which one: what it says of the attempt has become true
	ProbeFailed = "probe.failed" // Reason says which one and why; the same again is not repeated
)

// Probes of sessions, and the reasons of attempts that end for their failure.
const (
	ProbeStartup   = "Startup"
	ProbeReadiness = "Readiness"
	ProbeLiveness  = "Liveness"

	EndedByStartup  = "startup_probe"
	EndedByLiveness = "liveness_probe"
)

// SessionSpec says what a session is. What it leaves out has a default, which the
// answers show.
type SessionSpec struct {
	Name      string            `json:"name,omitempty"`
	Command   []string          `json:"command"`
	Cwd       string            `json:"cwd,omitempty"`
	Env       map[string]string `json:"env,omitempty"`
	IO        SessionIO         `json:"io,omitzero"`
	Lifecycle SessionLifecycle  `json:"lifecycle,omitzero"`
	Readiness SessionReadiness  `json:"readiness,omitzero"`
	Retention SessionRetention  `json:"event_retention,omitzero"`
	Probes    SessionProbes     `json:"probes,omitzero"`
}

// SessionProbes are repeated while an attempt lives. Until the one of the startup has
// passed the others wait.
type SessionProbes struct {
	Startup   *SessionProbe `json:"startup,omitempty"`   // its failure ends the attempt
	Readiness *SessionProbe `json:"readiness,omitempty"` // says whether the attempt is of use now
	Liveness  *SessionProbe `json:"liveness,omitempty"`  // its failure ends the attempt
}

// SessionProbe is one of them; all its numbers are set.
type SessionProbe struct {
	warm.Probe
	GraceSeconds *int64 `json:"stop_grace_period_seconds,omitempty"` // between TERM and KILL when it ends the attempt; default the session's
}

// SessionProbed is what probes say of the latest attempt.
type SessionProbed struct {
	Started bool `json:"started"`
	Ready   bool `json:"ready"`
}

// SessionIO says how the command's streams are connected.
type SessionIO struct {
	Mode     string           `json:"mode,omitempty"`
	Terminal *SessionTerminal `json:"terminal,omitempty"` // of IOPTY
}

// SessionTerminal describes a terminal.
type SessionTerminal struct {
	Rows uint16 `json:"rows,omitempty"`
	Cols uint16 `json:"cols,omitempty"`
	Term string `json:"term,omitempty"`
}

// SessionLifecycle says how long a session runs.
type SessionLifecycle struct {
	DesiredState    string         `json:"desired_state,omitempty"`
	Restart         SessionRestart `json:"restart,omitzero"`
	RuntimeRecovery string         `json:"runtime_recovery,omitempty"`
	IdleSeconds     int64          `json:"idle_timeout_seconds,omitempty"`      // without input or output; 0: forever
	LifetimeSeconds int64          `json:"max_lifetime_seconds,omitempty"`      // since it was told to run; 0: forever
	GraceSeconds    *int64         `json:"stop_grace_period_seconds,omitempty"` // between TERM and KILL
}

// SessionRestart says when an attempt is followed by another.
type SessionRestart struct {
	Policy           string `json:"policy,omitempty"`
	MaxRestarts      int64  `json:"max_restarts,omitempty"`   // 0: no bound
	WindowSeconds    int64  `json:"window_seconds,omitempty"` // in which MaxRestarts count; 0: since it was told to run
	InitialBackoffMS int64  `json:"initial_backoff_ms,omitempty"`
	MaxBackoffMS     int64  `json:"max_backoff_ms,omitempty"`
}

// SessionReadiness says when an attempt is ready.
type SessionReadiness struct {
	Type      string `json:"type,omitempty"`
	DelayMS   int64  `json:"delay_ms,omitempty"`
	Output    string `json:"output,omitempty"`
	TimeoutMS int64  `json:"timeout_ms,omitempty"` // an attempt that is not ready by then has failed; 0: no bound
}

// SessionRetention bounds the events that are kept.
type SessionRetention struct {
	MaxBytes      int64 `json:"max_bytes,omitempty"`
	MaxAgeSeconds int64 `json:"max_age_seconds,omitempty"` // 0: no bound
}

// Session is a session as it is now.
type Session struct {
	ID                string          `json:"id"`
	Spec              SessionSpec     `json:"spec"`
	SpecVersion       int64           `json:"spec_version"`
	Phase             string          `json:"phase"`
	RuntimeGeneration uint64          `json:"runtime_generation"` // the sandbox's
	Attempt           *SessionAttempt `json:"attempt,omitempty"`  // the latest
	Probed            *SessionProbed  `json:"probed,omitempty"`   // of a session with probes
	RestartCount      int64           `json:"restart_count"`
	Cursor            SessionCursor   `json:"cursor"`
	CreatedAt         time.Time       `json:"created_at"`
	UpdatedAt         time.Time       `json:"updated_at"`
	LastActivityAt    time.Time       `json:"last_activity_at"`
}

// SessionAttempt is one process of a session's.
type SessionAttempt struct {
	ID                string    `json:"id"`
	Number            int64     `json:"number"`
	RuntimeGeneration uint64    `json:"runtime_generation"`
	PID               int       `json:"pid,omitempty"`
	StartedAt         time.Time `json:"started_at,omitzero"`
	FinishedAt        time.Time `json:"finished_at,omitzero"`
	ExitCode          *int      `json:"exit_code,omitempty"`
	Reason            string    `json:"reason,omitempty"`
}

// SessionCursor is which events there are: none if Earliest is above Latest.
type SessionCursor struct {
	Earliest uint64 `json:"earliest"`
	Latest   uint64 `json:"latest"`
}

// SessionEvent is one thing that happened in a session. Seq counts from 1 without
// holes in a session's life.
type SessionEvent struct {
	Seq               uint64    `json:"seq"`
	SessionID         string    `json:"session_id"`
	RuntimeGeneration uint64    `json:"runtime_generation"`
	AttemptID         string    `json:"attempt_id,omitempty"`
	Type              string    `json:"type"`
	Stream            string    `json:"stream,omitempty"` // stdout, stderr or pty
	Data              []byte    `json:"data_base64,omitempty"`
	ExitCode          *int      `json:"exit_code,omitempty"`
	Reason            string    `json:"reason,omitempty"`
	OccurredAt        time.Time `json:"occurred_at"`
}

// SessionList is the answer to GET /sessions, oldest first.
type SessionList struct {
	Sessions []Session `json:"sessions"`
}

// SessionEventPage is the oldest events that were asked for. There are more if
// the cursor's Latest is behind the last of them.
type SessionEventPage struct {
	Events []SessionEvent `json:"events"`
	Cursor SessionCursor  `json:"cursor"`
}

// SessionDesiredState says what a session shall do from now on.
type SessionDesiredState struct {
	State string `json:"state"`
}

// SessionAttemptRequest asks for another attempt.
type SessionAttemptRequest struct {
	ReplaceCurrent bool `json:"replace_current,omitempty"`
}

// SessionInput is bytes for the current attempt.
type SessionInput struct {
	InputID         string `json:"input_id"`
	ExpectedAttempt string `json:"expected_attempt_id,omitempty"`
	Data            []byte `json:"data_base64,omitempty"`
	EOF             bool   `json:"eof,omitempty"` // no more input follows
}

// SessionInputReceipt says that an input is in the attempt's queue, from now or
// from an earlier request.
type SessionInputReceipt struct {
	InputID   string `json:"input_id"`
	AttemptID string `json:"attempt_id"`
	Accepted  bool   `json:"accepted"`
	Duplicate bool   `json:"duplicate"`
}

// SessionResize is a new size of the terminal, of later attempts too.
type SessionResize struct {
	Rows            uint16 `json:"rows"`
	Cols            uint16 `json:"cols"`
	ExpectedAttempt string `json:"expected_attempt_id,omitempty"`
}

// SessionSignal is a signal for the current attempt.
type SessionSignal struct {
	Signal          string `json:"signal"`
	ExpectedAttempt string `json:"expected_attempt_id,omitempty"`
}
