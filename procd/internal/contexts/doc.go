// Package contexts is the table of a sandbox's contexts: REPLs and commands that
// outlive the requests that made them.
//
// It turns requests into processes, keeps them under their ids until they are
// deleted or their time is up, and answers what they printed. Live contexts are
// bounded in number; of ended ones the newest are kept, with a bounded amount of
// output. The table owns the contexts and the goroutines that work for them; a
// caller's cancelled context ends its wait, never the process. It knows nothing
// of HTTP, and package repl alone knows when a REPL is done.
package contexts
