// The s0d program is the s0 server: `s0d up` runs all of it on one machine,
// `s0d api` and `s0d noded` run one part.
package main

import (
	"os"

	"s0.run/cmd/s0d/internal/command"
)

// version is set by the linker.
var version = "unknown"

func main() { os.Exit(command.Main(version)) }
