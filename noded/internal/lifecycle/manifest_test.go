package lifecycle_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/noop"
	"s0.run/noded/internal/snapshots"
)

func TestG10_ResumeOnAnotherRuntimeIsRefused(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot()
	id := n.warm(1)[0]
	n.claim(id)
	n.pause(id)
	n.released()
	runtime := noop.Runtime{Node: n.node}
	runtime.Upgrade("noop 2")
	_, err := n.Resume(n.ctx(), id, 0, 0)
	e := errdefs.From(err)
	if e == nil || e.Kind != errdefs.Conflict || e.Code != nodeapi.CodeMemoryDiffers || !strings.Contains(e.Message, "without its memory") {
		t.Fatalf("resume by another runtime: %v", err)
	}
	if sb, err := n.Get(id); err != nil || sb.State() != sandbox.Paused || sb.Generation != 1 {
		t.Errorf("after the refusal: %+v, %v", sb, err)
	}
	n.released() // and nothing was tried
	runtime.Upgrade("noop 1")
	n.resume(id, 2)
}

func TestG11_ImageOfAnotherTenantIsRefused(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot()
	id := n.warm(1)[0]
	n.claim(id)
	n.pause(id)
	n.released()
	dir := filepath.Join(n.image(id), "1")
	m, err := snapshots.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	mine := m.Team
	m.Team = "somebody-else"
	if err := snapshots.Write(dir, m); err != nil {
		t.Fatal(err)
	}
	_, err = n.Resume(n.ctx(), id, 0, 0)
	if e := errdefs.From(err); e == nil || e.Kind != errdefs.Internal || strings.Contains(e.Message, "somebody") {
		t.Errorf("resume of another team's image: %v", err)
	}
	m.Team = mine
	if err := snapshots.Write(dir, m); err != nil {
		t.Fatal(err)
	}
	n.resume(id, 2)
}

// What a template's reference means by now, or on this node, is not what was saved.
func TestG10_ResumeOnTheImageThatWasSaved(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot()
	id := n.warm(1)[0]
	n.claim(id)
	n.pause(id)
	n.released()
	n.resume(id, 2)
	if sb, err := n.Get(id); err != nil || sb.Spec.Image != "noop" {
		t.Errorf("resumed on %q, saved on %q: %v", sb.Spec.Image, "noop", err)
	}
	if images := n.Images(); len(images) != 1 || images[0] != "noop" {
		t.Errorf("it needs the images %q", images)
	}
}

func TestImageWithoutManifestResumesWhereItIs(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot()
	id := n.warm(1)[0]
	n.claim(id)
	n.pause(id)
	n.released()
	if err := os.Remove(filepath.Join(n.image(id), "1", snapshots.FileName)); err != nil {
		t.Fatal(err)
	}
	n.resume(id, 2)
}
