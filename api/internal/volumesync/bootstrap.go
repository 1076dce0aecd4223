package volumesync

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/store"
	"s0.run/api/internal/volumes"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/procapi"
)

// Begin is what a new replica asks for.
type Begin struct {
	User              uuid.UUID
	Name, Description string // of the snapshot
	Names             store.SyncNames
}

// Begun is what a replica begins with: the snapshot has everything up to an entry, and
// what came later it may have or not.
type Begun struct {
	Snapshot store.VolumeSnapshot
	After    int64
}

// Bootstrap keeps what a volume is for a replica to begin with, if it can have the names of
// all that is in it.
func (k *Keeper) Bootstrap(ctx context.Context, of Of, b Begin) (begun Begun, err error) {
	if err := k.begin(ctx, of); err != nil {
		return begun, err
	}
	err = k.within(ctx, of, func(ctx context.Context, s *session) error {
		if err := s.look(ctx, true); err != nil {
			return err
		}
		if issues := (names{b.Names}).issues(s.paths()); len(issues) > 0 {
			return errdefs.New(errdefs.Conflict, "the replica can't have all names of the volume").WithDetails(map[string]any{
				"reason": reasonNamespace, "snapshot_id": "", "capabilities": capabilities(b.Names), "issues": issues,
			})
		}
		expires := time.Now().Add(bootstrapLife)
		begun.After = s.sync.Head
		begun.Snapshot, err = k.cfg.Volumes.Snapshot(ctx, volumes.SnapshotRequest{
			TeamID: of.Team, UserID: b.User, Volume: of.Volume, Name: b.Name, Description: b.Description, ExpiresAt: &expires,
		})
		return err
	})
	return begun, err
}

func capabilities(n store.SyncNames) map[string]bool {
	return map[string]bool{
		"case_sensitive": n.CaseSensitive, "unicode_normalization_insensitive": n.UnicodeInsensitive, "windows_compatible_paths": n.Windows,
	}
}

// paths are those that the journal has, and what else is in the tree.
func (s *session) paths() (all []string) {
	for name := range s.found.entries {
		if !s.found.other(name) {
			all = append(all, name)
		}
	}
	return all
}

// Archive writes the files and directories of a snapshot, as a compressed tar. started is
// called before the first byte: an error without it is the answer.
func (k *Keeper) Archive(ctx context.Context, of Of, snapshot uuid.UUID, w io.Writer, started func()) error {
	free, ok := k.teams.Enter(of.Team)
	if !ok {
		return errTeams
	}
	defer free()
	return k.cfg.Volumes.ReadSnapshot(ctx, of.Team, of.Volume, snapshot, func(node string, v *nodeapi.Volume) error {
		resp, err := k.cfg.Plane.StreamAt(ctx, node, v, dataplane.Request{
			Method: http.MethodGet, Path: procapi.PathFiles + "/archive", Query: url.Values{"path": {"."}}, Timeout: workTime,
		})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		started()
		return repack(w, resp.Body)
	})
}

// repack passes on what is kept alike of an archive.
func repack(w io.Writer, r io.Reader) error {
	packed, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return err
	}
	in, out := tar.NewReader(r), tar.NewWriter(packed)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return errors.Join(out.Close(), packed.Close())
		}
		if err != nil {
			return fmt.Errorf("reading the archive: %w", err)
		}
		if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir {
			continue
		}
		h = &tar.Header{Typeflag: h.Typeflag, Name: h.Name, Size: h.Size, Mode: h.Mode, ModTime: h.ModTime}
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
	}
}
