package procapi

import "time"

// Limits of what a sandbox tells about itself.
const (
	MaxEventBytes  = 64 << 10 // one event as JSON; the same bounds what an agent publishes
	MaxEvents      = 256      // events that procd holds for noded
	MaxEventsBytes = 1 << 20  // of them together
	MaxWatchDir    = 4096     // bytes of a watched directory's name
	PreviewBytes   = 1 << 10  // of a process's output that its end's event shows, of each stream
)

// Calls below PathEvents, for noded alone. GET PathEvents?after=N streams [Event]s
// as lines of JSON, those with a Seq above N, and goes on as more happen.
const (
	PathEventsConfig = PathEvents + "/config" // PUT EventsConfig → {}
	PathEventsAck    = PathEvents + "/ack"    // POST EventsAck → {}
)

// The types of events that a sandbox tells. The other end refuses any other.
const (
	EventProcessStarted = "process.started"
	EventProcessExited  = "process.exited"
	EventProcessCrashed = "process.crashed"
	EventFileModified   = "file.modified"
	EventAgent          = "agent.event"
	EventsDropped       = "events.dropped" // [DroppedEvents]: what procd had no room for
)

// EventsConfig turns the keeping of events on, for the sandbox's life. Before it
// none are kept. It may be repeated; its WatchDir takes the place of the one
// before.
type EventsConfig struct {
	WatchDir string `json:"watch_dir,omitempty"` // absolute or below Workspace; empty: none
}

// Event is one thing that happened in the sandbox. Seq counts from 1 in the life
// of one procd; ID is unique in the sandbox.
type Event struct {
	Seq     uint64    `json:"seq"`
	ID      string    `json:"id"`
	Type    string    `json:"type"`
	Time    time.Time `json:"time"`
	Payload any       `json:"payload"`
}

// EventsAck says that events up to Through are stored: procd forgets them.
type EventsAck struct {
	Through uint64 `json:"through"`
}

// ProcessStarted is the payload of [EventProcessStarted]: no variable's value, for
// a command's environment may hold what no receiver shall see.
type ProcessStarted struct {
	ProcessID   string   `json:"process_id"`   // the context's id
	ProcessType string   `json:"process_type"` // repl or cmd
	PID         int      `json:"pid"`
	Command     []string `json:"command,omitempty"`
	Cwd         string   `json:"cwd"`
	Alias       string   `json:"alias,omitempty"`
	PTYSize     *PTYSize `json:"pty_size,omitempty"`
	EnvNames    []string `json:"env_names,omitempty"` // of the request's own variables
}

// ProcessEnded is the payload of [EventProcessExited] and [EventProcessCrashed].
type ProcessEnded struct {
	ProcessID     string `json:"process_id"`
	ProcessType   string `json:"process_type"`
	PID           int    `json:"pid"`
	ExitCode      int    `json:"exit_code"`
	DurationMS    int64  `json:"duration_ms"`
	StdoutPreview string `json:"stdout_preview"` // the end of it; of a terminal, all output is here
	StderrPreview string `json:"stderr_preview"`
	State         string `json:"state"`
}

// FileModified is the payload of [EventFileModified].
type FileModified struct {
	EventType string `json:"event_type"` // create, write, remove, rename, chmod, invalidate
	Path      string `json:"path"`
	OldPath   string `json:"old_path,omitempty"`
}

// DroppedEvents is the payload of [EventsDropped].
type DroppedEvents struct {
	Count uint64 `json:"count"`
}
