// Package archive packs a tree of files into a tar stream, and unpacks one.
//
// Both are bounded in entries and bytes, and take directories, regular files and
// symlinks alone. Packing never follows a symlink and waits for nothing but its
// reader; a file is as long as it was when it was opened. Unpacking reads the whole
// archive into a hidden directory beside its place first (files.StagedTree), so that
// one which is refused or breaks off changes nothing. A target that did not exist
// then appears at once; into one that exists the tree is merged: that what would not
// fit is found before anything is changed, each file is replaced as a whole, and an
// error of the file system on the way leaves the ones before it in place. Nothing is
// written outside the target, wherever symlinks in the archive or the target lead.
// The package keeps no state.
package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/files"
	"s0.run/internal/files/walk"
	"s0.run/internal/procapi"
)

const copyBuffer = 256 << 10

// Limits bound an archive. The contract's are [ContractLimits].
type Limits struct {
	Entries     int
	File, Total int64 // bytes of content
}

// ContractLimits are procapi's.
var ContractLimits = Limits{Entries: procapi.MaxArchiveEntries, File: procapi.MaxArchiveFile, Total: procapi.MaxArchiveBytes}

// count takes one more entry of an archive in.
type count struct {
	limits  Limits
	entries int
	bytes   int64
}

func (c *count) add(size int64) error {
	c.entries++
	if c.entries > c.limits.Entries {
		return tooLarge("an archive has at most %d entries", c.limits.Entries)
	}
	if size > c.limits.Total-c.bytes {
		return tooLarge("an archive's files have at most %d bytes together", c.limits.Total)
	}
	c.bytes += size
	return nil
}

// Source is something that can be packed.
type Source struct {
	path   string
	single bool // a file
	limits Limits
}

// Open looks at what shall be packed: a file, or a directory with all below it that
// is within the limits but for single files' size.
func Open(ctx context.Context, path string, limits Limits) (*Source, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, files.Failure(err, "packing")
	}
	s := &Source{path: path, single: !info.IsDir(), limits: limits}
	if s.single {
		f, _, err := files.Open(path)
		if err == nil {
			f.Close()
		}
		return s, err
	}
	c := count{limits: limits}
	err = walk.Walk(path, s.visit(ctx, func(e *walk.Entry) error {
		if !e.IsRegular() {
			return c.add(0)
		}
		return c.add(e.Stat.Size)
	}))
	if errors.Is(err, walk.ErrTooDeep) {
		err = tooLarge("the directories are nested deeper than %d", walk.MaxDepth)
	}
	return s, files.Failure(err, "packing")
}

// visit passes on what belongs into an archive.
func (s *Source) visit(ctx context.Context, each func(*walk.Entry) error) func(*walk.Entry) error {
	return func(e *walk.Entry) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case e.Path == ".":
			return nil
		case files.Staged(path.Base(e.Path)):
			return walk.SkipDir
		case e.IsDir(), e.IsRegular(), e.IsSymlink():
			return each(e)
		}
		return nil
	}
}

// Pack writes the archive. An error means that it is not whole.
func (s *Source) Pack(ctx context.Context, w io.Writer) error {
	p := packer{tar: tar.NewWriter(w), count: count{limits: s.limits}, buf: make([]byte, copyBuffer)}
	var err error
	if s.single {
		err = p.file(s.path)
	} else {
		err = walk.Walk(s.path, s.visit(ctx, p.entry))
	}
	if err != nil {
		return fmt.Errorf("packing %s: %w", s.path, err)
	}
	return p.tar.Close()
}

type packer struct {
	tar   *tar.Writer
	count count
	buf   []byte
}

func (p *packer) file(name string) error {
	f, size, err := files.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: path.Base(name), Size: size, Mode: int64(info.Mode().Perm()), ModTime: info.ModTime()}
	return p.content(h, f)
}

func (p *packer) entry(e *walk.Entry) error {
	if e.IsRegular() {
		f, err := e.Open()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone since
		}
		if err != nil {
			return err
		}
		defer f.Close()
		return p.content(header(e, tar.TypeReg), f)
	}
	if err := p.count.add(0); err != nil {
		return err
	}
	if e.IsDir() {
		h := header(e, tar.TypeDir)
		h.Name += "/"
		return p.tar.WriteHeader(h)
	}
	target, err := e.Readlink()
	if err != nil {
		return nil // gone since
	}
	h := header(e, tar.TypeSymlink)
	h.Linkname = target
	return p.tar.WriteHeader(h)
}

func header(e *walk.Entry, kind byte) *tar.Header {
	h := &tar.Header{
		Typeflag: kind, Name: e.Path, Mode: int64(e.Stat.Mode & 0o777), Uid: int(e.Stat.Uid), Gid: int(e.Stat.Gid),
		ModTime: time.Unix(e.Stat.Mtim.Sec, 0),
	}
	if kind == tar.TypeReg {
		h.Size = e.Stat.Size
	}
	return h
}

// content writes a file that has been opened: no more of it than it had then.
func (p *packer) content(h *tar.Header, f *os.File) error {
	if err := p.count.add(h.Size); err != nil {
		return err
	}
	if err := p.tar.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{p.tar}, io.LimitReader(f, h.Size), p.buf)
	if err == nil && n < h.Size {
		err = fmt.Errorf("%s has become shorter", h.Name)
	}
	return err
}

func tooLarge(format string, args ...any) error {
	return errdefs.WithCode(errdefs.TooLarge, "file_too_large", format, args...)
}

func invalid(format string, args ...any) error {
	return errdefs.WithCode(errdefs.InvalidArgument, "invalid_request", format, args...)
}
