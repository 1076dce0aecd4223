package fakenode

import (
	"context"
	"encoding/base64"
	"errors"
	"maps"
	"net/http"
	"slices"
	"sync"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"s0.run/internal/nodeapi"
)

// VolumeStore is a store of volumes, of one node or several. It holds its callers to what
// the node API says of epochs.
type VolumeStore struct {
	Name    string
	Buckets bool // can be volumes

	// OnCall may refuse or delay a call, by its name, before it takes effect, and After
	// lose its answer.
	OnCall, After func(ctx context.Context, call, volume string) error

	// Files serves a volume's files, and Copy is told when a volume or a snapshot becomes
	// what another is; nil: Proc has them, as if of a sandbox.
	Files func(volume string) http.Handler
	Copy  func(from, to string) error

	mu      sync.Mutex
	volumes map[string]*Volume
}

// Volume is a volume as the fake store has it.
type Volume struct {
	Epoch     uint64
	Of        *nodeapi.Volume // as a node was told of it last
	From      string          // the snapshot or volume that it began as
	Restored  string          // the snapshot that it went back to last
	Released  uint64          // the latest epoch that a node has let go
	Bytes     int64
	Snapshots map[string]bool
	Mounts    map[string]string // mount → sandbox
	ReadOnly  map[string]bool   // mounts
}

// VolumeBytes is what every new volume holds.
const VolumeBytes = 1_000_000_000

// Get is a volume; nil: there is none.
func (s *VolumeStore) Get(id string) *Volume {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.volumes[id]
	if v == nil {
		return nil
	}
	c := *v
	c.Snapshots, c.Mounts, c.ReadOnly = maps.Clone(v.Snapshots), maps.Clone(v.Mounts), maps.Clone(v.ReadOnly)
	return &c
}

// IDs lists the volumes.
func (s *VolumeStore) IDs() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.volumes))
}

// Fill says what a volume holds.
func (s *VolumeStore) Fill(id string, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.volumes[id].Bytes = bytes
}

func refused(code connect.Code, own, text string) error {
	e := connect.NewError(code, errors.New(text))
	if own != "" {
		e.Meta().Set(nodeapi.CodeHeader, own)
	}
	return e
}

// do runs one call on a volume, with its epoch checked.
func (s *VolumeStore) do(ctx context.Context, call string, of *nodeapi.Volume, f func(v *Volume) error) error {
	if s == nil {
		return refused(connect.CodeUnimplemented, "", "volumes are unavailable on this node")
	}
	if s.OnCall != nil {
		if err := s.OnCall(ctx, call, of.GetId()); err != nil {
			return err
		}
	}
	if err := s.apply(of, call == "CreateVolume" || call == "ForkVolume", f); err != nil {
		return err
	}
	if s.After != nil {
		return s.After(ctx, call, of.GetId())
	}
	return nil
}

func (s *VolumeStore) apply(of *nodeapi.Volume, create bool, f func(v *Volume) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.volumes[of.GetId()]
	switch {
	case v == nil && create:
		if s.volumes == nil {
			s.volumes = map[string]*Volume{}
		}
		v = &Volume{Bytes: VolumeBytes, Snapshots: map[string]bool{}, Mounts: map[string]string{}, ReadOnly: map[string]bool{}}
		s.volumes[of.GetId()] = v
	case v == nil:
		return refused(connect.CodeNotFound, "", "no such volume")
	case of.GetEpoch() < v.Epoch || of.GetEpoch() == v.Released:
		return refused(connect.CodeFailedPrecondition, nodeapi.CodeStaleEpoch, "the volume has another owner")
	}
	if err := f(v); err != nil {
		return err
	}
	v.Epoch, v.Of = of.GetEpoch(), proto.CloneOf(of)
	return nil
}

func (s *VolumeStore) copy(from, to string) error {
	if s.Copy == nil {
		return nil
	}
	return s.Copy(from, to)
}

func state(of *nodeapi.Volume, bytes int64) *nodeapi.VolumeState {
	return &nodeapi.VolumeState{Id: of.GetId(), Epoch: of.GetEpoch(), Bytes: bytes}
}

