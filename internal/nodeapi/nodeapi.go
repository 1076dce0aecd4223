// Package nodeapi is the wire between the API server and a node's noded.
//
// node.proto is the contract; the generated Connect code lies beside it and in
// nodeapiconnect. This file adds the translation between the wire's Spec and
// package sandbox's, so that both ends agree on it. The package owns no state.
package nodeapi

import (
	"strings"

	"s0.run/internal/sandbox"
)

//go:generate sh -c "PATH=$(git rev-parse --show-toplevel)/build/tools:$PATH protoc -I ../.. --go_out=../.. --go_opt=paths=source_relative --connect-go_out=../.. --connect-go_opt=paths=source_relative,simple internal/nodeapi/node.proto"

// ProcPrefix is where noded's listener proxies a sandbox's procd:
// ProcPrefix + id + procapi path.
const ProcPrefix = "/sandboxes/"

// LayerPrefix is where noded's listener serves what a sandbox has changed in its
// root filesystem, as a layer of an image: LayerPrefix + id. When the answer begins
// the sandbox was read; LayerImageHeader names the image below, by digest.
const (
	LayerPrefix      = "/layers/"
	LayerImageHeader = "S0-Layer-Image"
)

// GenerationHeader, on a proxied request, names the generation that the caller
// means; another one answers 409.
const GenerationHeader = "S0-Generation"

// CodeHeader, among a failed call's metadata, is the error's code where it has one
// of its own. CodeImage is the code of errors about an image, whose text is for
// the template's owner.
const (
	CodeHeader = "S0-Code"
	CodeImage  = "image_not_ready"
)

// Codes of the proxy's refusals, each with 409: the sandbox has to be resumed first,
// or was since the caller looked. Nothing of the request has reached it.
const (
	CodePaused          = "paused"
	CodeStaleGeneration = "stale_generation"
)

// VolumePrefix is where noded's listener serves the files of a volume, of which no
// sandbox need know: VolumePrefix + id + procapi.PathFiles…, with procd's requests,
// answers and errors. Paths are the volume's own: absolute ones begin at its root, as
// relative ones do. VolumeHeader holds the Volume, as protobuf in URL-safe base64
// without padding. The caller's epoch lets it write as if it had the volume mounted.
const (
	VolumePrefix = "/volumes/"
	VolumeHeader = "S0-Volume"
)

// Backends of volumes.
const (
	BackendS0FS = "s0fs"
	BackendS3   = "s3"
)

// Codes of the answers about volumes that have one of their own.
const (
	CodeStaleEpoch = "stale_epoch" // FAILED_PRECONDITION: another owner has come since
	CodeVolumeBusy = "volume_busy" // FAILED_PRECONDITION: in use, as the message says
	CodeVolumeFull = "volume_full" // RESOURCE_EXHAUSTED: its limit

	// UNAVAILABLE: it is written to faster than one instant of it can be kept.
	CodeVolumeWritten = "volume_written"
)

// Codes of a saved sandbox that this node can't start as it was saved. The message says
// why, for its tenant.
const (
	CodeMemoryDiffers = "memory_incompatible" // its files can be resumed alone
	CodeImageDiffers  = "image_incompatible"
)

// SpecToWire translates a spec for the wire.
func SpecToWire(s sandbox.Spec) *Spec {
	return &Spec{
		Image: s.Image, Env: s.Env, MemoryBytes: s.MemoryBytes, CpuMillis: s.CPUMillis,
		DiskBytes: s.DiskBytes, PidsLimit: s.PidsLimit, RuntimeClass: string(s.RuntimeClass), Warm: warmToWire(s.Warm),
	}
}

// SpecFromWire translates and validates a spec from the wire.
func SpecFromWire(w *Spec) (sandbox.Spec, error) {
	s := sandbox.Spec{
		Image: w.GetImage(), Env: w.GetEnv(), MemoryBytes: w.GetMemoryBytes(), CPUMillis: w.GetCpuMillis(),
		DiskBytes: w.GetDiskBytes(), PidsLimit: w.GetPidsLimit(), RuntimeClass: sandbox.RuntimeClass(w.GetRuntimeClass()), Warm: warmFromWire(w.GetWarm()),
	}
	return s, s.Validate()
}

// Bounds of one SetPools: a node refuses what is beyond them.
const (
	MaxPools         = 1000
	MaxSetPoolsBytes = 7 << 20
)

// maxTextBytes bounds a reason or an error's text on the wire.
const maxTextBytes = 1024

// Text makes text for the wire of what others said: a registry, a process. The
// wire takes valid UTF-8 alone, and a message that can't be sent would end every
// watcher's stream.
func Text(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), maxTextBytes)], "\uFFFD")
}

// PoolFamily is what a pool's key shares with the keys of the pools that came
// before it and will come after it: all but the last part, which is the version.
func PoolFamily(key string) string {
	family, _, ok := strings.Cut(key, ":")
	if !ok {
		return ""
	}
	return family
}

// NotCounted is what is said of a figure that nobody has.
const NotCounted = -1
