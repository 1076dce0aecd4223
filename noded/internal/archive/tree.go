package archive

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"

	"golang.org/x/sys/unix"
)

// Bounds of what an image may consist of: of ours, a handful of files.
const (
	maxEntries = 4096
	maxExtents = 1 << 16 // of all files; beyond that, holes are stored as data
	maxBytes   = 1 << 40
)

// entry is a file or directory of an image. Directories come before what is in them.
type entry struct {
	Path string      `json:"path"`
	Mode fs.FileMode `json:"mode"` // with fs.ModeDir, or of a file
	Size int64       `json:"size,omitempty"`
	Data []extent    `json:"data,omitempty"` // the rest of a file is a hole
}

type extent struct {
	Offset int64 `json:"o"`
	Bytes  int64 `json:"n"`
}

// span is where a part of the stream lies in the files.
type span struct {
	at   int64 // in the stream
	file *os.File
	extent
}

// tree is an image's directory, open, as a stream of its files' data.
type tree struct {
	root    *os.Root
	entries []entry
	files   []*os.File
	spans   []span // in the order of the stream
	bytes   int64  // of the stream
}

func (t *tree) chunks() int { return int((t.bytes + chunkBytes - 1) / chunkBytes) }

func (t *tree) close() {
	for _, f := range t.files {
		f.Close()
	}
	t.root.Close()
}

// scan opens every file of an image, so that it can be read also when it is removed.
func scan(dir string) (_ *tree, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	t := &tree{root: root}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	left := maxExtents
	return t, fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == "." {
			return err
		}
		if len(t.entries) == maxEntries {
			return fmt.Errorf("more than %d files", maxEntries)
		}
		e, f, err := t.open(path, d, left)
		if err != nil {
			return err
		}
		left -= len(e.Data)
		return t.add(e, f)
	})
}

func (t *tree) open(path string, d fs.DirEntry, maxExtents int) (entry, *os.File, error) {
	if d.IsDir() {
		return entry{Path: path, Mode: fs.ModeDir | 0o700}, nil, nil
	}
	if !d.Type().IsRegular() {
		return entry{}, nil, fmt.Errorf("%s is no file", path)
	}
	f, err := t.root.Open(path)
	if err != nil {
		return entry{}, nil, err
	}
	t.files = append(t.files, f)
	info, err := f.Stat()
	if err != nil {
		return entry{}, nil, err
	}
	e := entry{Path: path, Mode: 0o600, Size: info.Size()}
	e.Data, err = extents(f, e.Size, maxExtents)
	return e, f, err
}

// extents asks the file system where a file has data, as far as limit goes.
func extents(f *os.File, size int64, limit int) (list []extent, err error) {
	fd := int(f.Fd())
	for at := int64(0); at < size; {
		if len(list) >= limit-1 {
			return append(list, extent{at, size - at}), nil
		}
		start, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return list, nil // a hole to the end
		}
		if err != nil {
			return nil, fmt.Errorf("looking for the data of %s: %w", f.Name(), err)
		}
		end, err := unix.Seek(fd, start, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("looking for the holes of %s: %w", f.Name(), err)
		}
		list = append(list, extent{start, end - start})
		at = end
	}
	return list, nil
}

// add takes an entry into the stream, if it is one that there can be.
func (t *tree) add(e entry, f *os.File) error {
	end := int64(0)
	for _, x := range e.Data {
		if x.Offset < end || x.Bytes <= 0 || x.Bytes > maxBytes || x.Offset > e.Size-x.Bytes {
			return fmt.Errorf("%q has data where none can be", e.Path)
		}
		end = x.Offset + x.Bytes
		t.spans = append(t.spans, span{t.bytes, f, x})
		t.bytes += x.Bytes
	}
	if e.Size > maxBytes || t.bytes > maxBytes {
		return fmt.Errorf("more than %d bytes", int64(maxBytes))
	}
	t.entries = append(t.entries, e)
	return nil
}

