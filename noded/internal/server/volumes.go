package server

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
	"s0.run/internal/sealed"
	"s0.run/internal/volumeapi"
	"s0.run/noded/internal/journal"
)

// Volumes is the node's volumed; package volumeapi has the contract.
type Volumes interface {
	Create(ctx context.Context, req volumeapi.Create) (volumeapi.State, error)
	Fork(ctx context.Context, req volumeapi.Fork) (volumeapi.State, error)
	Commit(ctx context.Context, id string) (volumeapi.Committed, error)
	Capture(ctx context.Context, v volumeapi.Volume) (volumeapi.Captured, error)
	Snapshot(ctx context.Context, req volumeapi.Snapshot) (volumeapi.State, error)
	Drop(ctx context.Context, req volumeapi.Snapshot) error
	Restore(ctx context.Context, req volumeapi.Snapshot) (volumeapi.State, error)
	Release(ctx context.Context, v volumeapi.Volume) error
	Remove(ctx context.Context, v volumeapi.Volume) error
	List(ctx context.Context, ids []string) (volumeapi.States, error)
	Info(ctx context.Context) (volumeapi.Info, error)
	http.RoundTripper // of file calls
}

// instantTries is how often a sandbox stands still for one call: what was too much to be
// captured the first time is committed before the next.
const instantTries = 3

// infoTimeout bounds the question which store the volumes are in.
const infoTimeout = time.Second

// volumedHost is volumed in requests, whose connections have no names.
const volumedHost = "volumed"

const noVolumes = "volumes are unavailable on this node"

var errNoVolumes = connect.NewError(connect.CodeUnimplemented, errors.New(noVolumes))

// volumeFiles passes a file call on to volumed.
func (s *Server) volumeFiles(w http.ResponseWriter, r *http.Request) {
	if s.cfg.Volumes == nil {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotImplemented)
		_ = json.NewEncoder(w).Encode(procapi.Error{Code: "unavailable", Message: noVolumes}) // the caller is gone otherwise
		return
	}
	out, err := routeVolume(r)
	if err != nil {
		s.refuse(w, err)
		return
	}
	s.exchange(w, r, s.cfg.Volumes, out)
}

// routeVolume builds volumed's request anew, as route does procd's.
func routeVolume(r *http.Request) (*http.Request, error) {
	id, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, nodeapi.VolumePrefix), "/")
	rest = "/" + rest
	if !isPlain(rest) || !below(rest, procapi.PathFiles) {
		return nil, errdefs.New(errdefs.NotFound, "not found")
	}
	named := &nodeapi.Volume{}
	b, err := base64.RawURLEncoding.DecodeString(r.Header.Get(nodeapi.VolumeHeader))
	if err == nil {
		err = proto.Unmarshal(b, named)
	}
	if err != nil || named.GetId() != id {
		return nil, errdefs.New(errdefs.InvalidArgument, "%s: not this volume", nodeapi.VolumeHeader).WithCause(err)
	}
	v := fromWire(named)
	if err := errors.Join(v.Validate(), checkBucket(named)); err != nil {
		return nil, err
	}
	out, err := outgoing(r, volumedHost, volumeapi.PathCalls+rest)
	if err != nil {
		return nil, err
	}
	out.Header.Set(volumeapi.VolumeHeader, v.Header())
	return out, nil
}

// volumes does a call, where there are volumes.
func volumes[Resp any](s *Server, call string, do func(Volumes) (Resp, error)) (resp Resp, err error) {
	if s.cfg.Volumes == nil {
		return resp, errNoVolumes
	}
	if resp, err = do(s.cfg.Volumes); err != nil {
		return resp, s.fail(call, volumeError(err))
	}
	return resp, nil
}

// volumeError says who is to be waited for: what volumed answers is meant for callers.
func volumeError(err error) error {
	if errors.Is(err, volumeapi.ErrDown) {
		return errdefs.New(errdefs.Unavailable, "the node's volumes do not answer").WithRetryAfter(time.Second).WithCause(err)
	}
	return err
}

func fromWire(v *nodeapi.Volume) volumeapi.Volume {
	out := volumeapi.Volume{ID: v.GetId(), Team: v.GetTeam(), Epoch: v.GetEpoch(), UID: v.GetUid(), GID: v.GetGid(), Limit: v.GetLimitBytes()}
	if b := v.GetS3(); b != nil {
		c := b.GetCredential()
		out.Bucket = &volumeapi.Bucket{
			Provider: b.GetProvider(), Name: b.GetBucket(), Prefix: b.GetPrefix(), Region: b.GetRegion(), Endpoint: b.GetEndpoint(),
			Kind: c.GetKind(), Version: c.GetVersion(), Key: c.GetKey(), Sealed: c.GetData(),
		}
	}
	return out
}

func volumeState(s volumeapi.State) *nodeapi.VolumeState {
	return &nodeapi.VolumeState{Id: s.ID, Epoch: s.Epoch, Bytes: s.Bytes, Files: s.Files, Uncommitted: s.Uncommitted}
}

