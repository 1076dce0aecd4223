package procapi

// GET /files/watch?path=&recursive= answers a stream of [WatchLine]s, one JSON
// object a line: first the one with Path alone, once the directory is watched, then
// an event each. The stream ends when the directory has gone.

// What happened to a file.
const (
	WatchCreate     = "create"
	WatchWrite      = "write"
	WatchRemove     = "remove"
	WatchRename     = "rename" // Path is the new name, OldPath the one before
	WatchChmod      = "chmod"
	WatchInvalidate = "invalidate" // events at or below Path are missing: look again
)

// Why events are missing.
const (
	WatchOverflow = "overflow" // there were more than the reader took
	WatchLimit    = "limit"    // there are more directories below Path than are watched
)

// MaxWatchLine bounds a [WatchLine]: two paths, every byte of them escaped.
const MaxWatchLine = 64 << 10

// WatchLine is one line of a watch.
type WatchLine struct {
	Event   string `json:"event,omitempty"`
	Path    string `json:"path"`
	OldPath string `json:"old_path,omitempty"`
	Reason  string `json:"reason,omitempty"` // of WatchInvalidate
}
