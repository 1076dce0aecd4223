package main

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// A tree is a root file system that was installed since began, over a base.
type tree struct {
	root  string
	began time.Time
	base  v1.Image        // nil: there is none
	marks map[string]mark // of the base's files
}

// pack makes an OCI layout of one image: the base and one layer more, which holds
// what the tree has beyond it.
func pack(r recipe, t tree, out string) (v1.Hash, error) {
	tarPath := out + ".tar.gz"
	defer os.Remove(tarPath)
	if err := writeLayer(t, tarPath); err != nil {
		return v1.Hash{}, fmt.Errorf("packing the layer: %w", err)
	}
	layer, err := tarball.LayerFromFile(tarPath, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return v1.Hash{}, err
	}
	img, err := image(r, t.base, layer)
	if err != nil {
		return v1.Hash{}, err
	}
	p, err := layout.Write(out, empty.Index)
	if err != nil {
		return v1.Hash{}, err
	}
	if err := p.AppendImage(img); err != nil {
		return v1.Hash{}, err
	}
	if err := os.WriteFile(filepath.Join(out, recipeFile), []byte(r.hash()), 0o644); err != nil {
		return v1.Hash{}, err
	}
	return img.Digest()
}

func image(r recipe, base v1.Image, layer v1.Layer) (v1.Image, error) {
	if base == nil {
		base = mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	}
	img, err := mutate.AppendLayers(base, layer)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", r.Arch
	file.Config.WorkingDir = r.Workdir
	file.Config.Cmd = []string{"/bin/bash"}
	file.Config.Env = nil
	for k, v := range r.Env {
		file.Config.Env = append(file.Config.Env, k+"="+v)
	}
	sort.Strings(file.Config.Env)
	return mutate.ConfigFile(img, file)
}

func writeLayer(t tree, to string) error {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close()
	buffered := bufio.NewWriterSize(f, 1<<20)
	z, err := gzip.NewWriterLevel(buffered, gzip.BestSpeed) // it never leaves the machine
	if err != nil {
		return err
	}
	if err := writeTree(t, z); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	if err := buffered.Flush(); err != nil {
		return err
	}
	return f.Close()
}

// A treeWriter turns a tree into a tar that depends on its content alone: names
// sorted, owners by number, no times of this build.
type treeWriter struct {
	tree   // files of this build are as new as began or newer
	tar    *tar.Writer
	latest time.Time         // what their time becomes: that of the newest packaged file
	linked map[uint64]string // inode to the name that was written first
	found  map[string]bool   // names of the base's that are there still
}

func writeTree(of tree, w io.Writer) error {
	t := &treeWriter{tree: of, tar: tar.NewWriter(w), linked: map[uint64]string{}, found: map[string]bool{}}
	if err := filepath.WalkDir(t.root, t.age); err != nil {
		return err
	}
	if err := filepath.WalkDir(t.root, t.add); err != nil { // in lexical order
		return err
	}
	if err := t.whiteouts(); err != nil {
		return err
	}
	return t.tar.Close()
}

// whiteouts marks what the base had and is gone.
func (t *treeWriter) whiteouts() error {
	for _, name := range slices.Sorted(maps.Keys(t.marks)) {
		dir, file := filepath.Split(name)
		if t.found[name] || dir != "" && !t.found[filepath.Clean(dir)] {
			continue // there, or gone with its directory
		}
		if err := t.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: dir + ".wh." + file, Mode: 0o600, Format: tar.FormatPAX}); err != nil {
			return err
		}
	}
	return nil
}

// same reports whether the base has the file already.
func (t *treeWriter) same(path, name string, info fs.FileInfo) (bool, error) {
	old, ok := t.marks[name]
	if !ok {
		return false, nil
	}
	t.found[name] = true
	now, err := markOf(path, info)
	return now == old, err
}

// age finds the newest file that dpkg unpacked with its package's own time.
// Those times stay: Python's byte code is valid for its source's time alone.
func (t *treeWriter) age(_ string, d fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	info, err := d.Info()
	if err != nil {
		return err
	}
	if at := info.ModTime(); at.Before(t.began) && at.After(t.latest) {
		t.latest = at.Truncate(time.Second)
	}
	return nil
}

func (t *treeWriter) add(path string, d fs.DirEntry, err error) error {
	if err != nil || path == t.root {
		return err
	}
	info, err := d.Info()
	if err != nil {
		return err
	}
	name, err := filepath.Rel(t.root, path)
	if err != nil {
		return err
	}
	if same, err := t.same(path, name, info); same || err != nil {
		return err
	}
	h, err := t.header(path, name, info)
	if err != nil || h == nil {
		return err
	}
	if err := t.tar.WriteHeader(h); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	return t.copy(path)
}

// header is nil for what an image must not hold: devices, sockets and pipes.
func (t *treeWriter) header(path, name string, info fs.FileInfo) (*tar.Header, error) {
	var target string
	switch info.Mode().Type() {
	case 0, fs.ModeDir:
	case fs.ModeSymlink:
		var err error
		if target, err = os.Readlink(path); err != nil {
			return nil, err
		}
	default:
		return nil, nil
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return nil, err
	}
	h.Name, h.Format = name, tar.FormatPAX
	if info.IsDir() {
		h.Name += "/"
	}
	h.Uname, h.Gname = "", ""
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	if h.ModTime = h.ModTime.Truncate(time.Second); !info.ModTime().Before(t.began) {
		h.ModTime = t.latest
	}
	t.link(h, name, info)
	return h, nil
}

// link turns every name of an inode but the first into a hard link.
func (t *treeWriter) link(h *tar.Header, name string, info fs.FileInfo) {
	st := info.Sys().(*syscall.Stat_t)
	if h.Typeflag != tar.TypeReg || st.Nlink < 2 {
		return
	}
	if first, ok := t.linked[st.Ino]; ok {
		h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		return
	}
	t.linked[st.Ino] = name
}

func (t *treeWriter) copy(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(t.tar, f)
	return err
}
