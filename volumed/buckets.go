package volumed

import (
	"context"

	"s0.run/internal/errdefs"
	"s0.run/internal/volumeapi"
	"s0.run/volumed/internal/bucket"
	"s0.run/volumed/internal/work"
)

// withBuckets is what noded talks to: a server that has volumes that are buckets, too.
type withBuckets struct {
	*server
	buckets *bucket.Manager
}

var _ volumeapi.Server = (*withBuckets)(nil)

// errNoVersions is for what there is of volumes in the store alone.
var errNoVersions = errdefs.New(errdefs.InvalidArgument, "volume backend does not support snapshots, restores and forks")

// check refuses a bucket where there can be none.
func (s *withBuckets) check(v volumeapi.Volume) error {
	if s.cfg.CredentialKeys == "" {
		return errdefs.New(errdefs.Unavailable, "volumes that are buckets are unavailable on this node")
	}
	return v.Validate()
}

func (s *withBuckets) Info() volumeapi.Info {
	info := s.server.Info()
	info.Buckets = s.cfg.CredentialKeys != ""
	return info
}

// Create looks whether a bucket can be mounted: there is nothing to be made.
func (s *withBuckets) Create(ctx context.Context, req volumeapi.Create) (volumeapi.State, error) {
	if req.Volume.Bucket == nil {
		return s.server.Create(ctx, req)
	}
	if err := s.check(req.Volume); err != nil {
		return volumeapi.State{}, err
	}
	if req.Snapshot != "" {
		return volumeapi.State{}, errNoVersions
	}
	return volumeapi.State{ID: req.Volume.ID, Epoch: req.Volume.Epoch}, s.buckets.Check(ctx, req.Volume)
}

func (s *withBuckets) Use(ctx context.Context, req volumeapi.Use) (volumeapi.Mounted, error) {
	if req.Volume.Bucket == nil {
		return s.server.Use(ctx, req)
	}
	if err := s.check(req.Volume); err != nil {
		return volumeapi.Mounted{}, err
	}
	if !req.ReadOnly {
		return volumeapi.Mounted{}, errdefs.New(errdefs.InvalidArgument, "a bucket is mounted read-only alone")
	}
	path, err := s.buckets.Use(ctx, req.Volume, req.Use)
	return volumeapi.Mounted{Path: path}, err
}

func (s *withBuckets) Leave(ctx context.Context, req volumeapi.Leave) error {
	if s.buckets.Has(req.ID) {
		return s.buckets.Leave(ctx, req.ID, req.Use)
	}
	return s.server.Leave(ctx, req)
}

// Release has nothing to do for a bucket: nobody writes to it.
func (s *withBuckets) Release(ctx context.Context, v volumeapi.Volume) error {
	if v.Bucket == nil {
		return s.server.Release(ctx, v)
	}
	return nil
}

func (s *withBuckets) Remove(ctx context.Context, v volumeapi.Volume) error {
	if v.Bucket == nil {
		return s.server.Remove(ctx, v)
	}
	return s.buckets.Remove(ctx, v.ID)
}

func (s *withBuckets) Fork(ctx context.Context, req volumeapi.Fork) (volumeapi.State, error) {
	if req.Source.Bucket != nil || req.Volume.Bucket != nil {
		return volumeapi.State{}, errNoVersions
	}
	return s.server.Fork(ctx, req)
}

func (s *withBuckets) Snapshot(ctx context.Context, req volumeapi.Snapshot) (volumeapi.State, error) {
	if req.Volume.Bucket != nil {
		return volumeapi.State{}, errNoVersions
	}
	return s.server.Snapshot(ctx, req)
}

func (s *withBuckets) Restore(ctx context.Context, req volumeapi.Snapshot) (volumeapi.State, error) {
	if req.Volume.Bucket != nil {
		return volumeapi.State{}, errNoVersions
	}
	return s.server.Restore(ctx, req)
}

// shares has the volumes of file calls.
type shares struct {
	stored  *work.Manager
	buckets *bucket.Manager
}

func (s shares) Share(ctx context.Context, v volumeapi.Volume, open func(at string) (takeBack func(), err error)) error {
	if v.Bucket != nil {
		return s.buckets.Share(ctx, v, open)
	}
	return s.stored.Share(ctx, inStore(v), open)
}

func (s shares) Unshare(ctx context.Context, id string) error {
	if s.buckets.Has(id) {
		return s.buckets.Unshare(ctx, id)
	}
	return s.stored.Unshare(ctx, id)
}
