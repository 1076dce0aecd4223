// The s0 command is the command line of s0: it signs in, claims sandboxes and
// works in them, through the public API alone.
package main

import (
	"os"

	"s0.run/cmd/s0/internal/cli"
)

var version = "unknown" // the linker knows it

func main() { os.Exit(cli.Main(os.Args[1:], version)) }
