// The s0d program is the s0 server: `s0d up` runs all of it on one machine,
// `s0d api` and `s0d noded` run one part.
package main

import (
	"os"
	"runtime"

	"s0.run/cmd/s0d/internal/command"
)

// version is set by the linker.
var version = "unknown"

// The main goroutine keeps the main thread: it is the one that the kernel signals when
// our parent dies, and netd starts itself anew from it. From any other thread, exec
// would lose that signal, and netd would outlive the server.
func init() { runtime.LockOSThread() }

func main() { os.Exit(command.Main(version)) }