// CreateVolume implements the node API.
func (n *Node) CreateVolume(ctx context.Context, req *nodeapi.CreateVolumeRequest) (*nodeapi.CreateVolumeResponse, error) {
	err := n.Volumes.do(ctx, "CreateVolume", req.GetVolume(), func(v *Volume) error {
		from := n.Volumes.volumes[req.GetSnapshotVolume()]
		if req.GetSnapshot() != "" && (from == nil || !from.Snapshots[req.GetSnapshot()]) {
			delete(n.Volumes.volumes, req.GetVolume().GetId())
			return refused(connect.CodeNotFound, "", "no such snapshot")
		}
		v.From = req.GetSnapshot()
		if v.From == "" {
			return nil
		}
		return n.Volumes.copy(v.From, req.GetVolume().GetId())
	})
	return &nodeapi.CreateVolumeResponse{State: state(req.GetVolume(), VolumeBytes)}, err
}

// ForkVolume implements the node API.
func (n *Node) ForkVolume(ctx context.Context, req *nodeapi.ForkVolumeRequest) (*nodeapi.ForkVolumeResponse, error) {
	err := n.Volumes.do(ctx, "ForkVolume", req.GetVolume(), func(v *Volume) error {
		v.From = req.GetSource().GetId()
		return n.Volumes.copy(v.From, req.GetVolume().GetId())
	})
	return &nodeapi.ForkVolumeResponse{State: state(req.GetVolume(), VolumeBytes)}, err
}

// DeleteVolume implements the node API.
func (n *Node) DeleteVolume(ctx context.Context, req *nodeapi.DeleteVolumeRequest) (*nodeapi.DeleteVolumeResponse, error) {
	err := n.Volumes.do(ctx, "DeleteVolume", req.GetVolume(), func(*Volume) error {
		delete(n.Volumes.volumes, req.GetVolume().GetId())
		return nil
	})
	if connect.CodeOf(err) == connect.CodeNotFound {
		err = nil
	}
	return &nodeapi.DeleteVolumeResponse{}, err
}

// ReleaseVolume implements the node API.
func (n *Node) ReleaseVolume(ctx context.Context, req *nodeapi.ReleaseVolumeRequest) (*nodeapi.ReleaseVolumeResponse, error) {
	err := n.Volumes.do(ctx, "ReleaseVolume", req.GetVolume(), func(v *Volume) error {
		for m := range v.Mounts {
			if !v.ReadOnly[m] {
				return refused(connect.CodeFailedPrecondition, nodeapi.CodeVolumeBusy, "a sandbox writes to the volume")
			}
		}
		v.Released = req.GetVolume().GetEpoch()
		return nil
	})
	return &nodeapi.ReleaseVolumeResponse{}, err
}

// SnapshotVolume implements the node API.
func (n *Node) SnapshotVolume(ctx context.Context, req *nodeapi.SnapshotVolumeRequest) (*nodeapi.SnapshotVolumeResponse, error) {
	var bytes int64
	err := n.Volumes.do(ctx, "SnapshotVolume", req.GetVolume(), func(v *Volume) error {
		v.Snapshots[req.GetSnapshot()] = true
		bytes = v.Bytes
		return n.Volumes.copy(req.GetVolume().GetId(), req.GetSnapshot())
	})
	return &nodeapi.SnapshotVolumeResponse{Bytes: bytes}, err
}

// DeleteVolumeSnapshot implements the node API.
func (n *Node) DeleteVolumeSnapshot(ctx context.Context, req *nodeapi.DeleteVolumeSnapshotRequest) (*nodeapi.DeleteVolumeSnapshotResponse, error) {
	err := n.Volumes.do(ctx, "DeleteVolumeSnapshot", req.GetVolume(), func(v *Volume) error {
		delete(v.Snapshots, req.GetSnapshot())
		return nil
	})
	return &nodeapi.DeleteVolumeSnapshotResponse{}, err
}

