package daemon

import (
	"os"
	"runtime/debug"
)

// gcPercent lets the heap grow to three times what lives, where Go's default is twice.
// What lives in a control plane are rows and slots that it holds on to, and each
// collection reads all of them; what dies are requests. With 100,000 sandboxes that
// was a third of what a claim costs.
const gcPercent = 200

// CollectLess has garbage collected half as often, unless GOGC says how often.
func CollectLess() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}
