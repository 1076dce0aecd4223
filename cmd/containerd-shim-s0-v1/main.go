// The containerd-shim-s0-v1 program is containerd's shim for gVisor sandboxes.
package main

import (
	"context"

	"s0.run/shim"
)

func main() { shim.Run(context.Background()) }
