package volumed

import (
	"context"

	"s0.run/internal/errdefs"
	"s0.run/internal/volumeapi"
	"s0.run/volumed/internal/store"
	"s0.run/volumed/internal/work"
)

// server has the volumes that are in the store.
type server struct {
	manager *work.Manager
	store   *store.Store
	cfg     Config
}

// Info names the store: one of this machine alone bears its name.
func (s *server) Info() volumeapi.Info {
	name := s.cfg.Meta + " " + s.cfg.Bucket
	if s.cfg.Meta == "" || s.cfg.Bucket == "" || s.cfg.JuiceFS == "" {
		name = s.cfg.Node
	}
	return volumeapi.Info{Version: s.cfg.Version, Store: name}
}

// inStore is a volume as those are.
func inStore(v volumeapi.Volume) work.Volume {
	return work.Volume{ID: v.ID, Team: v.Team, Epoch: v.Epoch, UID: v.UID, GID: v.GID, Limit: v.Limit}
}

func (s *server) Create(ctx context.Context, req volumeapi.Create) (volumeapi.State, error) {
	if err := req.Volume.Validate(); err != nil {
		return volumeapi.State{}, err
	}
	var from *store.Version
	if req.Snapshot != "" {
		kept, err := s.store.Snapshot(req.SnapshotVolume, req.Snapshot)
		if err != nil {
			return volumeapi.State{}, err
		}
		from = &kept
	}
	head, err := s.manager.Create(ctx, inStore(req.Volume), from)
	return state(req.Volume.ID, head), err
}

func (s *server) Fork(ctx context.Context, req volumeapi.Fork) (volumeapi.State, error) {
	if err := req.Volume.Validate(); err != nil {
		return volumeapi.State{}, err
	}
	head, err := s.manager.Fork(ctx, inStore(req.Source), inStore(req.Volume), req.Captured)
	return state(req.Volume.ID, head), err
}

func (s *server) Use(ctx context.Context, req volumeapi.Use) (volumeapi.Mounted, error) {
	if err := req.Volume.Validate(); err != nil {
		return volumeapi.Mounted{}, err
	}
	if req.Use == "" {
		return volumeapi.Mounted{}, errdefs.New(errdefs.InvalidArgument, "a use without an id")
	}
	path, err := s.manager.Use(ctx, inStore(req.Volume), req.Use, req.ReadOnly)
	return volumeapi.Mounted{Path: path}, err
}

func (s *server) Leave(ctx context.Context, req volumeapi.Leave) error {
	return s.manager.Leave(ctx, req.ID, req.Use)
}

func (s *server) Commit(ctx context.Context, id string) (volumeapi.Committed, error) {
	head, clean, err := s.manager.Commit(ctx, id)
	return volumeapi.Committed{State: state(id, head), Clean: clean}, err
}

func (s *server) Capture(ctx context.Context, v volumeapi.Volume) (volumeapi.Captured, error) {
	token, err := s.manager.Capture(ctx, inStore(v))
	return volumeapi.Captured{Token: token}, err
}

func (s *server) Snapshot(ctx context.Context, req volumeapi.Snapshot) (volumeapi.State, error) {
	kept, err := s.manager.Snapshot(ctx, inStore(req.Volume), req.Snapshot, req.Captured)
	return state(req.Volume.ID, kept), err
}

func (s *server) Drop(_ context.Context, req volumeapi.Snapshot) error {
	return s.store.Drop(req.Volume.ID, req.Snapshot)
}

func (s *server) Restore(ctx context.Context, req volumeapi.Snapshot) (volumeapi.State, error) {
	head, err := s.manager.Restore(ctx, inStore(req.Volume), req.Snapshot)
	return state(req.Volume.ID, head), err
}

func (s *server) Release(ctx context.Context, v volumeapi.Volume) error {
	return s.manager.Release(ctx, v.ID, v.Epoch)
}

func (s *server) Remove(ctx context.Context, v volumeapi.Volume) error {
	return s.manager.Remove(ctx, inStore(v))
}

func (s *server) List(_ context.Context, ids []string) (volumeapi.States, error) {
	if len(ids) == 0 {
		var err error
		if ids, err = s.store.Volumes(); err != nil {
			return volumeapi.States{}, err
		}
	}
	all := volumeapi.States{States: []volumeapi.State{}}
	for _, id := range ids {
		st, err := s.manager.State(id)
		if errdefs.Is(err, errdefs.NotFound) {
			continue
		}
		if err != nil {
			return volumeapi.States{}, err
		}
		one := state(id, st.Version)
		one.Uncommitted = st.Uncommitted
		if st.Lost != nil {
			one.Lost = errdefs.From(st.Lost).Message
		}
		all.States = append(all.States, one)
	}
	return all, nil
}

func state(id string, v store.Version) volumeapi.State {
	return volumeapi.State{ID: id, Epoch: v.Epoch, Bytes: v.Bytes, Files: v.Files}
}
