package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
)

// Mount is a volume that a sandbox has, or a claim that is under way.
type Mount struct {
	ID        uuid.UUID
	VolumeID  uuid.UUID
	TeamID    uuid.UUID
	ClaimID   uuid.UUID
	SandboxID *sandbox.ID // nil: its claim is under way
	Point     string
	ReadOnly  bool
	CreatedAt time.Time
}

const mountColumns = "id, volume_id, team_id, claim_id, sandbox_id, mount_point, read_only, created_at"

// MountWant is a volume that a sandbox shall have.
type MountWant struct {
	Volume   uuid.UUID
	Point    string
	ReadOnly bool
}

// Held is a mount and the volume at the epoch that the mount has.
type Held struct {
	Mount  Mount
	Volume Volume
}

// Holder is who takes volumes.
type Holder struct {
	Team    uuid.UUID
	Claim   uuid.UUID
	Sandbox sandbox.ID // empty: the claim is under way
	Node    string

	// Choose says which node's the volumes shall be, in place of Node, as they are when nobody
	// else changes them: it must not wait. nil: Node is known.
	Choose func([]Volume) (node string, err error)

	// Released are volumes that the node that had them has let go, each at which epoch:
	// who writes to them may be another node.
	Released map[uuid.UUID]int64
}

// Elsewhere says that another node may write to a volume, and has to let it go first.
type Elsewhere struct{ Volume Volume }

func (e *Elsewhere) Error() string {
	return fmt.Sprintf("volume %s is with node %s", e.Volume.ID, e.Volume.Node)
}

// TakeVolumes gives volumes to a holder, all or none, for as long as lease: then they are
// free again, unless they have become a sandbox's. A volume that one sandbox alone may
// have is at a new epoch then.
func (s *Store) TakeVolumes(ctx context.Context, h Holder, wants []MountWant, lease time.Duration) (held []Held, err error) {
	ids := make([]uuid.UUID, len(wants))
	for i, w := range wants {
		ids[i] = w.Volume
	}
	var volumes map[uuid.UUID]*locked
	lock := func(b *pgx.Batch) { volumes = queueLocks(b, h.Team, ids) }
	held = make([]Held, len(wants))
	err = s.inTwoTrips(ctx, "taking volumes", lock, func(b *pgx.Batch) error {
		if err := h.choose(volumes, wants); err != nil {
			return err
		}
		for i, w := range wants {
			if err := h.take(b, volumes[w.Volume], w, lease, &held[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return held, nil
}

// TakeVolumeAtHome is TakeVolumes of one volume by a claim that is under way, at the node
// that had it last: one round trip. ok is false, and nothing is taken, where that is
// another node, or somebody has the volume, or none can be had: TakeVolumes says what it is.
func (s *Store) TakeVolumeAtHome(ctx context.Context, h Holder, w MountWant, lease time.Duration) (held Held, ok bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	m := Mount{ID: uuid.New(), VolumeID: w.Volume, TeamID: h.Team, ClaimID: h.Claim, Point: w.Point, ReadOnly: w.ReadOnly}
	rows, _ := s.pool.Query(ctx, "SELECT "+volumeColumns+" FROM s0_take_volume($1, $2, $3, $4, $5, $6, $7, $8)",
		m.TeamID, m.VolumeID, h.Node, m.ClaimID, m.ID, m.Point, m.ReadOnly, lease)
	v, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Volume])
	if errors.Is(err, pgx.ErrNoRows) {
		return Held{}, false, nil
	}
	m.CreatedAt = v.UpdatedAt // of one transaction
	return Held{m, v}, err == nil, classify(err, "taking a volume")
}

// locked is a volume that nobody else changes, and who has it.
type locked struct {
	Volume
	mounts []Mount
}

// removeStale forgets mounts of volumes that are locked whose leases are over. One that is
// becoming its sandbox's at this moment is waited for: who looks next sees it.
func removeStale(ctx context.Context, tx pgx.Tx, volumes []uuid.UUID) error {
	_, err := tx.Exec(ctx, removeStaleSQL, volumes)
	return err
}

const removeStaleSQL = "DELETE FROM volume_mounts WHERE volume_id = ANY ($1) AND lease_until <= now()"

// lockVolumes locks volumes in the order of their ids: two who want several never wait for
// each other. It takes leases away that are over, all in one round trip: a claim waits for it.
func lockVolumes(ctx context.Context, tx pgx.Tx, team uuid.UUID, ids []uuid.UUID) (map[uuid.UUID]*locked, error) {
	b := &pgx.Batch{}
	all := queueLocks(b, team, ids)
	return all, tx.SendBatch(ctx, b).Close()
}

// queueLocks has a batch do that. What it answers is filled when the batch was sent.
func queueLocks(b *pgx.Batch, team uuid.UUID, ids []uuid.UUID) map[uuid.UUID]*locked {
	all := make(map[uuid.UUID]*locked, len(ids))
	b.Queue("SELECT "+volumeColumns+` FROM volumes
		WHERE team_id = $1 AND id = ANY ($2) AND state = 'ready' ORDER BY id FOR UPDATE`, team, ids).Query(func(rows pgx.Rows) error {
		list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Volume])
		for _, v := range list {
			all[v.ID] = &locked{Volume: v}
		}
		return err
	})
	b.Queue(removeStaleSQL, ids)
	for _, id := range ids {
		b.Queue(mountsOfVolumeSQL, id, mountsShown).Query(func(rows pgx.Rows) error {
			v := all[id]
			if v == nil {
				return notFound("volume")
			}
			var err error
			v.mounts, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Mount])
			return err
		})
	}
	return all
}

