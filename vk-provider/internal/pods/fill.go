package pods

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/vk-provider/internal/podspec"
)

// freshInterval is how old the files of a volume may be, half as much again at most. A
// pod whose labels or annotations change is looked after at once, as kubelets do.
const freshInterval = time.Minute

// Names in a volume, as kubelets have them: a version is a directory, dataLink leads to the
// one that counts, and a file's name leads through it. Who reads sees one version or another.
const (
	dataLink      = "..data"
	versionPrefix = "..s0_"
)

// fill puts the files of a pod's volumes into its sandbox; false: the pod is to go.
func (p *Pods) fill(ctx context.Context, pod *pod, mounts map[string]mounted) bool {
	return p.attempt(ctx, pod, func() bool {
		err := p.place(ctx, pod, mounts)
		if err != nil {
			p.notYet(ctx, pod, "FailedMount", err)
		}
		return err != nil
	})
}

// place makes what is mounted be there. It may be repeated, and then replaces files alone
// that are others.
func (p *Pods) place(ctx context.Context, pod *pod, mounts map[string]mounted) error {
	p.mu.Lock()
	sb := pod.sandbox
	p.mu.Unlock()
	for _, dir := range slices.Sorted(maps.Keys(mounts)) {
		var err error
		switch m := mounts[dir]; {
		case m.files != nil:
			err = p.publish(ctx, pod, sb, dir, m.files)
		case m.same != "":
			err = p.link(ctx, sb, dir, m.same)
		default:
			err = p.cfg.Node.MakeDir(ctx, instance(sb), dir)
		}
		if err != nil {
			return fmt.Errorf("volume at %s: %w", dir, err)
		}
	}
	return nil
}

// link has a path lead to where its emptyDir is. What the image has there is hidden by a
// mount, and so it goes.
func (p *Pods) link(ctx context.Context, sb *nodeapi.Sandbox, dir, to string) error {
	now, err := p.cfg.Node.Stat(ctx, instance(sb), dir)
	if err != nil && !errdefs.Is(err, errdefs.NotFound) || now.LinkTarget == to {
		return err
	}
	if err := p.cfg.Node.Remove(ctx, instance(sb), dir); err != nil {
		return err
	}
	return p.cfg.Node.Unpack(ctx, instance(sb), path.Dir(dir), archive(entry{name: path.Base(dir), link: to}))
}

// publish makes files those of a volume, all at once.
func (p *Pods) publish(ctx context.Context, pod *pod, sb *nodeapi.Sandbox, dir string, files map[string]file) error {
	version := versionOf(files)
	if pod.published[dir] == version {
		return nil
	}
	now, err := p.cfg.Node.Stat(ctx, instance(sb), path.Join(dir, dataLink))
	if err != nil && !errdefs.Is(err, errdefs.NotFound) {
		return err
	}
	if now.LinkTarget != version {
		for _, step := range [][]entry{tree(version, files), {{name: dataLink, link: version}}} {
			if err := p.cfg.Node.Unpack(ctx, instance(sb), dir, archive(step...)); err != nil {
				return err
			}
		}
	}
	links, names := linksOf(files)
	if err := p.clear(ctx, sb, dir, names); err != nil {
		return err
	}
	if err := p.cfg.Node.Unpack(ctx, instance(sb), dir, archive(links...)); err != nil {
		return err
	}
	if err := p.tidy(ctx, sb, dir, version, names); err != nil {
		return err
	}
	pod.published[dir] = version
	return nil
}

// linksOf are the names at the top of a volume, which lead through dataLink.
func linksOf(files map[string]file) (links []entry, names map[string]bool) {
	names = map[string]bool{}
	for name := range files {
		top, _, _ := strings.Cut(name, "/")
		if !names[top] {
			names[top] = true
			links = append(links, entry{name: top, link: dataLink + "/" + top})
		}
	}
	return links, names
}