// part is where some bytes of a file lie in the stream.
type part struct {
	chunk, from, bytes int
	to                 int64 // in the file
}

// locate finds a file's bytes in the stream of all entries.
func locate(entries []entry, name string) (size int64, parts []part, err error) {
	t := &tree{}
	for _, e := range entries {
		first := len(t.spans)
		if err := t.add(e, nil); err != nil {
			return 0, nil, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if e.Path != name || !e.Mode.IsRegular() {
			continue
		}
		for _, s := range t.spans[first:] {
			for at, end := s.at, s.at+s.Bytes; at < end; {
				n := min(end, (at/chunkBytes+1)*chunkBytes) - at
				parts = append(parts, part{int(at / chunkBytes), int(at % chunkBytes), int(n), s.Offset + at - s.at})
				at += n
			}
		}
		return e.Size, parts, nil
	}
	return 0, nil, ErrNoFile
}

// lay makes the files of an image, without their data yet. A manifest that opens is
// one of ours, and yet nothing is made outside of dir.
func lay(dir string, entries []entry) (_ *tree, err error) {
	if len(entries) > maxEntries {
		return nil, fmt.Errorf("%w: more than %d files", ErrDamaged, maxEntries)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	t := &tree{root: root}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	for _, e := range entries {
		if !filepath.IsLocal(e.Path) || e.Size < 0 || len(e.Data) > maxExtents {
			return nil, fmt.Errorf("%w: it names a file %q", ErrDamaged, e.Path)
		}
		f, err := t.create(e)
		if err != nil {
			return nil, err
		}
		if err := t.add(e, f); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
	}
	return t, nil
}

func (t *tree) create(e entry) (*os.File, error) {
	if e.Mode.IsDir() {
		return nil, t.root.Mkdir(e.Path, 0o700)
	}
	f, err := t.root.OpenFile(e.Path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	t.files = append(t.files, f)
	return f, f.Truncate(e.Size)
}

// each calls do for every part of a chunk, with its place among the chunk's bytes.
func (t *tree) each(n int, do func(f *os.File, offset int64, from, to int) error) error {
	begin := int64(n) * chunkBytes
	end := min(begin+chunkBytes, t.bytes)
	first := sort.Search(len(t.spans), func(i int) bool { return t.spans[i].at+t.spans[i].Bytes > begin })
	for _, s := range t.spans[first:] {
		if s.at >= end {
			break
		}
		from, to := max(s.at, begin), min(s.at+s.Bytes, end)
		if err := do(s.file, s.Offset+from-s.at, int(from-begin), int(to-begin)); err != nil {
			return err
		}
	}
	return nil
}

// read returns one chunk of the stream.
func (t *tree) read(n int) ([]byte, error) {
	data := make([]byte, min(chunkBytes, t.bytes-int64(n)*chunkBytes))
	return data, t.each(n, func(f *os.File, offset int64, from, to int) error {
		if _, err := f.ReadAt(data[from:to], offset); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF // it has become shorter: something changes an image
			}
			return fmt.Errorf("reading %s: %w", f.Name(), err)
		}
		return nil
	})
}

// write puts one chunk of the stream to its places.
func (t *tree) write(n int, data []byte) error {
	if int64(len(data)) != min(chunkBytes, t.bytes-int64(n)*chunkBytes) {
		return fmt.Errorf("%w: chunk %d has another size", ErrDamaged, n)
	}
	return t.each(n, func(f *os.File, offset int64, from, to int) error {
		_, err := f.WriteAt(data[from:to], offset)
		return err
	})
}

// sync makes everything durable, the names after the data.
func (t *tree) sync() error {
	for _, f := range t.files {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	for _, e := range slices.Backward(t.entries) {
		if e.Mode.IsDir() {
			if err := syncIn(t.root, e.Path); err != nil {
				return err
			}
		}
	}
	return syncIn(t.root, ".")
}

func syncIn(root *os.Root, path string) error {
	f, err := root.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