// RestoreVolume implements the node API.
func (n *Node) RestoreVolume(ctx context.Context, req *nodeapi.RestoreVolumeRequest) (*nodeapi.RestoreVolumeResponse, error) {
	err := n.Volumes.do(ctx, "RestoreVolume", req.GetVolume(), func(v *Volume) error {
		if !v.Snapshots[req.GetSnapshot()] {
			return refused(connect.CodeNotFound, "", "no such snapshot")
		}
		v.Restored = req.GetSnapshot()
		return n.Volumes.copy(v.Restored, req.GetVolume().GetId())
	})
	return &nodeapi.RestoreVolumeResponse{}, err
}

// ListVolumes implements the node API.
func (n *Node) ListVolumes(context.Context, *nodeapi.ListVolumesRequest) (*nodeapi.ListVolumesResponse, error) {
	resp := &nodeapi.ListVolumesResponse{}
	if n.Volumes == nil {
		return nil, refused(connect.CodeUnimplemented, "", "volumes are unavailable on this node")
	}
	n.Volumes.mu.Lock()
	defer n.Volumes.mu.Unlock()
	for id, v := range n.Volumes.volumes {
		resp.Volumes = append(resp.Volumes, &nodeapi.VolumeState{Id: id, Epoch: v.Epoch, Bytes: v.Bytes})
	}
	return resp, nil
}

// MountVolume implements the node API.
func (n *Node) MountVolume(ctx context.Context, req *nodeapi.MountVolumeRequest) (*nodeapi.MountVolumeResponse, error) {
	return &nodeapi.MountVolumeResponse{}, n.mountAll(ctx, "MountVolume", req.GetId(), []*nodeapi.Mount{req.GetMount()})
}

// UnmountVolume implements the node API.
func (n *Node) UnmountVolume(ctx context.Context, req *nodeapi.UnmountVolumeRequest) (*nodeapi.UnmountVolumeResponse, error) {
	if n.Volumes == nil {
		return nil, refused(connect.CodeUnimplemented, "", "volumes are unavailable on this node")
	}
	if n.Volumes.OnCall != nil {
		if err := n.Volumes.OnCall(ctx, "UnmountVolume", req.GetMount()); err != nil {
			return nil, err
		}
	}
	n.Volumes.unmount(func(mount, _ string) bool { return mount == req.GetMount() })
	return &nodeapi.UnmountVolumeResponse{}, nil
}

// mountAll mounts what a sandbox is to have.
func (n *Node) mountAll(ctx context.Context, call, sandbox string, mounts []*nodeapi.Mount) error {
	for _, m := range mounts {
		err := n.Volumes.do(ctx, call, m.GetVolume(), func(v *Volume) error {
			v.Mounts[m.GetId()], v.ReadOnly[m.GetId()] = sandbox, m.GetReadOnly()
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *VolumeStore) unmount(which func(mount, sandbox string) bool) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.volumes {
		maps.DeleteFunc(v.Mounts, which)
	}
}

// volumeFiles has Proc serve a volume's files, as if of a sandbox by the volume's id.
func (n *Node) volumeFiles(w http.ResponseWriter, r *http.Request) {
	b, err := base64.RawURLEncoding.DecodeString(r.Header.Get(nodeapi.VolumeHeader))
	of := &nodeapi.Volume{}
	if err == nil {
		err = proto.Unmarshal(b, of)
	}
	if err != nil || of.GetId() != r.PathValue("id") {
		refuse(w, http.StatusBadRequest, "invalid_request")
		return
	}
	err = n.Volumes.do(r.Context(), "Files", of, func(*Volume) error { return nil })
	switch {
	case connect.CodeOf(err) == connect.CodeUnimplemented:
		refuse(w, http.StatusNotImplemented, "unavailable")
	case connect.CodeOf(err) == connect.CodeResourceExhausted:
		refuse(w, http.StatusTooManyRequests, nodeapi.CodeVolumeFull)
	case err != nil:
		refuse(w, http.StatusConflict, nodeapi.CodeStaleEpoch)
	default:
		r = r.Clone(r.Context())
		r.URL.Path, r.URL.RawPath = "/"+r.PathValue("path"), ""
		r.Header.Set(SandboxHeader, of.GetId())
		if n.Volumes.Files != nil {
			n.Volumes.Files(of.GetId()).ServeHTTP(w, r)
			return
		}
		n.Proc.ServeHTTP(w, r)
	}
}
