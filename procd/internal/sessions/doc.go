// Package sessions supervises commands that outlive their readers.
//
// A session is a spec, at most one live process at a time, its attempt, and one
// bounded, ordered log of events: what the attempts print and what becomes of
// them. The session keeps to its spec: it starts another attempt when one ends
// that shall not, waits between them, ends one that is idle, too old or not ready
// in time. An attempt ends with everything that it started: TERM, then after a
// grace KILL; what is left of it is killed before the next one starts.
//
// Clients come and go: they read the log from any number on, give input under ids
// that make repetitions harmless, and say what shall be. A process never waits for
// them, the log drops its oldest events instead.
//
// Each session has one goroutine that owns its state; calls are functions that it
// runs, deadlines one timer. Beside it there is one goroutine that moves a live
// attempt's output into the log. The [Table] owns the sessions, until its Run
// ends. How a command is started is not this package's concern.
package sessions
