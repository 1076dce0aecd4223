package work

import (
	"errors"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"s0.run/volumed/internal/tree"
)

// hiddenSize is what an entry of the upper layer hides of what is below.
type hiddenSize struct{ bytes, files int64 }

// count remembers what the changed entries hide.
func (m *Manager) count(v *volume, changes []tree.Change) error {
	if len(v.record.Base.Layers) == 0 {
		return nil
	}
	below, err := os.Open(m.below(v))
	if err != nil {
		return err
	}
	defer below.Close()
	for _, c := range changes {
		if c.Path == "." {
			continue
		}
		size, err := hides(below, c.Path, v.seen[c.Path])
		if err != nil {
			return err
		}
		if size == (hiddenSize{}) {
			delete(v.hidden, c.Path)
		} else {
			v.hidden[c.Path] = size
		}
	}
	for p := range v.hidden { // what is not above any more hides nothing
		if _, ok := v.seen[p]; !ok {
			delete(v.hidden, p)
		}
	}
	return nil
}

// hides looks at what is below an entry, never through a symlink (B05).
func hides(below *os.File, at string, e tree.Entry) (size hiddenSize, err error) {
	fd, err := unix.Openat2(int(below.Fd()), at, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return size, nil
	}
	if err != nil {
		return size, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return size, err
	}
	size.files = 1
	old := tree.EntryOf(&st)
	if old.Kind == tree.File {
		size.bytes = old.Size
	}
	if old.Kind != tree.Dir {
		return size, nil
	}
	if e.Kind == tree.Dir && !e.Opaque {
		return size, nil // what is in it counts by itself
	}
	inside, err := du(below, at)
	size.bytes += inside.bytes
	size.files += inside.files
	return size, err
}

// du adds up what is in a directory of a view that nobody can change.
func du(below *os.File, at string) (size hiddenSize, err error) {
	root, err := os.OpenRoot(below.Name())
	if err != nil {
		return size, err
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), at, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == at {
			return err
		}
		size.files++
		if d.Type().IsRegular() {
			info, err := d.Info()
			if err != nil {
				return err
			}
			size.bytes += info.Size()
		}
		return nil
	})
	return size, err
}

// size is what the volume's files hold now: what was below when it was mounted, without
// what is hidden, and what is above.
func (v *volume) size() (bytes, files int64) {
	bytes, files = v.record.Base.Bytes, v.record.Base.Files
	for p, e := range v.seen {
		if p != "." && e.Kind != tree.Whiteout {
			files++
		}
		if e.Kind == tree.File {
			bytes += e.Size
		}
	}
	for p, h := range v.hidden {
		if !v.underOpaque(p) {
			bytes, files = bytes-h.bytes, files-h.files
		}
	}
	return max(bytes, 0), max(files, 0)
}

// underOpaque: what is below an entry was hidden, and counted, by a directory above it.
func (v *volume) underOpaque(p string) bool {
	for p = path.Dir(p); p != "."; p = path.Dir(p) {
		if v.seen[p].Opaque {
			return true
		}
	}
	return false
}
