package api_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	connectrpc "connectrpc.com/connect"

	"s0.run/api"
	"s0.run/api/internal/fakenode"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sealed"
)

// withVolumes gives the node volumes, and buckets that can be some.
func withVolumes(_ *api.Config, n *fakenode.Node) {
	n.Volumes = &fakenode.VolumeStore{Name: "store", Buckets: true}
}

const volumes = "/api/v1/sandboxvolumes"

// volumeOut is what the API tells of a volume.
type volumeOut struct {
	ID, Backend  string
	SourceID     string `json:"source_volume_id"`
	AccessMode   string `json:"access_mode"`
	UID          int64  `json:"default_posix_uid"`
	GID          int64  `json:"default_posix_gid"`
	StorageBytes int64  `json:"metered_storage_bytes"`
	S3           map[string]string
}

// volumeClient is a team's key, for volumes.
type volumeClient struct {
	*instance
	key string
}

func startVolumes(t *testing.T, opts ...option) volumeClient {
	t.Helper()
	i := start(t, append([]option{withNetwork, withVolumes}, opts...)...)
	return volumeClient{i, i.key("admin")}
}

func (c volumeClient) do(method, path, body string) answer {
	c.t.Helper()
	r := request{method: method, path: path, token: c.key}
	if body != "" {
		r.body = body
	}
	return c.send(r)
}

func (c volumeClient) volume(body string) (v volumeOut) {
	c.t.Helper()
	c.do("POST", volumes, body).want(201, &v)
	return v
}

// claimWith claims a sandbox with a volume.
func (c volumeClient) claimWith(volume, point string) answer {
	return c.do("POST", "/api/v1/sandboxes", fmt.Sprintf(`{"template":"default","mounts":[{"sandboxvolume_id":%q,"mount_point":%q}]}`, volume, point))
}

type claimOut struct {
	ID     string `json:"sandbox_id"`
	Mounts []struct {
		Volume string `json:"sandboxvolume_id"`
		Point  string `json:"mount_point"`
		State  string
	} `json:"bootstrap_mounts"`
}

func TestVolumesAreMadeListedAndDeleted(t *testing.T) {
	t.Parallel()
	c := startVolumes(t)
	if a := c.do("GET", volumes, "").want(200, nil); string(a.data) != "[]" {
		t.Errorf("no volumes: %s", a.data)
	}
	v := c.volume("")
	if v.Backend != "s0fs" || v.AccessMode != "RWO" || v.UID != 0 || v.GID != 0 || v.StorageBytes != fakenode.VolumeBytes {
		t.Errorf("by default: %+v", v)
	}
	owned := c.volume(`{"access_mode":"ROX","default_posix_uid":1000,"default_posix_gid":1001,"cache_size":"1G","prefetch":3,"buffer_size":"1","writeback":true}`)
	if owned.AccessMode != "ROX" || owned.UID != 1000 || owned.GID != 1001 {
		t.Errorf("%+v", owned)
	}
	if at := c.node.Volumes.Get(owned.ID); at == nil || at.Of.GetUid() != 1000 || at.Of.GetGid() != 1001 {
		t.Errorf("the node was told %+v", at)
	}
	var list []volumeOut
	c.do("GET", volumes, "").want(200, &list)
	if len(list) != 2 || list[0].ID != owned.ID {
		t.Errorf("newest first: %+v", list)
	}
	c.do("DELETE", volumes+"/"+owned.ID, "").want(200, nil)
	c.do("GET", volumes+"/"+owned.ID, "").refused(404, "not_found")
	c.do("DELETE", volumes+"/"+owned.ID, "").refused(404, "not_found")
	if ids := c.node.Volumes.IDs(); !slices.Equal(ids, []string{v.ID}) {
		t.Errorf("the node has %v", ids)
	}
}

