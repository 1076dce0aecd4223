// Package proc runs one process with its output kept in a bounded log.
//
// A [Process] leads a session of its own, on a pseudo-terminal or with separate
// stdout and stderr pipes. Pumps move what it prints into a [Log] as fast as it
// comes, whoever reads or doesn't; input goes through a bounded queue. The log
// ends when the process has ended and its streams are closed, or a grace later
// when something it left behind still holds them: that something keeps running
// and its further output is dropped. The package owns the descriptors and the
// goroutines of its processes. It never waits for children itself (package reap
// does), never decides when to kill, and knows nothing of REPLs or requests.
package proc
