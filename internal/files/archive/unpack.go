package archive

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/internal/files"
	"s0.run/internal/files/walk"
	"s0.run/internal/procapi"
)

const (
	dirMode = 0o755

	maxName = unix.PathMax - 1
	// headerBytes is what an entry may take beside its content, on average: its
	// header, padding and long names.
	headerBytes = 16 << 10
)

// Unpack unpacks the archive that r holds below target, a directory of a tree that need
// not exist. Permissions are kept but for setuid, setgid and sticky; owners are not.
func Unpack(in files.Tree, r io.Reader, target string, limits Limits) (procapi.ArchiveResult, error) {
	st, err := newStage(target)
	if err != nil {
		return procapi.ArchiveResult{}, files.Failure(err, "unpacking")
	}
	st.durable = in.Durable
	defer st.discard()
	u := unpacker{root: st.root, count: count{limits: limits}, buf: make([]byte, copyBuffer)}
	if err := u.all(r); err != nil {
		return procapi.ArchiveResult{}, files.Failure(err, "unpacking")
	}
	if err := st.publish(); err != nil {
		return procapi.ArchiveResult{}, files.Failure(err, "unpacking")
	}
	return u.result, nil
}

type unpacker struct {
	root   *os.Root
	count  count
	result procapi.ArchiveResult
	buf    []byte
	parent string // the latest directory that is known to exist
}

// all reads r to its end, so that an archive is whole when it succeeds.
func (u *unpacker) all(r io.Reader) error {
	body := &source{r: r, left: u.count.limits.Total + int64(u.count.limits.Entries)*headerBytes}
	archive := tar.NewReader(body)
	for {
		h, err := archive.Next()
		if err == io.EOF {
			_, err = io.CopyBuffer(io.Discard, body, u.buf)
			return body.why(err)
		}
		if err == nil {
			err = u.entry(h, archive)
		}
		if err != nil {
			return body.why(err)
		}
	}
}

// source is the archive's bytes. It remembers what was wrong with them, which the
// tar reader may call something else.
type source struct {
	r    io.Reader
	left int64
	err  error
}

// Read implements io.Reader.
func (s *source) Read(p []byte) (int, error) {
	if s.left <= 0 {
		s.err = tooLarge("the archive is too large")
		return 0, s.err
	}
	n, err := s.r.Read(p[:min(int64(len(p)), s.left)])
	s.left -= int64(n)
	if err != nil && err != io.EOF {
		s.err = invalid("the body broke off")
	}
	return n, err
}

// why words an error of reading the archive.
func (s *source) why(err error) error {
	switch {
	case err == nil:
		return nil
	case s.err != nil:
		return s.err
	case errors.Is(err, tar.ErrHeader), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, tar.ErrFieldTooLong):
		return invalid("the body is no tar archive, or not a whole one; compressed ones are not taken")
	}
	return err
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader { // such as the commit, of git archive
		return u.count.add(0)
	}
	name, err := entryName(h.Name)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		err = u.directory(name, h)
	case tar.TypeSymlink:
		err = u.symlink(name, h)
	case tar.TypeReg, tar.TypeGNUSparse:
		err = u.file(name, h, content)
	default:
		return invalid("entry %.200q: only files, directories and symlinks are taken, not type %q", h.Name, h.Typeflag)
	}
	return refused(h.Name, err)
}

// entryName is an entry's path below the target; "." is the target itself.
func entryName(name string) (string, error) {
	switch {
	case name == "" || len(name) > maxName || strings.ContainsRune(name, 0):
		return "", invalid("entry %.200q: not a path", name)
	case path.IsAbs(name):
		return "", invalid("entry %.200q: the path is absolute", name)
	case strings.Count(name, "/") >= walk.MaxDepth:
		return "", invalid("entry %.200q: the path has more than %d levels", name, walk.MaxDepth)
	}
	for element := range strings.SplitSeq(name, "/") {
		if element == ".." {
			return "", invalid("entry %.200q: the path contains `..`", name)
		}
		if files.Staged(element) {
			return "", invalid("entry %.200q: names that start so are reserved", name)
		}
	}
	return path.Clean(name), nil
}

// refused tells what of an error is the archive's fault.
func refused(name string, err error) error {
	var typed *errdefs.Error
	var sys unix.Errno
	switch {
	case err == nil || errors.As(err, &typed):
		return err
	case errors.Is(err, fs.ErrExist):
		return invalid("entry %.200q: appears twice", name)
	case errors.Is(err, unix.ENOTDIR):
		return invalid("entry %.200q: what is above it is no directory", name)
	case errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.ELOOP):
		return invalid("entry %.200q: the path is too long", name)
	case errors.As(err, &sys), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, tar.ErrHeader):
		return err
	}
	var p *fs.PathError
	if errors.As(err, &p) { // of os.Root, without a kernel's error
		return invalid("entry %.200q: a symlink leads out of the archive", name)
	}
	return err
}

func (u *unpacker) directory(name string, h *tar.Header) error {
	if err := u.count.add(0); err != nil || name == "." {
		return err
	}
	if err := u.above(name); err != nil {
		return err
	}
	err := u.root.Mkdir(name, dirMode)
	if errors.Is(err, fs.ErrExist) {
		info, serr := u.root.Lstat(name)
		if serr != nil || !info.IsDir() {
			return err
		}
		u.result.Directories-- // repeated
	} else if err != nil {
		return err
	}
	u.result.Directories++
	return u.root.Chmod(name, fs.FileMode(h.Mode)&0o777|0o700) // the tree is still being filled
}

func (u *unpacker) symlink(name string, h *tar.Header) error {
	if err := u.count.add(0); err != nil {
		return err
	}
	if h.Linkname == "" || len(h.Linkname) > maxName || strings.ContainsRune(h.Linkname, 0) {
		return invalid("entry %.200q: not a symlink's target", h.Name)
	}
	if err := u.above(name); err != nil {
		return err
	}
	u.result.Symlinks++
	u.parent = "" // it may lead elsewhere now
	return u.root.Symlink(h.Linkname, name)
}

func (u *unpacker) file(name string, h *tar.Header, content io.Reader) error {
	if h.Size > u.count.limits.File {
		return tooLarge("entry %.200q: a file has at most %d bytes", h.Name, u.count.limits.File)
	}
	if err := u.count.add(h.Size); err != nil {
		return err
	}
	if err := u.above(name); err != nil {
		return err
	}
	f, err := u.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	n, err := files.Copy(f, content, u.buf)
	if err := errors.Join(err, f.Chmod(fs.FileMode(h.Mode)&0o777), f.Close()); err != nil {
		return err
	}
	_ = u.root.Chtimes(name, h.ModTime, h.ModTime) // a time that can't be set is not worth a refusal
	u.result.Files++
	u.result.Bytes += n
	return nil
}

// above makes the directories above an entry, which an archive need not list.
func (u *unpacker) above(name string) error {
	dir := path.Dir(name)
	if dir == "." || dir == u.parent {
		return nil
	}
	if err := u.root.MkdirAll(dir, dirMode); err != nil {
		return err
	}
	u.parent = dir
	return nil
}