func TestVolumesThatCannotBe(t *testing.T) {
	t.Parallel()
	c := startVolumes(t)
	for _, body := range []string{
		`{"default_posix_uid":1}`, `{"default_posix_gid":1}`, `{"default_posix_uid":-1,"default_posix_gid":0}`, `{"default_posix_uid":4294967295,"default_posix_gid":0}`,
		`{"access_mode":"RWM"}`, `{"backend":"nfs"}`, `{"backend":"s3"}`, `{"s3":{"bucket":"bbb","access_key":"a","secret_key":"b"}}`,
		`{"backend":"s3","s3":{"bucket":"B_","access_key":"a","secret_key":"b"}}`, `{"backend":"s3","s3":{"bucket":"bbb","access_key":"","secret_key":"b"}}`,
		`{"backend":"s3","s3":{"bucket":"bbb","access_key":"a","secret_key":"b","prefix":"../x"}}`, `{"backend":"s3","s3":{"bucket":"bbb","access_key":"a","secret_key":"b","endpoint_url":"file:///etc"}}`,
		`{"backend":"s3","s3":{"bucket":"bbb","access_key":"a","secret_key":"b","endpoint_url":"https://u:p@h/"}}`, `{"backend":"s3","s3":{"bucket":"bbb","access_key":"a","secret_key":"b","provider":"r2"}}`,
		`{"backend":"s3","access_mode":"RWO","s3":{"bucket":"bbb","access_key":"a","secret_key":"b"}}`, `{"backend":"s3","access_mode":"RWX","s3":{"bucket":"bbb","access_key":"a","secret_key":"b"}}`, `{"backend":"s3","s3":{"bucket":"bbb","access_key":"a\nb","secret_key":"b"}}`,
	} {
		c.do("POST", volumes, body).refused(400, "bad_request")
	}
	c.do("POST", volumes, `{"snapshot_id":"00000000-0000-4000-8000-000000000001"}`).refused(404, "not_found")
	c.do("POST", volumes, `{"snapshot_id":"nonsense"}`).refused(404, "not_found")
	if ids := c.node.Volumes.IDs(); len(ids) != 0 {
		t.Errorf("the node has %v", ids)
	}
}

// A deployment without volumes says so, everywhere.
func TestWithoutVolumes(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("admin")
	a := i.send(request{method: "POST", path: volumes, token: key, body: `{}`}).refused(503, "unavailable")
	if a.msg != "volumes are unavailable in this deployment" {
		t.Error(a.msg)
	}
	i.send(request{method: "POST", path: volumes, token: key, body: `{"backend":"s3","s3":{"bucket":"bbb","access_key":"a","secret_key":"b"}}`}).refused(503, "unavailable")
}

// A bucket's credential is sealed when it arrives: no answer, log or row has it, and the
// node is told what opens it alone.
func TestF10_ABucketsCredentialIsSealed(t *testing.T) {
	t.Parallel()
	c := startVolumes(t)
	const secret = "s0-canary-secret-key"
	v := c.volume(`{"backend":"s3","s3":{"provider":"r2","bucket":"my-bucket","prefix":"a/b","region":"auto","endpoint_url":"https://r2.example","access_key":"s0-canary-access","secret_key":"` + secret + `","session_token":"s0-canary-token"}}`)
	if v.Backend != "s3" || v.AccessMode != "ROX" || v.S3["bucket"] != "my-bucket" || v.S3["provider"] != "r2" || v.S3["endpoint_url"] != "https://r2.example" || v.S3["prefix"] != "a/b" {
		t.Errorf("%+v", v)
	}
	for _, where := range []string{string(c.do("GET", volumes, "").raw), string(c.do("GET", volumes+"/"+v.ID, "").raw), c.log.String(), contents(t, c.dsn)} {
		if strings.Contains(where, "s0-canary") {
			t.Errorf("a secret in %.300s", where)
		}
	}
	told := c.node.Volumes.Get(v.ID).Of
	ring, err := sealed.ReadKeyring(keyDir(c.keyFile))
	if err != nil {
		t.Fatal(err)
	}
	cred := nodeapi.CredentialsFromWire([]*nodeapi.SealedCredential{told.GetS3().GetCredential()})[0]
	opened, err := ring.OpenSecret(sealed.Of{Team: told.GetTeam(), Source: told.GetId(), Kind: "s3", Version: 1}, cred.Blob)
	if err != nil || opened.Values["secret_key"] != secret || opened.Values["access_key"] != "s0-canary-access" || opened.Values["session_token"] != "s0-canary-token" {
		t.Errorf("what the node opens: %v", err)
	}
	c.do("POST", volumes+"/"+v.ID+"/snapshots", `{"name":"s"}`).refused(400, "bad_request")
	c.do("POST", volumes+"/"+v.ID+"/fork", `{}`).refused(400, "bad_request")
}

