package main

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
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

// pack makes an OCI layout of one image with one layer from rootfs, which was
// installed since began.
func pack(r recipe, rootfs string, began time.Time, out string) (v1.Hash, error) {
	tarPath := out + ".tar.gz"
	defer os.Remove(tarPath)
	if err := writeLayer(rootfs, began, tarPath); err != nil {
		return v1.Hash{}, fmt.Errorf("packing the layer: %w", err)
	}
	layer, err := tarball.LayerFromFile(tarPath, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return v1.Hash{}, err
	}
	img, err := image(r, layer)
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

func image(r recipe, layer v1.Layer) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, layer)
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
	for k, v := range r.Env {
		file.Config.Env = append(file.Config.Env, k+"="+v)
	}
	sort.Strings(file.Config.Env)
	return mutate.ConfigFile(img, file)
}

func writeLayer(rootfs string, began time.Time, to string) error {
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
	if err := writeTree(rootfs, began, z); err != nil {
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
	root   string
	tar    *tar.Writer
	began  time.Time         // files of this build are this new or newer
	latest time.Time         // what their time becomes: that of the newest packaged file
	linked map[uint64]string // inode to the name that was written first
}

func writeTree(root string, began time.Time, w io.Writer) error {
	t := &treeWriter{root: root, tar: tar.NewWriter(w), began: began, linked: map[uint64]string{}}
	if err := filepath.WalkDir(root, t.age); err != nil {
		return err
	}
	if err := filepath.WalkDir(root, t.add); err != nil { // in lexical order
		return err
	}
	return t.tar.Close()
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
