// Package fsx does random things to a few files and knows what they must then hold.
//
// It is what the fsx programs of file systems' makers do: reads, writes, truncations,
// mappings, holes, renames and reopenings at random, through several descriptors, against a
// model in memory. A seed repeats a run. The package knows no file system: it works in a
// directory, on the host as inside a sandbox, and what a file system says it can't do is left
// out from then on.
package fsx

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	files   = 3
	maxSize = 192 << 10
	page    = 4096
)

// file is one of a few, with what it must hold and two descriptors of it.
type file struct {
	path    string
	content []byte
	fds     [2]*os.File
}

// A Walk is one run. It is for one goroutine.
type Walk struct {
	rng   *rand.Rand
	dir   string
	files []*file
	n     int // steps that were done
	cant  map[string]bool
}

// step is one kind of thing that is done; it says what it did.
type step struct {
	name string
	do   func(*Walk, *file) error
}

var steps = []step{
	{"write", (*Walk).write}, {"write", (*Walk).write}, {"read", (*Walk).read}, {"read", (*Walk).read}, {"truncate", (*Walk).truncate},
	{"write by a mapping", (*Walk).mapWrite}, {"read by a mapping", (*Walk).mapRead}, {"append", (*Walk).append}, {"allocate", (*Walk).allocate},
	{"punch a hole", (*Walk).punch}, {"fsync", (*Walk).sync}, {"reopen", (*Walk).reopen}, {"rename over another", (*Walk).rename},
}

// New begins a walk in a directory, which exists and has no files of this package.
func New(dir string, seed uint64) (*Walk, error) {
	w := &Walk{rng: rand.New(rand.NewPCG(seed, 0)), dir: dir, cant: map[string]bool{}}
	for i := range files {
		f := &file{path: filepath.Join(dir, fmt.Sprint("fsx", i))}
		if err := f.open(os.O_CREATE | os.O_EXCL); err != nil {
			return nil, err
		}
		w.files = append(w.files, f)
	}
	return w, nil
}

func (f *file) open(flags int) (err error) {
	for i := range f.fds {
		if f.fds[i], err = os.OpenFile(f.path, os.O_RDWR|flags, 0o640); err != nil {
			return err
		}
		flags = 0
	}
	return nil
}

func (f *file) close() error { return errors.Join(f.fds[0].Close(), f.fds[1].Close()) }

// Steps does so many things and checks each.
func (w *Walk) Steps(count int) error {
	for range count {
		s := steps[w.rng.IntN(len(steps))]
		f := w.files[w.rng.IntN(files)]
		w.n++
		err := s.do(w, f)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
			w.cant[s.name] = true
			continue
		}
		if err != nil {
			return fmt.Errorf("step %d, %s, %s of %d bytes: %w", w.n, filepath.Base(f.path), s.name, len(f.content), err)
		}
	}
	return nil
}

// Reopen opens the files in another directory that is to hold the same: the same volume,
// mounted anew.
func (w *Walk) Reopen(dir string) error {
	w.dir = dir
	var err error
	for _, f := range w.files {
		f.path = filepath.Join(dir, filepath.Base(f.path))
		err = errors.Join(err, f.open(0))
	}
	return err
}

// Close closes the files.
func (w *Walk) Close() (err error) {
	for _, f := range w.files {
		err = errors.Join(err, f.close())
	}
	return err
}

// Check reads whole files in a directory that is to hold what the walk has written.
func (w *Walk) Check(dir string) (err error) {
	for _, f := range w.files {
		got, rerr := os.ReadFile(filepath.Join(dir, filepath.Base(f.path)))
		err = errors.Join(err, rerr, differ(f.path, got, f.content))
	}
	return err
}

// Cant lists what the file system has said it can't do.
func (w *Walk) Cant() (names []string) {
	for name := range w.cant {
		names = append(names, name)
	}
	return names
}

