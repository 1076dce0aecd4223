package procapi

import "time"

// Limits of the journal that procd keeps of what processes print.
const (
	LogJournalBytes = 4 << 20  // of all contexts together
	MaxLogLineBytes = 16 << 10 // of one line; the rest of a longer one is dropped
	MaxLogLines     = 1000     // of one answer
	MaxLogPageBytes = 1 << 20  // of one answer's messages; at least one line is in it
	MaxLogWait      = 25 * time.Second
)

// Query parameters of GET [PathLogs]. All are optional.
const (
	LogAfter   = "after"      // a cursor; lines behind it. Default: from the oldest line
	LogLimit   = "limit"      // 1 to MaxLogLines, the default
	LogContext = "context_id" // lines of one context alone
	LogStream  = "stream"     // stdout, stderr or pty
	LogSince   = "since"      // RFC 3339: lines from this time on
	LogUntil   = "until"      // RFC 3339: lines before this time
	LogWait    = "wait"       // milliseconds that an answer without lines may be kept back
)

// LogPage is the answer to GET [PathLogs]: the oldest lines that were asked for.
// A cursor is Epoch, a dot, and a line's Seq. Another epoch than the one that a
// cursor names means that the journal began anew; then everything is behind it.
type LogPage struct {
	Epoch   string    `json:"epoch"` // 16 hex digits
	Lines   []LogLine `json:"lines"`
	Next    uint64    `json:"next"`              // Seq of the last line that was looked at, returned or not
	More    bool      `json:"more,omitempty"`    // there are more behind Next
	Dropped uint64    `json:"dropped,omitempty"` // lines behind the cursor that the journal had to let go
}

// LogLine is one line that a process printed.
type LogLine struct {
	Seq       uint64    `json:"seq"` // from 1, without holes
	Time      time.Time `json:"time"`
	ContextID string    `json:"context_id"`
	PID       int       `json:"pid"`
	Stream    string    `json:"stream"` // stdout, stderr or pty
	Message   string    `json:"message"`
	Truncated bool      `json:"truncated,omitempty"`  // it was longer than MaxLogLineBytes
	LostBytes uint64    `json:"lost_bytes,omitempty"` // printed before it too fast for the journal
}
