package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"connectrpc.com/connect"

	"s0.run/internal/nodeapi"
	"s0.run/internal/procapi"
)

// This node has no volumes.
const noVolumes = "volumes are unavailable on this node"

var errNoVolumes = connect.NewError(connect.CodeUnimplemented, errors.New(noVolumes))

// volumeFiles refuses the file calls of volumes.
func (s *Server) volumeFiles(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusNotImplemented)
	_ = json.NewEncoder(w).Encode(procapi.Error{Code: "unavailable", Message: noVolumes}) // the caller is gone otherwise
}

// CreateVolume implements the node API.
func (s *Server) CreateVolume(context.Context, *nodeapi.CreateVolumeRequest) (*nodeapi.CreateVolumeResponse, error) {
	return nil, errNoVolumes
}

// ForkVolume implements the node API.
func (s *Server) ForkVolume(context.Context, *nodeapi.ForkVolumeRequest) (*nodeapi.ForkVolumeResponse, error) {
	return nil, errNoVolumes
}

// DeleteVolume implements the node API.
func (s *Server) DeleteVolume(context.Context, *nodeapi.DeleteVolumeRequest) (*nodeapi.DeleteVolumeResponse, error) {
	return nil, errNoVolumes
}

// ReleaseVolume implements the node API.
func (s *Server) ReleaseVolume(context.Context, *nodeapi.ReleaseVolumeRequest) (*nodeapi.ReleaseVolumeResponse, error) {
	return nil, errNoVolumes
}

// SnapshotVolume implements the node API.
func (s *Server) SnapshotVolume(context.Context, *nodeapi.SnapshotVolumeRequest) (*nodeapi.SnapshotVolumeResponse, error) {
	return nil, errNoVolumes
}

// DeleteVolumeSnapshot implements the node API.
func (s *Server) DeleteVolumeSnapshot(context.Context, *nodeapi.DeleteVolumeSnapshotRequest) (*nodeapi.DeleteVolumeSnapshotResponse, error) {
	return nil, errNoVolumes
}

// RestoreVolume implements the node API.
func (s *Server) RestoreVolume(context.Context, *nodeapi.RestoreVolumeRequest) (*nodeapi.RestoreVolumeResponse, error) {
	return nil, errNoVolumes
}

// ListVolumes implements the node API.
func (s *Server) ListVolumes(context.Context, *nodeapi.ListVolumesRequest) (*nodeapi.ListVolumesResponse, error) {
	return nil, errNoVolumes
}

// MountVolume implements the node API.
func (s *Server) MountVolume(context.Context, *nodeapi.MountVolumeRequest) (*nodeapi.MountVolumeResponse, error) {
	return nil, errNoVolumes
}

// UnmountVolume implements the node API.
func (s *Server) UnmountVolume(context.Context, *nodeapi.UnmountVolumeRequest) (*nodeapi.UnmountVolumeResponse, error) {
	return nil, errNoVolumes
}