func differ(what string, got, want []byte) error {
	if bytes.Equal(got, want) {
		return nil
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	return fmt.Errorf("%s has %d bytes, want %d, and is another from byte %d on", filepath.Base(what), len(got), len(want), at)
}

// fd is one of the file's.
func (w *Walk) fd(f *file) *os.File { return f.fds[w.rng.IntN(len(f.fds))] }

// data is unlike that of any other step.
func (w *Walk) data(most int) []byte {
	b := bytes.Repeat(fmt.Append(nil, w.n, "."), 1+w.rng.IntN(3000))
	return b[:min(len(b), most)]
}

// put is a write in the model.
func (f *file) put(b []byte, at int) {
	f.grow(at + len(b))
	copy(f.content[at:], b)
}

func (f *file) grow(size int) {
	if size > len(f.content) {
		f.content = append(f.content, make([]byte, size-len(f.content))...)
	}
}

func (w *Walk) write(f *file) error {
	at := w.rng.IntN(maxSize)
	b := w.data(maxSize - at)
	_, err := w.fd(f).WriteAt(b, int64(at))
	f.put(b, at)
	return err
}

func (w *Walk) append(f *file) error {
	b := w.data(maxSize - min(len(f.content), maxSize))
	a, err := os.OpenFile(f.path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = a.Write(b)
	f.put(b, len(f.content))
	return errors.Join(err, a.Close())
}

func (w *Walk) read(f *file) error {
	info, err := w.fd(f).Stat()
	if err != nil {
		return err
	}
	if int(info.Size()) != len(f.content) {
		return fmt.Errorf("it has %d bytes, want %d", info.Size(), len(f.content))
	}
	if len(f.content) == 0 {
		return nil
	}
	at := w.rng.IntN(len(f.content))
	got := make([]byte, 1+w.rng.IntN(len(f.content)-at))
	if _, err := w.fd(f).ReadAt(got, int64(at)); err != nil {
		return err
	}
	return differ(f.path, got, f.content[at:at+len(got)])
}

func (w *Walk) truncate(f *file) error {
	size := w.rng.IntN(maxSize)
	f.grow(size)
	f.content = f.content[:size:size] // what grows later is zero
	return w.fd(f).Truncate(int64(size))
}

// mapped does something with a shared mapping of a part of the file.
func (w *Walk) mapped(f *file, prot int, do func(part []byte, at int)) error {
	if len(f.content) == 0 {
		return nil
	}
	at := w.rng.IntN(len(f.content)) &^ (page - 1)
	m, err := unix.Mmap(int(w.fd(f).Fd()), int64(at), len(f.content)-at, prot, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	do(m, at)
	return unix.Munmap(m)
}

func (w *Walk) mapWrite(f *file) error {
	return w.mapped(f, unix.PROT_READ|unix.PROT_WRITE, func(part []byte, at int) {
		b := w.data(len(part))
		copy(part, b)
		f.put(b, at)
	})
}

func (w *Walk) mapRead(f *file) (err error) {
	merr := w.mapped(f, unix.PROT_READ, func(part []byte, at int) {
		err = differ(f.path, bytes.Clone(part), f.content[at:])
	})
	return errors.Join(merr, err)
}

// allocate makes room, which is zero where the file grows.
func (w *Walk) allocate(f *file) error {
	at := w.rng.IntN(maxSize / 2)
	size := 1 + w.rng.IntN(maxSize/2)
	if err := unix.Fallocate(int(w.fd(f).Fd()), 0, int64(at), int64(size)); err != nil {
		return err
	}
	f.grow(at + size)
	return nil
}

func (w *Walk) punch(f *file) error {
	if len(f.content) == 0 {
		return nil
	}
	at := w.rng.IntN(len(f.content))
	size := 1 + w.rng.IntN(len(f.content)-at)
	if err := unix.Fallocate(int(w.fd(f).Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(at), int64(size)); err != nil {
		return err
	}
	clear(f.content[at : at+size])
	return nil
}

func (w *Walk) sync(f *file) error { return w.fd(f).Sync() }

func (w *Walk) reopen(f *file) error {
	if err := f.close(); err != nil {
		return err
	}
	return f.open(0)
}

// rename puts a new file in the place of one, which keeps who has it open.
func (w *Walk) rename(f *file) error {
	b := w.data(maxSize)
	if err := os.WriteFile(f.path+".new", b, 0o640); err != nil {
		return err
	}
	if err := os.Rename(f.path+".new", f.path); err != nil {
		return err
	}
	got := make([]byte, len(f.content))
	n, rerr := f.fds[0].ReadAt(got, 0)
	if n < len(got) {
		return fmt.Errorf("who has the old one open reads %d bytes: %w", n, rerr)
	}
	if err := differ(f.path, got, f.content); err != nil {
		return fmt.Errorf("who has the old one open: %w", err)
	}
	if err := f.close(); err != nil {
		return err
	}
	f.content = b
	return f.open(0)
}