// A16: the same key makes one volume, and is for one request.
func TestA16_VolumesByKey(t *testing.T) {
	t.Parallel()
	c := startVolumes(t)
	post := func(path, body string) answer {
		return c.send(request{method: "POST", path: path, token: c.key, body: body, header: http.Header{"Idempotency-Key": {"k1"}}})
	}
	var first, again volumeOut
	post(volumes, `{"access_mode":"ROX"}`).want(201, &first)
	post(volumes, `{"access_mode":"ROX"}`).want(201, &again)
	if first.ID != again.ID || len(c.node.Volumes.IDs()) != 1 {
		t.Errorf("%s, then %s", first.ID, again.ID)
	}
	post(volumes, `{"access_mode":"RWO"}`).refused(422, "bad_request")
	post(volumes+"/"+first.ID+"/fork", `{}`).refused(422, "bad_request")
	c.do("DELETE", volumes+"/"+first.ID, "").want(200, nil)
	post(volumes, `{"access_mode":"RWO"}`).want(201, nil) // the key went with its volume
}

func TestSnapshotsOfVolumes(t *testing.T) {
	t.Parallel()
	c := startVolumes(t)
	v := c.volume("")
	path := volumes + "/" + v.ID
	type snapshot struct {
		ID, Name, Description string
		VolumeID              string `json:"volume_id"`
		SizeBytes             int64  `json:"size_bytes"`
	}
	if a := c.do("GET", path+"/snapshots", "").want(200, nil); string(a.data) != "[]" {
		t.Errorf("no snapshots: %s", a.data)
	}
	for _, body := range []string{`{}`, `{"name":""}`, `{"name":"a\nb"}`, `{"name":"x","expires_at":"2001-01-01T00:00:00Z"}`} {
		c.do("POST", path+"/snapshots", body).refused(400, "bad_request")
	}
	var s snapshot
	c.do("POST", path+"/snapshots", `{"name":"before","description":"d"}`).want(201, &s)
	if s.VolumeID != v.ID || s.Name != "before" || s.SizeBytes != fakenode.VolumeBytes {
		t.Errorf("%+v", s)
	}
	var restored struct{ Status string }
	c.do("POST", path+"/snapshots/"+s.ID+"/restore", "").want(200, &restored)
	if at := c.node.Volumes.Get(v.ID); restored.Status != "restored" || at.Restored != s.ID {
		t.Errorf("%+v, %+v", restored, at)
	}
	made := c.volume(fmt.Sprintf(`{"snapshot_id":%q,"access_mode":"ROX"}`, s.ID))
	if at := c.node.Volumes.Get(made.ID); at.From != s.ID || made.SourceID != v.ID || made.AccessMode != "ROX" {
		t.Errorf("%+v, %+v", made, at)
	}
	var fork volumeOut
	c.do("POST", path+"/fork", "").want(201, &fork)
	if at := c.node.Volumes.Get(fork.ID); at.From != v.ID || fork.SourceID != v.ID || fork.AccessMode != "RWO" {
		t.Errorf("%+v, %+v", fork, at)
	}
	other := c.volume("")
	c.do("GET", volumes+"/"+other.ID+"/snapshots/"+s.ID, "").refused(404, "not_found") // it is not of this one
	for range 2 {                                                                      // deleting it again succeeds
		c.do("DELETE", path+"/snapshots/"+s.ID, "").want(200, nil)
	}
	c.do("GET", path+"/snapshots/"+s.ID, "").refused(404, "not_found")
	c.do("POST", path+"/snapshots/"+s.ID+"/restore", "").refused(404, "not_found")
	if at := c.node.Volumes.Get(v.ID); len(at.Snapshots) != 0 {
		t.Errorf("the node keeps %v", at.Snapshots)
	}
}