// mountsFromWire are a claim's or a sandbox's mounts.
func mountsFromWire(all []*nodeapi.Mount) ([]journal.Mount, error) {
	var mounts []journal.Mount
	for _, m := range all {
		mount, err := mountFromWire(m)
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, mount)
	}
	return mounts, nil
}

func mountFromWire(m *nodeapi.Mount) (journal.Mount, error) {
	v := m.GetVolume()
	if err := errors.Join(fromWire(v).Validate(), checkBucket(v)); err != nil {
		return journal.Mount{}, err
	}
	return journal.Mount{
		ID: m.GetId(), MountPoint: m.GetMountPoint(), ReadOnly: m.GetReadOnly(), Time: time.Now().UTC(),
		Volume: journal.Volume{ID: v.GetId(), Team: v.GetTeam(), Epoch: v.GetEpoch(), UID: v.GetUid(), GID: v.GetGid(), LimitBytes: v.GetLimitBytes(), Bucket: bucketFromWire(v.GetS3())},
	}, nil
}

func bucketFromWire(b *nodeapi.S3Bucket) *journal.Bucket {
	if b == nil {
		return nil
	}
	return &journal.Bucket{
		Provider: b.GetProvider(), Name: b.GetBucket(), Prefix: b.GetPrefix(), Region: b.GetRegion(), Endpoint: b.GetEndpoint(),
		Credential: nodeapi.CredentialsFromWire([]*nodeapi.SealedCredential{b.GetCredential()})[0],
	}
}

// checkBucket refuses what has a bucket and is none, or the other way round, or carries
// more than a credential is.
func checkBucket(v *nodeapi.Volume) error {
	is := v.GetBackend() == nodeapi.BackendS3
	if is != (v.GetS3() != nil) || len(v.GetS3().GetCredential().GetData()) > sealed.MaxBlob {
		return errdefs.New(errdefs.InvalidArgument, "volume %.64q: not a bucket as backend %.16q has it", v.GetId(), v.GetBackend())
	}
	return nil
}

// CreateVolume implements the node API.
func (s *Server) CreateVolume(ctx context.Context, req *nodeapi.CreateVolumeRequest) (*nodeapi.CreateVolumeResponse, error) {
	return volumes(s, "CreateVolume", func(v Volumes) (*nodeapi.CreateVolumeResponse, error) {
		if err := checkBucket(req.GetVolume()); err != nil {
			return nil, err
		}
		state, err := v.Create(ctx, volumeapi.Create{Volume: fromWire(req.GetVolume()), SnapshotVolume: req.GetSnapshotVolume(), Snapshot: req.GetSnapshot()})
		return &nodeapi.CreateVolumeResponse{State: volumeState(state)}, err
	})
}

// ForkVolume implements the node API.
func (s *Server) ForkVolume(ctx context.Context, req *nodeapi.ForkVolumeRequest) (*nodeapi.ForkVolumeResponse, error) {
	return volumes(s, "ForkVolume", func(v Volumes) (*nodeapi.ForkVolumeResponse, error) {
		var state volumeapi.State
		err := s.instant(ctx, v, fromWire(req.GetSource()), func(captured string) (err error) {
			state, err = v.Fork(ctx, volumeapi.Fork{Source: fromWire(req.GetSource()), Volume: fromWire(req.GetVolume()), Captured: captured})
			return err
		})
		return &nodeapi.ForkVolumeResponse{State: volumeState(state)}, err
	})
}

// DeleteVolume implements the node API.
func (s *Server) DeleteVolume(ctx context.Context, req *nodeapi.DeleteVolumeRequest) (*nodeapi.DeleteVolumeResponse, error) {
	return volumes(s, "DeleteVolume", func(v Volumes) (*nodeapi.DeleteVolumeResponse, error) {
		return &nodeapi.DeleteVolumeResponse{}, v.Remove(ctx, fromWire(req.GetVolume()))
	})
}

// ReleaseVolume implements the node API.
func (s *Server) ReleaseVolume(ctx context.Context, req *nodeapi.ReleaseVolumeRequest) (*nodeapi.ReleaseVolumeResponse, error) {
	return volumes(s, "ReleaseVolume", func(v Volumes) (*nodeapi.ReleaseVolumeResponse, error) {
		return &nodeapi.ReleaseVolumeResponse{}, v.Release(ctx, fromWire(req.GetVolume()))
	})
}

// SnapshotVolume implements the node API.
func (s *Server) SnapshotVolume(ctx context.Context, req *nodeapi.SnapshotVolumeRequest) (*nodeapi.SnapshotVolumeResponse, error) {
	return volumes(s, "SnapshotVolume", func(v Volumes) (*nodeapi.SnapshotVolumeResponse, error) {
		var state volumeapi.State
		err := s.instant(ctx, v, fromWire(req.GetVolume()), func(captured string) (err error) {
			state, err = v.Snapshot(ctx, volumeapi.Snapshot{Volume: fromWire(req.GetVolume()), Snapshot: req.GetSnapshot(), Captured: captured})
			return err
		})
		return &nodeapi.SnapshotVolumeResponse{Bytes: state.Bytes}, err
	})
}

