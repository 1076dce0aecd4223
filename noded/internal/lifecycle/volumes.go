package lifecycle

import (
	"context"
	"errors"
	"path"
	"slices"
	"strings"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/failpoint"
	"s0.run/internal/nodeapi"
	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
	"s0.run/internal/volumeapi"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/volumes"
)

const (
	// maxMounts of one sandbox, and maxMountPoint the bytes of a place.
	maxMounts, maxMountPoint = 16, 1024
	// mountTimeout bounds procd's part of a mount.
	mountTimeout = 5 * time.Second
)

// Volumes is the face of package volumes, where the contract is.
type Volumes interface {
	Dir(id sandbox.ID) string
	Prepare(id sandbox.ID) error
	StandIn(id sandbox.ID, m volumes.Mount) error
	Has(id sandbox.ID) bool
	AttachWhen(ctx context.Context, id sandbox.ID, m volumes.Mount, enter func() error) error
	Detach(ctx context.Context, id sandbox.ID, m volumes.Mount, look func(context.Context) error) error
	DetachAll(ctx context.Context, id sandbox.ID) error
	CommitAll(ctx context.Context, mounts []volumes.Mount) error
	List() ([]sandbox.ID, error)
}

// reserved are places that are the sandbox's own machinery.
var reserved = []string{"/proc", "/sys", "/dev", procapi.Dir}

func validateMounts(all []journal.Mount) error {
	if len(all) > maxMounts {
		return errdefs.New(errdefs.InvalidArgument, "%d mounts: want at most %d", len(all), maxMounts)
	}
	for i, m := range all {
		if err := validateMount(m); err != nil {
			return err
		}
		for _, other := range all[:i] {
			if m.MountPoint == other.MountPoint || m.ID == other.ID {
				return errdefs.New(errdefs.InvalidArgument, "mount point %.200q: twice", m.MountPoint)
			}
		}
	}
	return nil
}

func validateMount(m journal.Mount) error {
	p := m.MountPoint
	if !path.IsAbs(p) || path.Clean(p) != p || p == "/" || len(p) > maxMountPoint || strings.Contains(p, "\x00") {
		return errdefs.New(errdefs.InvalidArgument, "mount point %.200q: want an absolute and clean path", p)
	}
	for _, r := range reserved {
		if p == r || strings.HasPrefix(p, r+"/") {
			return errdefs.New(errdefs.InvalidArgument, "mount point %.200q: %s is reserved", p, r)
		}
	}
	return nil
}

// checkVolumes refuses mounts where there are none to be had.
func (m *Manager) checkVolumes(all []journal.Mount) error {
	if len(all) > 0 && m.cfg.Volumes == nil {
		return errdefs.New(errdefs.Unavailable, "volumes are unavailable on this node")
	}
	return nil
}

func forAgent(m journal.Mount) volumes.Mount {
	v := m.Volume
	return volumes.Mount{ID: m.ID, ReadOnly: m.ReadOnly, Volume: volumeapi.Volume{
		ID: v.ID, Team: v.Team, Epoch: v.Epoch, UID: v.UID, GID: v.GID, Limit: v.LimitBytes, Bucket: bucketForAgent(v.Bucket),
	}}
}

func bucketForAgent(b *journal.Bucket) *volumeapi.Bucket {
	if b == nil {
		return nil
	}
	c := b.Credential
	return &volumeapi.Bucket{
		Provider: b.Provider, Name: b.Name, Prefix: b.Prefix, Region: b.Region, Endpoint: b.Endpoint,
		Kind: c.Kind, Version: c.Version, Key: c.Blob.Key, Sealed: c.Blob.Data,
	}
}

func forProcd(m journal.Mount) procapi.Mount {
	return procapi.Mount{Name: forAgent(m).Name(), Target: m.MountPoint}
}

// procdMounts is procd's part of a record's mounts.
func procdMounts(rec journal.Record) (all []procapi.Mount) {
	for _, mount := range mountsOf(rec) {
		all = append(all, forProcd(mount))
	}
	return all
}

func mountsOf(rec journal.Record) []journal.Mount {
	if rec.Claim == nil {
		return nil
	}
	return rec.Claim.Mounts
}

// mountError keeps why a volume can't be had, and makes another of the rest.
func mountError(err error, rest *errdefs.Error) error {
	if errdefs.Is(err, errdefs.Conflict) || errdefs.Is(err, errdefs.NotFound) || errdefs.Is(err, errdefs.InvalidArgument) {
		return err
	}
	return rest.WithCause(err)
}