// choose has the holder's node chosen, if it is not known.
func (h *Holder) choose(volumes map[uuid.UUID]*locked, wants []MountWant) (err error) {
	if h.Choose == nil {
		return nil
	}
	list := make([]Volume, len(wants))
	for i, w := range wants {
		list[i] = volumes[w.Volume].Volume
	}
	h.Node, err = h.Choose(list)
	return err
}

// take has a batch give the holder a volume; held is filled when the batch was sent.
func (h *Holder) take(b *pgx.Batch, v *locked, w MountWant, lease time.Duration, held *Held) error {
	if v.AccessMode == ReadWriteMany {
		return errdefs.New(errdefs.InvalidArgument, "a volume of access mode %s can't be mounted in a sandbox", ReadWriteMany)
	}
	mine := slices.ContainsFunc(v.mounts, func(m Mount) bool { return m.ClaimID == h.Claim })
	if mine || len(v.mounts) > 0 && v.AccessMode == ReadWriteOnce {
		return inUse("the volume is mounted already", v.mounts)
	}
	v.mounts = append(v.mounts, Mount{ClaimID: h.Claim, Point: w.Point})
	held.Volume = v.Volume
	if err := h.hold(b, &held.Volume); err != nil {
		return err
	}
	var id *sandbox.ID
	if h.Sandbox != "" {
		id = &h.Sandbox
	}
	b.Queue(`INSERT INTO volume_mounts (id, volume_id, team_id, claim_id, sandbox_id, mount_point, read_only, lease_until)
		VALUES ($1, $2, $3, $4, $5, $6, $7, now() + $8::interval) RETURNING `+mountColumns,
		uuid.New(), v.ID, h.Team, h.Claim, id, w.Point, w.ReadOnly || v.AccessMode == ReadOnlyMany, lease).Query(func(rows pgx.Rows) (err error) {
		held.Mount, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Mount])
		if violates(err, "volume_mounts_claim_id_mount_point_key") {
			return errdefs.New(errdefs.Conflict, "another volume is mounted at %s", w.Point)
		}
		return err
	})
	return nil
}

// hold has a batch make a volume the holder's node's, and tell how it is then. What sandboxes
// only read needs no writer, and any node may have it.
func (h *Holder) hold(b *pgx.Batch, v *Volume) error {
	if v.AccessMode == ReadOnlyMany {
		b.Queue("UPDATE volumes SET nodes = s0_with(nodes, $2) WHERE id = $1", v.ID, h.Node)
		return nil
	}
	if released, ok := h.Released[v.ID]; v.Node != h.Node && (!ok || released != v.Epoch) {
		return &Elsewhere{*v}
	}
	b.Queue(`UPDATE volumes SET node = $2, epoch = epoch + 1, nodes = s0_with(nodes, $2), updated_at = now()
		WHERE id = $1 RETURNING `+volumeColumns, v.ID, h.Node).Query(func(rows pgx.Rows) (err error) {
		*v, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Volume])
		return err
	})
	return nil
}

