package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	"s0.run/api/client"
	"s0.run/internal/s0test"
	"s0.run/internal/s0test/s3test"
)

// testBucket has a sandbox with a bucket: programs find its objects as files and change none.
// Over a pause they have open what has the name then, and a sandbox of which an open object is
// gone stays paused until there is one.
func testBucket(t *testing.T, s *s0test.Stack) {
	store := s3test.New(t)
	store.Put(t, "data/in/a", "content")
	store.Put(t, "in/elsewhere", "not of the volume")
	v := newBucketUser(t, s, store, "data")
	v.wantSh("/data/in/a", "find /data -type f; tar -cf /tmp/some.tar -C /etc hostname")
	for _, script := range []string{
		"echo new > /data/in/new", "echo more >> /data/in/a", "cp /etc/hostname /data/in/new", "mkdir /data/new",
		"rm /data/in/a", "mv /data/in/a /data/in/b", "tar -xf /tmp/some.tar -C /data",
	} {
		if got := v.sh(script + " && echo done"); !strings.Contains(got, "Read-only file system") || strings.Contains(got, "done") {
			t.Errorf("%s: %q", script, got)
		}
	}
	for _, asked := range store.Asked() {
		if !strings.HasPrefix(asked, "GET ") && !strings.HasPrefix(asked, "HEAD ") {
			t.Errorf("the store was asked to %s", asked)
		}
	}
	py := v.python(v.id)
	v.wantExec(v.id, py, "f = open('/data/in/a'); print(f.buffer.raw.read(3))", "b'con'")
	v.pause(v.id)
	store.Delete(t, "data/in/a") // gVisor takes up nothing that has a file open whose name is gone
	if r, err := v.c.ResumeSandbox(v.ctx(), v.id); !isStatus(err, 503) {
		t.Errorf("a resume without an object that is open: %+v, %v", r, err)
	}
	if sb := v.status(v.id); !sb.Paused {
		t.Errorf("a sandbox that was not resumed: %+v", sb)
	}
	store.Put(t, "data/in/a", "CONTENT")
	s.Eventually("a resume", func() error {
		_, err := v.c.ResumeSandbox(v.ctx(), v.id)
		return err
	})
	v.wantExec(v.id, py, "print(f.buffer.raw.read())", "b'TENT'")
	store.Put(t, "data/in/b", "later")
	s.Eventually("what the bucket has now", func() error {
		if got := v.sh("cat /data/in/b"); got != "later" {
			return fmt.Errorf("it is %q", got)
		}
		return nil
	})
}

// newBucketUser makes a user with a volume that is what a store has below a prefix, which a
// sandbox has at /data.
func newBucketUser(t *testing.T, s *s0test.Stack, store *s3test.Server, prefix string) *volumeUser {
	t.Helper()
	u := newUser(t, s)
	backend, region := client.VolumeBackendS3, s3test.Region
	volume, err := u.c.CreateVolume(u.ctx(), "", client.CreateSandboxVolumeRequest{Backend: &backend, S3: &client.CreateSandboxVolumeS3Config{
		Bucket: s3test.Bucket, Prefix: &prefix, Region: &region, EndpointURL: &store.URL, AccessKey: s3test.AccessKey, SecretKey: s3test.SecretKey,
	}})
	if got := must(u, "making a volume of a bucket", volume, err).AccessMode; got != client.VolumeAccessModeROX {
		t.Errorf("a bucket has access mode %s", got)
	}
	t.Cleanup(func() { u.removeVolume(volume.ID) })
	v := &volumeUser{user: u, volume: volume.ID}
	v.claim()
	return v
}