// mountAll mounts what a sandbox has, so that every process sees it.
func (m *Manager) mountAll(ctx context.Context, inst *instance, rec journal.Record) error {
	if err := m.attachAll(ctx, rec); err != nil {
		return err
	}
	if err := failpoint.Hit("mount.after-attach"); err != nil {
		return err
	}
	return m.showAll(ctx, inst, rec)
}

// attachAll puts a sandbox's volumes into its portal. What is there stays.
func (m *Manager) attachAll(ctx context.Context, rec journal.Record) error {
	return m.attachWhen(ctx, rec, func() error { return nil })
}

// attachWhen is attachAll of which nothing enters the portal before enter agrees.
func (m *Manager) attachWhen(ctx context.Context, rec journal.Record, enter func() error) error {
	if err := m.checkVolumes(mountsOf(rec)); err != nil {
		return err
	}
	for _, mount := range mountsOf(rec) {
		if rec.Spec.RuntimeClass != sandbox.GVisor {
			return errdefs.New(errdefs.InvalidArgument, "volumes are for runtime class %q", sandbox.GVisor)
		}
		if err := m.cfg.Volumes.AttachWhen(ctx, rec.ID, forAgent(mount), enter); err != nil {
			return err
		}
	}
	return nil
}

// showAll has procd show what is in the portal at its places.
func (m *Manager) showAll(ctx context.Context, inst *instance, rec journal.Record) error {
	for _, mount := range mountsOf(rec) {
		ch, err := m.channelOf(inst)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, mountTimeout)
		err = ch.Mount(ctx, forProcd(mount))
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// unmountAll ends whatever a sandbox has mounted, which its portal tells: its processes
// are gone.
func (m *Manager) unmountAll(ctx context.Context, id sandbox.ID) error {
	if m.cfg.Volumes == nil {
		return nil
	}
	return m.cfg.Volumes.DetachAll(ctx, id)
}

// wasBeingClaimed tells of a free slot that a claim was to have, of which the journal does not
// know: volumes were on their way.
func (m *Manager) wasBeingClaimed(rec journal.Record) bool {
	return rec.State == journal.Slot && m.cfg.Volumes != nil && m.cfg.Volumes.Has(rec.ID)
}

// commitVolumes makes durable what a sandbox has written to its volumes.
func (m *Manager) commitVolumes(ctx context.Context, rec journal.Record) error {
	if len(mountsOf(rec)) == 0 {
		return nil
	}
	if err := m.checkVolumes(mountsOf(rec)); err != nil {
		return err
	}
	all := make([]volumes.Mount, 0, len(mountsOf(rec)))
	for _, mount := range mountsOf(rec) {
		all = append(all, forAgent(mount))
	}
	if err := m.cfg.Volumes.CommitAll(ctx, all); err != nil {
		return errdefs.New(errdefs.Unavailable, "the volumes of sandbox %s could not be committed", rec.ID).WithRetryAfter(time.Second).WithCause(err)
	}
	return nil
}

// Mount mounts a volume into a running sandbox, which sees it when it returns. It may be
// repeated.
func (m *Manager) Mount(ctx context.Context, id sandbox.ID, gen sandbox.Generation, mount journal.Mount) (Sandbox, error) {
	if err := errors.Join(validateMount(mount), m.checkVolumes([]journal.Mount{mount})); err != nil {
		return Sandbox{}, err
	}
	inst, done, err := m.takeUsable(ctx, id, gen)
	if err != nil {
		return Sandbox{}, err
	}
	defer done()
	rec := m.record(inst)
	for _, other := range mountsOf(rec) {
		if other.ID == mount.ID {
			return m.Get(id)
		}
		if other.MountPoint == mount.MountPoint {
			return Sandbox{}, errdefs.New(errdefs.Conflict, "something is mounted at %s", mount.MountPoint)
		}
	}
	if len(mountsOf(rec)) >= maxMounts {
		return Sandbox{}, errdefs.New(errdefs.Exhausted, "sandbox %s has %d mounts", id, maxMounts)
	}
	after := withMounts(rec, append(slices.Clone(mountsOf(rec)), mount))
	if err := m.commit(ctx, inst, after); err != nil {
		return Sandbox{}, err
	}
	err = failpoint.Hit("mount.after-journal")
	if err == nil {
		err = m.mountAll(ctx, inst, after)
	}
	if err != nil {
		err = errors.Join(err, m.takeBack(ctx, inst, mount))
		return Sandbox{}, mountError(err, errdefs.New(errdefs.Unavailable, "volume %s could not be mounted", mount.Volume.ID))
	}
	return m.Get(id)
}

// takeBack undoes a mount that failed on its way.
func (m *Manager) takeBack(ctx context.Context, inst *instance, mount journal.Mount) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	if err := m.takeAway(ctx, inst, mount); err != nil {
		return err
	}
	return m.dropMount(ctx, inst, mount.ID)
}