func TestARestoreThatTakesTooLong(t *testing.T) {
	t.Parallel()
	c := startVolumes(t, func(_ *api.Config, n *fakenode.Node) {
		n.Volumes.OnCall = func(_ context.Context, call, _ string) error {
			if call == "RestoreVolume" {
				return connectrpc.NewError(connectrpc.CodeDeadlineExceeded, errors.New("a mount hangs"))
			}
			return nil
		}
	})
	v := c.volume("")
	var s struct{ ID string }
	c.do("POST", volumes+"/"+v.ID+"/snapshots", `{"name":"s"}`).want(201, &s)
	a := c.do("POST", volumes+"/"+v.ID+"/snapshots/"+s.ID+"/restore", "")
	if a.status != 504 || a.msg != "remount timeout" {
		t.Errorf("%d %s", a.status, a.raw)
	}
}

// The files of a volume, with the gateway's codes.
func TestFilesOfVolumes(t *testing.T) {
	t.Parallel()
	c := startVolumes(t)
	v := c.volume("")
	files := volumes + "/" + v.ID + "/files"
	c.do("POST", files+"?path=/a.txt", "hello").want(200, nil)
	if a := c.do("GET", files+"?path=/a.txt", ""); string(a.raw) != "hello" {
		t.Errorf("%s", a.raw)
	}
	c.do("POST", files+"/move", `{"source":"/a.txt","destination":"/b.txt"}`).want(200, nil)
	c.do("GET", files+"/stat?path=/a.txt", "").refused(404, "not_found")
	c.do("GET", files+"/stat?path=/b.txt", "").want(200, nil)
	var list struct{ Entries []struct{ Name string } }
	c.do("GET", files+"/list?path=/", "").want(200, &list)
	if len(list.Entries) != 1 || list.Entries[0].Name != "/b.txt" {
		t.Errorf("%+v", list)
	}
	c.do("POST", files+"?path=/d&mkdir=true", "").want(201, nil)
	c.do("DELETE", files+"?path=/b.txt", "").want(200, nil)
	c.do("GET", files+"?path=/b.txt", "").refused(404, "not_found")
	a := c.send(request{method: "POST", path: files + "?path=/big", token: c.key, body: bytes.NewReader(make([]byte, 101<<20))})
	a.refused(413, "bad_request")
	if told := c.node.Volumes.Get(v.ID).Of; told.GetId() != v.ID || told.GetEpoch() != 1 {
		t.Errorf("the node was told %v", told)
	}
}