// clear removes directories whose names a volume's links have, which a link can't replace:
// the image's, or a volume's that was filled before there were versions.
func (p *Pods) clear(ctx context.Context, sb *nodeapi.Sandbox, dir string, names map[string]bool) error {
	all, err := p.cfg.Node.List(ctx, instance(sb), dir)
	if err != nil {
		return err
	}
	for _, e := range all {
		if !names[e.Name] || e.IsLink || e.Type != "dir" {
			continue
		}
		if err := p.cfg.Node.Remove(ctx, instance(sb), path.Join(dir, e.Name)); err != nil {
			return err
		}
	}
	return nil
}

// tidy removes the versions of before, and names that lead nowhere any more.
func (p *Pods) tidy(ctx context.Context, sb *nodeapi.Sandbox, dir, version string, names map[string]bool) error {
	all, err := p.cfg.Node.List(ctx, instance(sb), dir)
	if err != nil {
		return err
	}
	for _, e := range all {
		stale := e.IsLink && e.LinkTarget == dataLink+"/"+e.Name && !names[e.Name]
		before := strings.HasPrefix(e.Name, versionPrefix) && e.Name != version
		if !stale && !before {
			continue
		}
		if err := p.cfg.Node.Remove(ctx, instance(sb), path.Join(dir, e.Name)); err != nil {
			return err
		}
	}
	return nil
}

// versionOf names files by what they are.
func versionOf(files map[string]file) string {
	sum := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		f := files[name]
		fmt.Fprintf(sum, "%d %s %o %d ", len(name), name, f.mode, len(f.content))
		io.WriteString(sum, f.content)
	}
	return versionPrefix + hex.EncodeToString(sum.Sum(nil)[:8])
}

// entry is one of an archive: a file, a directory, or a link.
type entry struct {
	name string
	file *file
	link string
}

// tree are the entries of a version.
func tree(version string, files map[string]file) []entry {
	all := []entry{{name: version + "/"}}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		f := files[name]
		all = append(all, entry{name: version + "/" + name, file: &f})
	}
	return all
}

func archive(entries ...entry) io.Reader {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: tar.TypeDir, Mode: 0o755}
		content := ""
		switch {
		case e.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
		case e.file != nil:
			content = e.file.content
			h.Typeflag, h.Mode, h.Size = tar.TypeReg, e.file.mode, int64(len(content))
		}
		if w.WriteHeader(h) == nil { // what is no name is an archive that breaks off, which is refused
			_, _ = io.WriteString(w, content)
		}
	}
	_ = w.Close()
	return &b
}

// mountsFiles reports whether something in Kubernetes decides what a pod's volumes have.
func mountsFiles(api *corev1.Pod) bool {
	return slices.ContainsFunc(api.Spec.Volumes, func(v corev1.Volume) bool { return v.EmptyDir == nil && !podspec.TokenVolume(v) })
}

// keepFresh follows what volumes are made of, until ctx ends or the pod's sandbox has.
// Environments stay what containers began with.
func (p *Pods) keepFresh(ctx context.Context, pod *pod) {
	said := ""
	for !p.over(pod) {
		select {
		case <-ctx.Done():
			return
		case <-pod.changed:
		case <-time.After(freshInterval + rand.N(freshInterval/2)):
		}
		err := p.refresh(ctx, pod)
		if err == nil || ctx.Err() != nil {
			said = ""
			continue
		}
		if message := text(err); message != said { // what is there stays
			said = message
			p.event(pod, corev1.EventTypeWarning, "FailedMount", message)
			p.cfg.Log.Warn("a pod's volumes are not up to date", "pod", key(pod.namespace, pod.name), "uid", pod.uid, "error", err)
		}
	}
}

func (p *Pods) refresh(ctx context.Context, pod *pod) error {
	ctx, cancel := context.WithTimeout(ctx, freshInterval)
	defer cancel()
	mounts, err := p.resolver(ctx, pod).mounts()
	if err != nil {
		return err
	}
	maps.DeleteFunc(mounts, func(_ string, m mounted) bool { return m.files == nil })
	return p.place(ctx, pod, mounts)
}