// takeAway ends a mount of a sandbox that runs, whose turn the caller has. When it returns
// without an error no process can write to the volume, and what was written is committed.
func (m *Manager) takeAway(ctx context.Context, inst *instance, mount journal.Mount) error {
	inUse := errdefs.WithCode(errdefs.Conflict, nodeapi.CodeVolumeBusy, "processes of sandbox %s use what is mounted at %s", inst.id, mount.MountPoint)
	hide := func(ctx context.Context) error { return m.hide(ctx, inst, mount) }
	err := hide(ctx)
	if errdefs.Is(err, errdefs.Conflict) {
		return inUse.WithCause(err)
	}
	if err != nil {
		return errdefs.New(errdefs.Unavailable, "sandbox %s does not answer", inst.id).WithCause(err)
	}
	if err = failpoint.Hit("unmount.after-hide"); err == nil {
		err = m.cfg.Volumes.Detach(ctx, inst.id, forAgent(mount), hide)
	}
	if err == nil {
		err = failpoint.Hit("unmount.after-detach")
	}
	if errors.Is(err, volumes.ErrBusy) {
		return inUse.WithCause(err)
	}
	if err != nil {
		return errdefs.New(errdefs.Unavailable, "volume %s could not be committed", mount.Volume.ID).WithCause(err)
	}
	return nil
}

// hide has procd unmount what no process uses; it looks at the portal for that.
func (m *Manager) hide(ctx context.Context, inst *instance, mount journal.Mount) error {
	ch, err := m.channelOf(inst)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, mountTimeout)
	defer cancel()
	return ch.Unmount(ctx, forProcd(mount))
}

// bringBack mounts again what could not be taken away.
func (m *Manager) bringBack(ctx context.Context, inst *instance) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	return m.mountAll(ctx, inst, m.record(inst))
}

// Unmount commits and takes a mount away that no process uses. One that is not there is
// taken away already. What can't be taken away stays as it is. Of a sandbox that is paused
// it takes the mount out of its next life.
func (m *Manager) Unmount(ctx context.Context, id sandbox.ID, gen sandbox.Generation, mountID string) error {
	inst, done, err := m.takeMounted(ctx, id, gen)
	if err != nil {
		return err
	}
	defer done()
	rec := m.record(inst)
	i := slices.IndexFunc(mountsOf(rec), func(mount journal.Mount) bool { return mount.ID == mountID })
	if i < 0 {
		return nil
	}
	mount := rec.Claim.Mounts[i]
	if rec.State == journal.Paused {
		err = m.commitVolumes(ctx, withMounts(rec, []journal.Mount{mount}))
	} else if err = m.takeAway(ctx, inst, mount); err != nil {
		err = errors.Join(err, m.bringBack(ctx, inst))
	}
	if err != nil {
		return err
	}
	return m.dropMount(ctx, inst, mountID)
}

// dropMount takes a mount out of the record. The caller has the turn.
func (m *Manager) dropMount(ctx context.Context, inst *instance, mountID string) error {
	rec := m.record(inst)
	return m.commit(ctx, inst, withMounts(rec, slices.DeleteFunc(slices.Clone(mountsOf(rec)), func(mount journal.Mount) bool { return mount.ID == mountID })))
}

// withMounts gives a record other mounts. What a paused sandbox loses, its image has still;
// what comes back is lost no more.
func withMounts(rec journal.Record, all []journal.Mount) journal.Record {
	claim := *rec.Claim // which nobody changes
	former := claim.Former
	if rec.State == journal.Paused {
		former = slices.Concat(former, claim.Mounts)
	}
	claim.Former = slices.DeleteFunc(slices.Clone(former), func(had journal.Mount) bool {
		return slices.ContainsFunc(all, func(m journal.Mount) bool { return m.ID == had.ID })
	})
	claim.Mounts = all
	rec.Claim = &claim
	return rec
}

// standIn puts empty directories where the image of a sandbox had volumes: without them it
// could not be taken up.
func (m *Manager) standIn(rec journal.Record) error {
	if err := m.checkVolumes(rec.Claim.Former); err != nil {
		return err
	}
	for _, mount := range rec.Claim.Former {
		if err := m.cfg.Volumes.StandIn(rec.ID, forAgent(mount)); err != nil {
			return err
		}
	}
	return nil
}

// forgetFormer takes the sandbox's own mounts of these away. What is in use stays, and is
// empty: the sandbox's next image has it, too.
func (m *Manager) forgetFormer(ctx context.Context, inst *instance, rec journal.Record) (stay []journal.Mount, err error) {
	for _, mount := range rec.Claim.Former {
		err := m.hide(ctx, inst, mount)
		if errdefs.Is(err, errdefs.Conflict) {
			m.log(rec).Warn("a place that was a volume's is in use", "mount", mount.ID, "error", err)
			stay = append(stay, mount)
			continue
		}
		if err != nil {
			return nil, err
		}
	}
	return stay, nil
}

