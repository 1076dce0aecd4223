package e2e_test

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"

	"s0.run/api/client"
	"s0.run/internal/s0test"
)

// counts writes one number after the other to four files, each in its own way and in this
// order, for ever: none is ever ahead of one before it.
const counts = `
import mmap, os
os.chdir("/data")
def file(name):
    fd = os.open(name, os.O_CREAT | os.O_RDWR)
    os.pwrite(fd, b"0" * 20, 0)
    return fd
first, second = file("first"), file("second")
mapped = mmap.mmap(second, 20)
file("third"); fourth = file("fourth")
open("/tmp/counting", "w").close()
n = 0
while True:
    n += 1
    b = b"%020d" % n
    os.pwrite(first, b, 0)
    mapped[:] = b
    with open("new", "wb") as f: f.write(b)
    os.rename("new", "third")
    os.pwrite(fourth, b, 0)
`

// R7: a snapshot and a fork of a volume that is written to all the time are one instant each.
func testVolumeInstants(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	volume, err := u.c.CreateVolume(u.ctx(), "", client.CreateSandboxVolumeRequest{})
	must(u, "making a volume", volume, err)
	u.t.Cleanup(func() { u.removeVolume(volume.ID) })
	id := u.claimMounted("default", volume.ID)
	_, err = u.c.CreateContext(u.ctx(), id, client.CreateContextRequest{
		Type: client.ContextTypeCMD, CMD: &client.CMDRequest{Command: []string{"python3", "-c", counts}},
	})
	must(u, "starting to count", id, err)
	s.Eventually("counting", func() error {
		if got := text(u.run(id, "ls", "/tmp").Stdout); !strings.Contains(got, "counting") {
			return fmt.Errorf("/tmp has %q", got)
		}
		return nil
	})
	last := 0
	for i := range 3 {
		snap, err := u.c.CreateVolumeSnapshot(u.ctx(), volume.ID, client.CreateVolumeSnapshotRequest{Name: fmt.Sprint("instant ", i)})
		must(u, "a snapshot of what is written to", snap, err)
		kept, err := u.c.CreateVolume(u.ctx(), "", client.CreateSandboxVolumeRequest{SnapshotID: &snap.ID})
		must(u, "a volume of the snapshot", kept, err)
		u.t.Cleanup(func() { u.removeVolume(kept.ID) })
		fork, err := u.c.ForkVolume(u.ctx(), volume.ID, "", client.ForkVolumeRequest{})
		must(u, "a fork of what is written to", fork, err)
		u.t.Cleanup(func() { u.removeVolume(fork.ID) })
		for what, at := range map[string]string{"kept": kept.ID, "fork": fork.ID} {
			mount, err := u.c.MountVolume(u.ctx(), id, at, fmt.Sprint("/", what, i))
			must(u, "mounting a copy", mount, err)
		}
		first := u.wantCounts(id, fmt.Sprint("/kept", i), last)
		last = u.wantCounts(id, fmt.Sprint("/fork", i), first)
	}
}

// claimMounted takes a sandbox of a template that has a volume at /data.
func (u *user) claimMounted(template, volume string) (id string) {
	u.t.Helper()
	return u.claimed(client.ClaimRequest{Template: template, Mounts: []client.ClaimMount{{SandboxvolumeID: volume, MountPoint: "/data"}}})
}

func (u *user) removeVolume(id string) {
	u.t.Helper()
	if err := u.c.DeleteVolume(u.ctx(), id, true); err != nil {
		u.t.Errorf("deleting volume %s: %v", id, err)
	}
}

// wantCounts reads the counters in a directory, which have been at one before at least.
func (u *user) wantCounts(id, dir string, before int) (first int) {
	u.t.Helper()
	var all []int
	for _, name := range []string{"first", "second", "third", "fourth"} {
		n, err := strconv.Atoi(u.read(id, dir+"/"+name))
		all = append(all, must(u, "reading "+name, n, err))
	}
	for i, n := range all {
		if n > all[max(i-1, 0)] || n+1 < all[0] || n < before {
			u.t.Errorf("%s is no instant: %v, the one before was at %d", dir, all, before)
		}
	}
	u.t.Logf("%s: %v", dir, all)
	return all[0] - 1
}