// instant has something made of what a volume is at one instant.
func (s *Server) instant(ctx context.Context, v Volumes, of volumeapi.Volume, use func(captured string) error) (err error) {
	for range instantTries {
		var captured string
		if captured, err = s.capture(ctx, v, of); err == nil {
			err = use(captured)
		}
		if !errdefs.Is(err, errdefs.Unavailable) || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// capture names the instant; empty: nothing writes to the volume. What was written is
// committed before, so that its sandbox stands still for the rest alone.
func (s *Server) capture(ctx context.Context, v Volumes, of volumeapi.Volume) (token string, err error) {
	if !s.cfg.Lifecycle.Writes(of.ID) {
		return "", nil
	}
	if _, err := v.Commit(ctx, of.ID); err != nil {
		return "", err
	}
	err = s.cfg.Lifecycle.Still(ctx, of.ID, func(ctx context.Context) error {
		captured, err := v.Capture(ctx, of)
		token = captured.Token
		return err
	})
	return token, err
}

// DeleteVolumeSnapshot implements the node API.
func (s *Server) DeleteVolumeSnapshot(ctx context.Context, req *nodeapi.DeleteVolumeSnapshotRequest) (*nodeapi.DeleteVolumeSnapshotResponse, error) {
	return volumes(s, "DeleteVolumeSnapshot", func(v Volumes) (*nodeapi.DeleteVolumeSnapshotResponse, error) {
		return &nodeapi.DeleteVolumeSnapshotResponse{}, v.Drop(ctx, volumeapi.Snapshot{Volume: fromWire(req.GetVolume()), Snapshot: req.GetSnapshot()})
	})
}

// RestoreVolume implements the node API.
func (s *Server) RestoreVolume(ctx context.Context, req *nodeapi.RestoreVolumeRequest) (*nodeapi.RestoreVolumeResponse, error) {
	return volumes(s, "RestoreVolume", func(v Volumes) (*nodeapi.RestoreVolumeResponse, error) {
		var state volumeapi.State
		restore := func(ctx context.Context) (err error) {
			state, err = v.Restore(ctx, volumeapi.Snapshot{Volume: fromWire(req.GetVolume()), Snapshot: req.GetSnapshot()})
			return err
		}
		err := s.cfg.Lifecycle.Remount(ctx, req.GetVolume().GetId(), restore)
		return &nodeapi.RestoreVolumeResponse{State: volumeState(state)}, err
	})
}

// ListVolumes implements the node API.
func (s *Server) ListVolumes(ctx context.Context, req *nodeapi.ListVolumesRequest) (*nodeapi.ListVolumesResponse, error) {
	return volumes(s, "ListVolumes", func(v Volumes) (*nodeapi.ListVolumesResponse, error) {
		states, err := v.List(ctx, req.GetIds())
		resp := &nodeapi.ListVolumesResponse{}
		for _, state := range states.States {
			resp.Volumes = append(resp.Volumes, volumeState(state))
		}
		return resp, err
	})
}

// MountVolume implements the node API.
func (s *Server) MountVolume(ctx context.Context, req *nodeapi.MountVolumeRequest) (*nodeapi.MountVolumeResponse, error) {
	return volumes(s, "MountVolume", func(Volumes) (*nodeapi.MountVolumeResponse, error) {
		id, err := parseID(req.GetId())
		if err != nil {
			return nil, err
		}
		mount, err := mountFromWire(req.GetMount())
		if err != nil {
			return nil, err
		}
		sb, err := s.cfg.Lifecycle.Mount(ctx, id, sandbox.Generation(req.GetGeneration()), mount)
		if err != nil {
			return nil, err
		}
		for _, m := range sb.Wire().GetMounts() {
			if m.GetId() == mount.ID {
				return &nodeapi.MountVolumeResponse{State: m}, nil
			}
		}
		return nil, errdefs.New(errdefs.Unavailable, "the volume was unmounted again")
	})
}

// UnmountVolume implements the node API.
func (s *Server) UnmountVolume(ctx context.Context, req *nodeapi.UnmountVolumeRequest) (*nodeapi.UnmountVolumeResponse, error) {
	return volumes(s, "UnmountVolume", func(Volumes) (*nodeapi.UnmountVolumeResponse, error) {
		id, err := parseID(req.GetId())
		if err != nil {
			return nil, err
		}
		return &nodeapi.UnmountVolumeResponse{}, s.cfg.Lifecycle.Unmount(ctx, id, sandbox.Generation(req.GetGeneration()), req.GetMount())
	})
}

// volumeSupport tells what this node can do with volumes, as far as volumed answers.
func (s *Server) volumeSupport(ctx context.Context) *nodeapi.VolumeSupport {
	if s.cfg.Volumes == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	who, err := s.cfg.Volumes.Info(ctx)
	if err != nil {
		s.cfg.Log.Warn("asking which store volumes are in", "error", err)
		return nil
	}
	return &nodeapi.VolumeSupport{Store: who.Store, S3: who.Buckets}
}