// takeUsable takes the turn of a sandbox that runs.
func (m *Manager) takeUsable(ctx context.Context, id sandbox.ID, gen sandbox.Generation) (*instance, func(), error) {
	inst, done, err := m.takeMounted(ctx, id, gen)
	if err != nil {
		return nil, nil, err
	}
	if err := usable(m.record(inst)); err != nil {
		done()
		return nil, nil, err
	}
	return inst, done, nil
}

// takeMounted takes the turn of a sandbox that runs, or of one that is paused and has
// nothing mounted any more.
func (m *Manager) takeMounted(ctx context.Context, id sandbox.ID, gen sandbox.Generation) (*instance, func(), error) {
	inst := m.find(id)
	if inst == nil {
		return nil, nil, notFound(id)
	}
	if err := m.takeRestingTurn(ctx, inst); err != nil {
		return nil, nil, busy(id, err)
	}
	rec := m.record(inst)
	err := usable(rec)
	if rec.State == journal.Paused {
		err = nil
	}
	if err == nil {
		err = checkGeneration(rec, gen)
	}
	if err != nil {
		inst.endTurn()
		return nil, nil, err
	}
	return inst, inst.endTurn, nil
}

// renewMounts has a sandbox that runs go on with its volumes at the epochs that they have
// by now. Which it has is not for a resume to change. That one of them was put aside is
// said as long as it is so, not to the first alone who asks. The caller has the turn.
func (m *Manager) renewMounts(ctx context.Context, inst *instance, rec journal.Record, now []journal.Mount) error {
	if err := notEarlier(mountsOf(rec), now); err != nil {
		return err
	}
	all, renewed := slices.Clone(mountsOf(rec)), false
	for i, has := range all {
		for _, mount := range now {
			if mount.ID == has.ID && mount.Volume.Epoch > has.Volume.Epoch {
				all[i].Volume.Epoch, renewed = mount.Volume.Epoch, true
			}
		}
	}
	if renewed {
		rec = withMounts(rec, all)
		if err := m.commit(ctx, inst, rec); err != nil {
			return err
		}
	}
	if err := m.attachAll(ctx, rec); err != nil {
		return mountError(err, errdefs.New(errdefs.Unavailable, "the volumes of sandbox %s could not be taken again", inst.id))
	}
	return nil
}

// notEarlier refuses mounts of a caller that is late: others know later epochs already.
func notEarlier(has, now []journal.Mount) error {
	for _, mount := range now {
		for _, known := range has {
			if mount.ID == known.ID && mount.Volume.Epoch < known.Volume.Epoch {
				return errdefs.WithCode(errdefs.Conflict, volumeapi.CodeFenced, "volume %s is at epoch %d, not %d", mount.Volume.ID, known.Volume.Epoch, mount.Volume.Epoch)
			}
		}
	}
	return nil
}

// Remount has something done to a volume that sandboxes of this node may have mounted for
// writing: their mounts are taken away for it and come back, whatever became of it. Where
// a process uses one, nothing is done.
func (m *Manager) Remount(ctx context.Context, volume string, do func(context.Context) error) error {
	for _, inst := range m.snapshot() {
		for _, mount := range mountsOf(m.record(inst)) {
			if mount.Volume.ID == volume && !mount.ReadOnly {
				return m.remount(ctx, inst, mount, do)
			}
		}
	}
	return do(ctx)
}

// remount is Remount for the one sandbox that writes to the volume.
func (m *Manager) remount(ctx context.Context, inst *instance, mount journal.Mount, do func(context.Context) error) error {
	if err := m.takeRestingTurn(ctx, inst); err != nil {
		return busy(inst.id, err)
	}
	defer inst.endTurn()
	rec := m.record(inst)
	if rec.State == journal.Paused { // its volumes are mounted when it is resumed
		return do(ctx)
	}
	if err := usable(rec); err != nil {
		return err
	}
	err := m.takeAway(ctx, inst, mount)
	if err == nil {
		err = do(ctx)
	}
	return errors.Join(err, m.bringBack(ctx, inst))
}

func mountState(m journal.Mount) *nodeapi.MountState {
	return &nodeapi.MountState{
		Id: m.ID, Volume: m.Volume.ID, MountPoint: m.MountPoint, ReadOnly: m.ReadOnly, State: "mounted", MountedUnixNano: m.Time.UnixNano(),
	}
}
