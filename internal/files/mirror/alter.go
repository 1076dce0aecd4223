package mirror

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/internal/files"
	"s0.run/internal/procapi"
)

// Alter makes alterations in order, until one can't be made. They are durable together.
func (m Mirror) Alter(ctx context.Context, all []procapi.Alteration) (procapi.AlterResult, error) {
	result := procapi.AlterResult{Entries: make([]*procapi.TreeEntry, len(all))}
	err := func() (err error) {
		for i, a := range all {
			if err = ctx.Err(); err != nil {
				return err
			}
			if result.Entries[i], err = m.alter(ctx, a); err != nil {
				return err
			}
		}
		return nil
	}()
	return result, errors.Join(err, m.sync())
}

// sync is for the whole file system: there are more alterations than there is time to wait
// for one by one.
func (m Mirror) sync() error {
	if !m.tree.Durable {
		return nil
	}
	root, err := os.Open(m.tree.Base)
	if err != nil {
		return files.Failure(err, "changing")
	}
	defer root.Close()
	return files.Failure(unix.Syncfs(int(root.Fd())), "changing")
}

func (m Mirror) alter(ctx context.Context, a procapi.Alteration) (*procapi.TreeEntry, error) {
	dir, base, err := m.parent(a.Path)
	if err != nil {
		return nil, changedAbove(err, a.Path)
	}
	defer dir.Close()
	if a.Op == procapi.AlterMkdir {
		a.Expect = procapi.ExpectAbsent
	}
	st, err := expect(dir, base, a.Path, a.Expect)
	if err != nil {
		return nil, files.Failure(err, "changing")
	}
	switch a.Op {
	case procapi.AlterMkdir:
		return entry(then(dir, base, a.Path, mkdir(dir, base, a.Mode)))
	case procapi.AlterRemove:
		return nil, remove(dir, base, a.Path, st.Mode)
	case procapi.AlterChmod:
		return entry(then(dir, base, a.Path, unix.Fchmodat(int(dir.Fd()), base, a.Mode&permissions, 0)))
	case procapi.AlterRename:
		return entry(m.rename(ctx, dir, base, a))
	}
	return nil, errdefs.WithCode(errdefs.InvalidArgument, "invalid_request", "op %.20q is none", a.Op)
}

func entry(e procapi.TreeEntry, err error) (*procapi.TreeEntry, error) {
	if err != nil {
		return nil, files.Failure(err, "changing")
	}
	return &e, nil
}

// then is what a path is behind a step, which may have failed.
func then(dir *os.File, base, name string, err error) (procapi.TreeEntry, error) {
	if errors.Is(err, unix.EEXIST) {
		err = moved(name)
	}
	if err != nil {
		return procapi.TreeEntry{}, err
	}
	return at(dir, base, name)
}

func mkdir(dir *os.File, base string, mode uint32) error {
	if err := unix.Mkdirat(int(dir.Fd()), base, 0o700); err != nil {
		return err
	}
	return unix.Fchmodat(int(dir.Fd()), base, mode&permissions, 0) // which no mask changes
}

func remove(dir *os.File, base, name string, mode uint32) error {
	flags := 0
	if mode&unix.S_IFMT == unix.S_IFDIR {
		flags = unix.AT_REMOVEDIR
	}
	err := unix.Unlinkat(int(dir.Fd()), base, flags)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOENT) {
		err = moved(name)
	}
	return files.Failure(err, "deleting")
}

// rename moves a file by itself, and a directory as the tree moves one.
func (m Mirror) rename(ctx context.Context, dir *os.File, base string, a procapi.Alteration) (procapi.TreeEntry, error) {
	to, toBase, err := m.parent(a.To)
	if err != nil {
		return procapi.TreeEntry{}, changedAbove(err, a.To)
	}
	defer to.Close()
	if _, err := expect(to, toBase, a.To, a.ExpectTo); err != nil {
		return procapi.TreeEntry{}, err
	}
	if a.Expect == procapi.ExpectDir {
		if a.ExpectTo != procapi.ExpectAbsent {
			return procapi.TreeEntry{}, moved(a.To)
		}
		err = m.tree.Move(ctx, filepath.Join(m.tree.Base, a.Path), filepath.Join(m.tree.Base, a.To))
		return then(to, toBase, a.To, err)
	}
	flags := uint(0)
	if a.ExpectTo == procapi.ExpectAbsent {
		flags = unix.RENAME_NOREPLACE
	}
	return then(to, toBase, a.To, unix.Renameat2(int(dir.Fd()), base, int(to.Fd()), toBase, flags))
}