// What is beyond the team's quota is refused where it is written, and so is the next volume.
func TestQuotaOfVolumes(t *testing.T) {
	t.Parallel()
	full := false
	c := startVolumes(t, func(_ *api.Config, n *fakenode.Node) {
		n.Volumes.OnCall = func(_ context.Context, call, _ string) error {
			if full && call == "Files" {
				e := connectrpc.NewError(connectrpc.CodeResourceExhausted, errors.New("full"))
				e.Meta().Set(nodeapi.CodeHeader, nodeapi.CodeVolumeFull)
				return e
			}
			return nil
		}
	})
	v := c.volume("")
	if told := c.node.Volumes.Get(v.ID).Of; told.GetLimitBytes() != 0 {
		t.Errorf("without a quota a volume may grow to %d", told.GetLimitBytes())
	}
	var me struct {
		Team string `json:"default_team_id"`
	}
	jwt := c.signIn()
	c.send(request{method: "GET", path: "/users/me", token: jwt}).want(200, &me)
	c.send(request{method: "PUT", path: "/internal/v1/teams/" + me.Team + "/quotas/volume_storage_gb", token: jwt, body: `{"limit_value":2}`}).want(200, nil)
	second := c.volume("") // 1 GB of 2 is used
	if told := c.node.Volumes.Get(second.ID).Of; told.GetLimitBytes() != fakenode.VolumeBytes {
		t.Errorf("D04: the volume that is made may grow to %d", told.GetLimitBytes())
	}
	c.do("POST", volumes, `{}`).refused(429, "quota_exceeded")
	c.do("POST", volumes+"/"+v.ID+"/fork", `{}`).refused(429, "quota_exceeded")
	var q struct {
		Current, Remaining int64
	}
	c.do("GET", "/api/v1/quotas/volume_storage_gb", "").want(200, &q)
	if q.Current != 2 || q.Remaining != 0 {
		t.Errorf("%+v", q)
	}
	c.do("GET", volumes+"/"+v.ID+"/files/list?path=/", "").want(200, nil)
	if told := c.node.Volumes.Get(v.ID).Of; told.GetLimitBytes() != fakenode.VolumeBytes {
		t.Errorf("the volume may grow to %d", told.GetLimitBytes())
	}
	full = true
	c.do("POST", volumes+"/"+v.ID+"/files?path=/x", "x").refused(429, "quota_exceeded")
}

// One volume that one sandbox alone may have.
func TestRWO_OneSandboxAtATime(t *testing.T) {
	t.Parallel()
	c := startVolumes(t)
	v := c.volume("")
	var first claimOut
	c.claimWith(v.ID, "/data").want(201, &first)
	if len(first.Mounts) != 1 || first.Mounts[0].Volume != v.ID || first.Mounts[0].Point != "/data" || first.Mounts[0].State != "mounted" {
		t.Errorf("%+v", first)
	}
	at := c.node.Volumes.Get(v.ID)
	if len(at.Mounts) != 1 || at.Epoch != 2 {
		t.Errorf("%+v", at)
	}
	a := c.claimWith(v.ID, "/data").refused(409, "conflict")
	if !strings.Contains(string(a.raw), first.ID) {
		t.Errorf("who has it is not named: %s", a.raw)
	}
	var sb struct {
		Mounts []map[string]string
	}
	c.do("GET", "/api/v1/sandboxes/"+first.ID, "").want(200, &sb)
	if len(sb.Mounts) != 1 || sb.Mounts[0]["sandboxvolume_id"] != v.ID || sb.Mounts[0]["mount_point"] != "/data" {
		t.Errorf("%+v", sb)
	}
	a = c.do("DELETE", volumes+"/"+v.ID, "").refused(409, "conflict")
	if a.msg != "volume has active mounts" || !strings.Contains(string(a.raw), first.ID) {
		t.Errorf("%s", a.raw)
	}
	c.do("DELETE", "/api/v1/sandboxes/"+first.ID, "").want(200, nil)
	var second claimOut
	c.claimWith(v.ID, "/elsewhere").want(201, &second)
	if at := c.node.Volumes.Get(v.ID); len(at.Mounts) != 1 || at.Epoch != 3 {
		t.Errorf("%+v", at)
	}
	c.do("DELETE", volumes+"/"+v.ID+"?force=true", "").want(200, nil)
	if len(c.node.Volumes.IDs()) != 0 {
		t.Error("the volume is still there")
	}
	sb.Mounts = nil
	c.do("GET", "/api/v1/sandboxes/"+second.ID, "").want(200, &sb)
	if len(sb.Mounts) != 0 {
		t.Errorf("the sandbox still shows %+v", sb)
	}
}

// A15: of many who claim with one volume at a time one gets it.
func TestA15_ManyClaimsOfOneVolume(t *testing.T) {
	t.Parallel()
	c := startVolumes(t)
	v := c.volume("")
	statuses := make(chan int)
	const many = 12
	for range many {
		go func() {
			statuses <- c.send(request{method: "POST", path: "/api/v1/sandboxes", token: c.key, body: fmt.Sprintf(`{"template":"default","mounts":[{"sandboxvolume_id":%q,"mount_point":"/d"}]}`, v.ID)}).status
		}()
	}
	got := map[int]int{}
	for range many {
		got[<-statuses]++
	}
	if got[201] != 1 || got[201]+got[409] != many {
		t.Errorf("%v", got)
	}
	if at := c.node.Volumes.Get(v.ID); len(at.Mounts) != 1 {
		t.Errorf("%+v", at)
	}
}

