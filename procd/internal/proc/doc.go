// Package proc runs one process with its output kept in a bounded log.
//
// A [Process] leads a session of its own, on a pseudo-terminal or with separate
// stdout and stderr pipes. Pumps move what it prints into a [Log]; input goes
// through a bounded queue. The log ends when the process has ended and its streams
// are closed, or a grace later when something it left behind still holds them:
// that something keeps running and its further output is dropped.
//
// # Who waits for whom
//
// The log keeps the newest procapi.LogBytes of output. Readers never wait for each
// other, and the process waits for readers only:
//
//   - Attached readers hold what they have not read. While the log is full of
//     that, the process's streams are not read, and it waits as it would for the
//     reader of a pipe. A reader that keeps a pace of 256 KiB a second misses
//     nothing, however much is printed. One that doesn't is waited for 10 s in
//     all; from then on it gets gaps, each with the number of bytes it missed.
//   - With nobody attached the oldest output is dropped and the process never
//     waits. A command that was just started is the exception, and one whose last
//     reader went before the end: for 5 s in all there is a place kept for the
//     reader that is about to come or to come back.
//
// A process that has ended is read to the end of its streams under the same rule,
// so that its end may be seen that much later by those who wait for it.
//
// The package owns the descriptors and the goroutines of its processes. It never
// waits for children itself (package reap does), never decides when to kill, and
// knows nothing of REPLs or requests.
package proc