// A directory that is kept alike with a volume has what a sandbox writes there, and the
// sandbox what was sent; neither overwrites what it has not seen.
func testVolumeSync(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	volume, err := u.c.CreateVolume(u.ctx(), "", client.CreateSandboxVolumeRequest{})
	must(u, "making a volume", volume, err)
	u.t.Cleanup(func() { u.removeVolume(volume.ID) })
	id := u.claimMounted("default", volume.ID)
	u.run(id, "sh", "-c", "mkdir /data/d && echo one >/data/d/a && ln -s a /data/d/link")
	replica, err := u.c.PutVolumeSyncReplica(u.ctx(), volume.ID, "laptop", client.PutVolumeSyncReplicaRequest{})
	if head := must(u, "registering a replica", replica, err).HeadSeq; head != 2 {
		u.t.Errorf("the journal of a directory with a file ends at %d", head)
	}
	send := func(base int64, path, content string) *client.VolumeSyncChangesResult {
		t.Helper()
		done, err := u.c.SendVolumeSyncChanges(u.ctx(), volume.ID, "laptop", client.VolumeSyncChangesRequest{
			RequestID: fmt.Sprint(path, base), BaseSeq: base, Changes: []client.VolumeSyncChange{{EventType: "write", Path: path, ContentBase64: []byte(content)}},
		})
		return must(u, "sending a change", done, err)
	}
	sent := send(2, "/d/a", "two\n")
	if got := u.read(id, "/data/d/a"); got != "two\n" {
		u.t.Errorf("the sandbox reads %q", got)
	}
	u.run(id, "sh", "-c", "echo three >/data/d/a; mv /data/d/a /data/b; echo four >/data/d/a")
	refused := send(sent.HeadSeq, "/d/a", "five\n")
	if len(refused.Conflicts) != 1 || refused.Conflicts[0].ArtifactPath == nil {
		u.t.Fatalf("what the sandbox wrote was overwritten: %+v", refused)
	}
	if a, kept := u.read(id, "/data/d/a"), u.read(id, "/data"+*refused.Conflicts[0].ArtifactPath); a != "four\n" || kept != "five\n" {
		u.t.Errorf("the sandbox reads %q, and %q beside it", a, kept)
	}
	journal, err := u.c.ListVolumeSyncChanges(u.ctx(), volume.ID, sent.HeadSeq, 0)
	contents := map[string]string{}
	for _, e := range must(u, "reading the journal", journal, err).Changes {
		r, err := u.c.ReadVolumeSyncPayload(u.ctx(), volume.ID, *e.ContentRef)
		content, err := io.ReadAll(must(u, "opening "+e.Path, r, err))
		contents[e.Path] = string(must(u, "reading "+e.Path, content, err))
		r.Close()
	}
	want := map[string]string{"/b": "three\n", "/d/a": "four\n", *refused.Conflicts[0].ArtifactPath: "five\n"}
	if fmt.Sprint(contents) != fmt.Sprint(want) {
		u.t.Errorf("the journal has %q, want %q", contents, want)
	}
	u.wantBootstrap(volume.ID, 4) // not the symlink
}

// wantBootstrap has a new replica begin with so many files and directories.
func (u *user) wantBootstrap(volume string, want int) {
	u.t.Helper()
	begun, err := u.c.BootstrapVolumeSync(u.ctx(), volume, client.BootstrapVolumeSyncRequest{})
	must(u, "beginning a replica", begun, err)
	packed, err := u.c.ReadVolumeSyncArchive(u.ctx(), volume, begun.Snapshot.ID)
	defer must(u, "opening the archive", packed, err).Close()
	plain, err := gzip.NewReader(packed)
	must(u, "reading the archive", plain, err)
	var names []string
	for in := tar.NewReader(plain); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		names = append(names, must(u, "reading the archive", h, err).Name)
	}
	if len(names) != want {
		u.t.Errorf("the archive has %q, want %d", names, want)
	}
}
