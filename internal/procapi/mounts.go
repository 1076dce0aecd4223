package procapi

// Portal is where noded has what it mounts into a running sandbox.
const Portal = Dir + "/volumes"

// A Mount shows what is at a name in the portal at a place of the sandbox. procd mounts it
// there, making the directory, unless it is already, and takes it away again. No part of
// the place may be a symlink.
type Mount struct {
	Name   string `json:"name"` // in the portal
	Target string `json:"target"`
}