func TestROXAndRWX(t *testing.T) {
	t.Parallel()
	c := startVolumes(t)
	shared, none := c.volume(`{"access_mode":"ROX"}`), c.volume(`{"access_mode":"RWX"}`)
	c.claimWith(shared.ID, "/data").want(201, nil)
	c.claimWith(shared.ID, "/data").want(201, nil)
	at := c.node.Volumes.Get(shared.ID)
	for m, readOnly := range at.ReadOnly {
		if !readOnly {
			t.Errorf("mount %s writes", m)
		}
	}
	if len(at.Mounts) != 2 || at.Epoch != 1 {
		t.Errorf("%+v", at)
	}
	c.claimWith(none.ID, "/data").refused(400, "bad_request")
}

func TestMountPoints(t *testing.T) {
	t.Parallel()
	c := startVolumes(t)
	v, w := c.volume(`{"access_mode":"ROX"}`), c.volume(`{"access_mode":"ROX"}`)
	for _, point := range []string{"", "data", "/", "/data/", "/a/../b", "/a//b", "/./a", "/proc", "/proc/x", "/sys", "/dev/shm", "/run", "/run/s0", "/run/s0/x", "/var/lib/sandbox0/procd", `/a\b`, "/a\x00b", "/" + strings.Repeat("x", 2000)} {
		if a := c.do("POST", "/api/v1/sandboxes", fmt.Sprintf(`{"template":"default","mounts":[{"sandboxvolume_id":%q,"mount_point":%q}]}`, v.ID, point)); a.status != 400 {
			t.Errorf("%.40q: %d %s", point, a.status, a.raw)
		}
	}
	two := func(a, b string) answer {
		return c.do("POST", "/api/v1/sandboxes", fmt.Sprintf(`{"template":"default","mounts":[{"sandboxvolume_id":%q,"mount_point":%q},{"sandboxvolume_id":%q,"mount_point":%q}]}`, v.ID, a, w.ID, b))
	}
	two("/a", "/a").refused(400, "bad_request")
	two("/a", "/a/b").refused(400, "bad_request")
	two("/a/b", "/a").refused(400, "bad_request")
	c.do("POST", "/api/v1/sandboxes", fmt.Sprintf(`{"template":"default","mounts":[{"sandboxvolume_id":%q,"mount_point":"/a"},{"sandboxvolume_id":%q,"mount_point":"/b"}]}`, v.ID, v.ID)).refused(400, "bad_request")
	two("/a", "/ab").want(201, nil)
	c.claimWith("00000000-0000-4000-8000-000000000001", "/a").refused(404, "not_found")
	c.claimWith("nonsense", "/a").refused(404, "not_found")
}

// A template may say where volumes are read only.
func TestMountPointsOfTemplates(t *testing.T) {
	t.Parallel()
	c := startVolumes(t)
	c.do("POST", "/api/v1/templates", `{"template_id":"ro","spec":{"mainContainer":{"image":"x","resources":{"memory":"1Gi"}},"volumeMounts":[{"name":"models","mountPath":"/models","readOnly":true}]}}`).want(201, nil)
	v := c.volume("")
	c.do("POST", "/api/v1/sandboxes", fmt.Sprintf(`{"template":"ro","mounts":[{"sandboxvolume_id":%q,"mount_point":"/models"}]}`, v.ID)).want(201, nil)
	at := c.node.Volumes.Get(v.ID)
	for m := range at.Mounts {
		if !at.ReadOnly[m] {
			t.Errorf("%+v", at)
		}
	}
}