// RetakeVolumes reads the volumes that a sandbox has. With renew, they are the holder's
// node's from now on, at new epochs.
func (s *Store) RetakeVolumes(ctx context.Context, h Holder, renew bool) (held []Held, err error) {
	has, err := s.Mounts(ctx, h.Team, h.Sandbox)
	if err != nil || len(has) == 0 {
		return nil, err
	}
	ids := make([]uuid.UUID, len(has))
	for i, m := range has {
		ids[i] = m.VolumeID
	}
	err = s.inTx(ctx, "taking a sandbox's volumes again", func(ctx context.Context, tx pgx.Tx) error {
		volumes, err := lockVolumes(ctx, tx, h.Team, ids)
		if err != nil {
			return err
		}
		// One may have been unmounted while its volume was waited for, and be another's.
		if has, err = mountsOfSandbox(ctx, tx, h.Team, h.Sandbox, ids); err != nil {
			return err
		}
		b := &pgx.Batch{}
		held = make([]Held, len(has))
		for i, m := range has {
			held[i] = Held{m, volumes[m.VolumeID].Volume}
			if !renew {
				continue
			}
			if err := h.hold(b, &held[i].Volume); err != nil {
				return err
			}
		}
		if b.Len() == 0 {
			return nil
		}
		return tx.SendBatch(ctx, b).Close()
	})
	return held, err
}

// bindMountsSQL makes the volumes that a claim took its sandbox's, in the transaction that
// stores it.
const bindMountsSQL = `UPDATE volume_mounts SET sandbox_id = $2, lease_until = NULL
	WHERE claim_id = $1 AND (lease_until > now() OR sandbox_id = $2)`

// bound tells whether a claim's volumes were its sandbox's by then, all of them.
func (n *NewSandbox) bound(tag pgconn.CommandTag) error {
	if tag.RowsAffected() != int64(n.Mounts) {
		return errdefs.New(errdefs.Conflict, "the claim took so long that its volumes are free again")
	}
	return nil
}

// insertMounted is insertSandbox for a claim with volumes: they are the sandbox's when it
// is stored, or it is not. That takes two round trips where no other row is in its
// way.
func insertMounted(ctx context.Context, conns *pgxpool.Pool, n NewSandbox) (Sandbox, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var in inserted
	var tag pgconn.CommandTag
	first := func(b *pgx.Batch) {
		sql, args := n.insertion()
		b.Queue(sql, args...).Query(func(rows pgx.Rows) (err error) {
			in, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[inserted])
			return err
		})
		b.Queue(bindMountsSQL, n.ClaimID, n.ID).Exec(func(t pgconn.CommandTag) error {
			tag = t
			return nil
		})
	}
	err := twoTrips(ctx, conns, first, func(*pgx.Batch) error { return n.bound(tag) })
	if errors.Is(err, pgx.ErrNoRows) {
		return insertMountedAnyway(ctx, conns, n)
	}
	if err != nil {
		return Sandbox{}, classify(err, "storing a claim")
	}
	return n.stored(in), nil
}

// insertMountedAnyway looks at what is in the way of a row.
func insertMountedAnyway(ctx context.Context, conns *pgxpool.Pool, n NewSandbox) (made Sandbox, err error) {
	err = pgx.BeginFunc(ctx, conns, func(tx pgx.Tx) error {
		if made, err = insertSandbox(ctx, tx, n); err != nil {
			return err
		}
		return bindMounts(ctx, tx, n)
	})
	if errors.Is(err, ErrIDTaken) || errors.Is(err, ErrKeyTaken) {
		return made, err
	}
	return made, classify(err, "storing a claim")
}

func bindMounts(ctx context.Context, tx pgx.Tx, n NewSandbox) error {
	tag, err := tx.Exec(ctx, bindMountsSQL, n.ClaimID, n.ID)
	if err != nil {
		return err
	}
	return n.bound(tag)
}

// FreeVolumes gives back what a claim took that has no sandbox.
func (s *Store) FreeVolumes(ctx context.Context, claim uuid.UUID) error {
	_, err := s.pool.Exec(ctx, "DELETE FROM volume_mounts WHERE claim_id = $1 AND sandbox_id IS NULL", claim)
	return classify(err, "giving volumes back")
}

// FinishMount records that a running sandbox has a volume. It fails when its lease is over.
func (s *Store) FinishMount(ctx context.Context, team, id uuid.UUID) error {
	tag, err := s.pool.Exec(ctx, `UPDATE volume_mounts SET lease_until = NULL
		WHERE team_id = $1 AND id = $2 AND (lease_until > now() OR lease_until IS NULL)`, team, id)
	if err == nil && tag.RowsAffected() == 0 {
		return errdefs.New(errdefs.Conflict, "the sandbox has ended, or the mount took too long")
	}
	return classify(err, "recording a mount")
}

