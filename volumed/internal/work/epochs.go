package work

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The epochs that follow a tree's own, see goOn, are in a file beside its record: claims wait
// for them. It is overwritten in place, so that the disk writes a block and the file system
// nothing of its own: each epoch in the block that has the one before the last. Of a write
// that is torn the epoch before is left, which is what the tree is at, for nobody was
// answered.
const (
	epochBlock  = 4096 // no disk tears more than it was to write
	epochBlocks = 2
	epochBytes  = 8 // of one in its block; its checksum follows
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (m *Manager) epochFile(id string) string { return filepath.Join(m.dir(id), "epoch") }

// makeEpochs makes the file, with its blocks; its name is durable with the directory.
func (m *Manager) makeEpochs(id string) error {
	f, err := os.OpenFile(m.epochFile(id), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, epochBlocks*epochBlock))
	return errors.Join(err, f.Sync(), f.Close())
}

// saveEpoch makes an epoch durable. A tree of an earlier release has no file for it yet.
func (m *Manager) saveEpoch(id string, epoch uint64) error {
	f, err := os.OpenFile(m.epochFile(id), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if err := errors.Join(m.makeEpochs(id), syncDir(m.dir(id))); err != nil {
			return err
		}
		f, err = os.OpenFile(m.epochFile(id), os.O_WRONLY, 0)
	}
	if err != nil {
		return err
	}
	b := binary.LittleEndian.AppendUint64(nil, epoch)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	if _, err = f.WriteAt(b, int64(epoch%epochBlocks)*epochBlock); err == nil {
		err = unix.Fdatasync(int(f.Fd()))
	}
	return errors.Join(err, f.Close())
}

// readEpoch is the latest epoch that was saved; 0: none.
func (m *Manager) readEpoch(id string) (latest uint64, err error) {
	b, err := os.ReadFile(m.epochFile(id))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	for ; err == nil && len(b) >= epochBytes+crc32.Size; b = b[min(epochBlock, len(b)):] {
		saved, sum := b[:epochBytes], b[epochBytes:epochBytes+crc32.Size]
		if crc32.Checksum(saved, castagnoli) == binary.LittleEndian.Uint32(sum) {
			latest = max(latest, binary.LittleEndian.Uint64(saved))
		}
	}
	return latest, err
}

// saveNext makes durable that a tree is at the epoch that follows. What else is said of the
// volume seldom changes with it.
func (m *Manager) saveNext(rec record, spec Volume) error {
	same := rec.Spec
	same.Epoch = spec.Epoch
	if spec == same {
		return m.saveEpoch(spec.ID, spec.Epoch)
	}
	rec.Spec = spec
	return m.saveRecord(rec)
}
