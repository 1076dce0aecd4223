// Package shimapi is what noded tells our containerd shim beyond the OCI spec, and what
// both know of the files that they find.
//
// The words travel as annotations of the OCI spec that noded writes itself:
// annotations of images, pods or tenants never reach a spec, so the shim may
// trust them. The package is names alone and owns no state.
package shimapi

// Runtime is the containerd runtime name that selects the shim's binary,
// containerd-shim-s0-v1.
const Runtime = "io.containerd.s0.v1"

const (
	// GroupAnnotation names the shim process that serves this container: all
	// containers of one namespace and group share it, so that an idle sandbox
	// costs a fraction of a shim's memory. Absent: a shim of its own.
	GroupAnnotation = "run.s0.shim/group"

	// RunscAnnotation is the absolute path of the runsc binary.
	RunscAnnotation = "run.s0.shim/runsc"

	// RootAnnotation is runsc's state directory (runsc --root).
	RootAnnotation = "run.s0.shim/root"

	// OverlayDirAnnotation is an existing directory that belongs to this
	// container alone; runsc keeps the rootfs' upper layer in a file there
	// (--overlay2=root:dir=…), which snapshots and restores need.
	OverlayDirAnnotation = "run.s0.shim/overlay-dir"

	// OverlaySizeAnnotation limits that upper layer to so many bytes; writes beyond
	// fail with ENOSPC inside. Absent: as much as the directory's disk has.
	OverlaySizeAnnotation = "run.s0.shim/overlay-size"
)

// CgroupEnv names the control group that shims move to, in containerd's environment,
// which they inherit. It is for hosts of cgroup v2.
const CgroupEnv = "S0_SHIM_CGROUP"

// A checkpoint's options are runc's, as containerd knows no others. Its image path
// is a directory that exists and is empty; a task made with that path as its
// CriuImagePath starts from it.
const (
	// NoProcesses among EmptyNamespaces saves the root filesystem's writable layer alone.
	// Without it the image has all processes and all memory, too.
	NoProcesses = "pid"

	// Unsealed among EmptyNamespaces leaves it to whoever asks to make the image durable and
	// to complete it, which then need not happen while the sandbox stands still.
	Unsealed = "unsealed"

	// FilesImage is the file by which an image of files alone is told from one with
	// processes.
	FilesImage = "fscheckpoint.pb"

	// ImageComplete is the file that the shim adds last, when all others are on the
	// disk. An image without it is none, whoever died while it was written.
	ImageComplete = "complete"
)