// BeginUnmount reads a sandbox as it is by now. If it is paused, the mount is not its own any
// more for as long as lease: who resumes it meanwhile does so without, and nobody else has
// the volume either.
func (s *Store) BeginUnmount(ctx context.Context, row Sandbox, id uuid.UUID, lease time.Duration) (now Sandbox, err error) {
	err = s.inTx(ctx, "unmounting a volume", func(ctx context.Context, tx pgx.Tx) error {
		rows, _ := tx.Query(ctx, "SELECT "+sandboxColumns+" FROM sandboxes WHERE team_id = $1 AND id = $2 FOR UPDATE", row.TeamID, row.ID)
		now, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Sandbox])
		if errors.Is(err, pgx.ErrNoRows) {
			return notFound("sandbox")
		}
		if err != nil {
			return err
		}
		if now.Status != sandbox.Paused {
			return nil
		}
		_, err = tx.Exec(ctx, `UPDATE volume_mounts SET lease_until = now() + $4::interval
			WHERE team_id = $1 AND sandbox_id = $2 AND id = $3`, row.TeamID, row.ID, id, lease)
		return err
	})
	return now, err
}

// CancelUnmount gives a sandbox that is paused still its mount back.
func (s *Store) CancelUnmount(ctx context.Context, row Sandbox, id uuid.UUID) error {
	return s.inTx(ctx, "keeping a mount", func(ctx context.Context, tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, "SELECT FROM sandboxes WHERE team_id = $1 AND id = $2 AND status = 'paused' FOR UPDATE", row.TeamID, row.ID)
		if err != nil || tag.RowsAffected() == 0 {
			return err // it was resumed without
		}
		_, err = tx.Exec(ctx, `UPDATE volume_mounts SET lease_until = NULL
			WHERE team_id = $1 AND sandbox_id = $2 AND id = $3`, row.TeamID, row.ID, id)
		return err
	})
}

// RemoveMount forgets a mount that its sandbox does not have any more.
func (s *Store) RemoveMount(ctx context.Context, team, id uuid.UUID) error {
	_, err := s.pool.Exec(ctx, "DELETE FROM volume_mounts WHERE team_id = $1 AND id = $2", team, id)
	return classify(err, "removing a mount")
}

// RemoveStaleMounts forgets what nobody has finished. Who has one locked removes it, or
// finishes it after all: nobody is waited for.
func (s *Store) RemoveStaleMounts(ctx context.Context) error {
	_, err := s.pool.Exec(ctx, `DELETE FROM volume_mounts WHERE id IN (
		SELECT id FROM volume_mounts WHERE lease_until <= now() FOR UPDATE SKIP LOCKED)`)
	return classify(err, "removing stale mounts")
}

// Mounts lists what a sandbox of a team has mounted, the oldest first.
func (s *Store) Mounts(ctx context.Context, team uuid.UUID, id sandbox.ID) ([]Mount, error) {
	list, err := mountsOfSandbox(ctx, s.pool, team, id, nil)
	return list, classify(err, "reading a sandbox's mounts")
}

// mountsOfSandbox reads what a sandbox has mounted of these volumes; nil: of all.
func mountsOfSandbox(ctx context.Context, q querier, team uuid.UUID, id sandbox.ID, of []uuid.UUID) ([]Mount, error) {
	rows, _ := q.Query(ctx, "SELECT "+mountColumns+` FROM volume_mounts
		WHERE team_id = $1 AND sandbox_id = $2 AND ($3::uuid[] IS NULL OR volume_id = ANY ($3)) AND lease_until IS NULL
		ORDER BY created_at, mount_point`, team, id, of)
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Mount])
}

const mountsOfVolumeSQL = "SELECT " + mountColumns + ` FROM volume_mounts
	WHERE volume_id = $1 AND (lease_until IS NULL OR lease_until > now()) ORDER BY created_at LIMIT $2`

func mountsOfVolume(ctx context.Context, tx pgx.Tx, volume uuid.UUID) ([]Mount, error) {
	rows, _ := tx.Query(ctx, mountsOfVolumeSQL, volume, mountsShown)
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Mount])
}

// mountsShown bounds the mounts of a volume that a refusal names.
const mountsShown = 20

// inUse is the refusal of what needs a volume that nobody has.
func inUse(message string, mounts []Mount) error {
	list := []map[string]any{}
	for _, m := range mounts {
		one := map[string]any{"mount_point": m.Point}
		if m.SandboxID != nil {
			one["sandbox_id"] = *m.SandboxID
		}
		list = append(list, one)
	}
	return errdefs.New(errdefs.Conflict, "%s", message).WithDetails(map[string]any{"mounts": list})
}