func TestMountsOfARunningSandbox(t *testing.T) {
	t.Parallel()
	c := startVolumes(t)
	v, w := c.volume(""), c.volume("")
	id := c.claim(c.key)
	path := "/api/v1/sandboxes/" + id + "/sandboxvolumes"
	mount := func(volume, point string) answer {
		return c.do("POST", path+"/mount", fmt.Sprintf(`{"sandboxvolume_id":%q,"mount_point":%q,"volume_config":{"cache_size":"1G"}}`, volume, point))
	}
	var m struct {
		ID    string    `json:"mount_session_id"`
		Point string    `json:"mount_point"`
		At    time.Time `json:"mounted_at"`
	}
	mount(v.ID, "/data").want(200, &m)
	if m.ID == "" || m.Point != "/data" || m.At.IsZero() || c.node.Volumes.Get(v.ID).Mounts[m.ID] != id {
		t.Errorf("%+v, %+v", m, c.node.Volumes.Get(v.ID))
	}
	mount(v.ID, "/again").refused(409, "conflict")
	mount(w.ID, "/data").refused(400, "bad_request")
	mount(w.ID, "/data/below").refused(400, "bad_request")
	var list struct{ Mounts []struct{ State string } }
	c.do("GET", path+"/status", "").want(200, &list)
	if len(list.Mounts) != 1 || list.Mounts[0].State != "mounted" {
		t.Errorf("%+v", list)
	}
	unmount := func(mount string) answer {
		return c.do("POST", path+"/unmount", fmt.Sprintf(`{"sandboxvolume_id":%q,"mount_session_id":%q}`, v.ID, mount))
	}
	unmount("00000000-0000-4000-8000-000000000001").refused(404, "not_found")
	unmount(m.ID).want(200, nil)
	unmount(m.ID).refused(404, "not_found")
	c.claimWith(v.ID, "/data").want(201, nil)
	c.do("POST", "/api/v1/sandboxes/"+id+"/pause", "").want(200, nil)
	mount(w.ID, "/data").refused(409, "conflict")
}

// A paused sandbox keeps its volumes, and has them at a new epoch when it runs again.
func TestVolumesThroughAPause(t *testing.T) {
	t.Parallel()
	c := startVolumes(t)
	v := c.volume("")
	var sb claimOut
	c.claimWith(v.ID, "/data").want(201, &sb)
	c.do("POST", "/api/v1/sandboxes/"+sb.ID+"/pause", "").want(200, nil)
	if at := c.node.Volumes.Get(v.ID); len(at.Mounts) != 0 {
		t.Errorf("%+v", at)
	}
	c.claimWith(v.ID, "/data").refused(409, "conflict")
	c.do("POST", "/api/v1/sandboxes/"+sb.ID+"/resume", "").want(200, nil)
	if at := c.node.Volumes.Get(v.ID); len(at.Mounts) != 1 || at.Epoch != 3 {
		t.Errorf("%+v", at)
	}
}

// What a claim took is free again when the claim fails, wherever it does.
func TestAClaimThatFailsGivesItsVolumesBack(t *testing.T) {
	t.Parallel()
	for _, call := range []string{"Claim"} {
		var broken atomic.Bool
		broken.Store(true)
		c := startVolumes(t, func(_ *api.Config, n *fakenode.Node) {
			n.Volumes.OnCall = func(_ context.Context, made, _ string) error {
				if broken.Load() && made == call {
					return connectrpc.NewError(connectrpc.CodeInternal, errors.New("no"))
				}
				return nil
			}
		})
		v := c.volume("")
		a := c.claimWith(v.ID, "/data")
		if a.status != 503 && a.status != 409 { // the next slot may be tried while the volume is on its way back
			t.Fatalf("%d %s", a.status, a.raw)
		}
		broken.Store(false)
		deadline := time.Now().Add(time.Minute)
		for a = c.claimWith(v.ID, "/data"); a.status == 409 && time.Now().Before(deadline); { // the undoing goes on behind the answer
			a = c.claimWith(v.ID, "/data")
		}
		a.want(201, nil)
	}
}
