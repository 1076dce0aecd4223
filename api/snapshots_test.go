package api_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"s0.run/api"
	"s0.run/api/internal/fakenode"
)

type snapshot struct {
	ID          string     `json:"id"`
	SandboxID   string     `json:"sandbox_id"`
	TemplateID  string     `json:"template_id"`
	ParentID    string     `json:"parent_id"`
	Name        string     `json:"name"`
	Description string     `json:"description"`
	SizeBytes   int64      `json:"size_bytes"`
	ExpiresAt   *time.Time `json:"expires_at"`
}

const snapshotsPath = "/api/v1/sandbox-rootfs-snapshots/"

func (i *instance) snapshot(token, sandbox string, body any) (s snapshot) {
	i.t.Helper()
	i.send(request{method: "POST", path: "/api/v1/sandboxes/" + sandbox + "/snapshots", token: token, body: body}).want(201, &s)
	return s
}

func (i *instance) snapshotsOf(token, sandbox string) (ids []string) {
	i.t.Helper()
	var list struct {
		Snapshots []snapshot
		Count     int
	}
	i.send(request{method: "GET", path: "/api/v1/sandboxes/" + sandbox + "/snapshots", token: token}).want(200, &list)
	for _, s := range list.Snapshots {
		ids = append(ids, s.ID)
	}
	if list.Count != len(ids) {
		i.t.Errorf("count %d of %d", list.Count, len(ids))
	}
	return ids
}

func from(snapshot string) map[string]any {
	return map[string]any{"template": "default", "snapshot_id": snapshot}
}

func (i *instance) claimFrom(token, snapshot string) string {
	i.t.Helper()
	var c struct {
		SandboxID string `json:"sandbox_id"`
		Status    string
	}
	i.send(request{method: "POST", path: "/api/v1/sandboxes", token: token, body: from(snapshot)}).want(201, &c)
	if c.Status != "running" {
		i.t.Errorf("claimed: %+v", c)
	}
	return c.SandboxID
}

func TestSnapshots(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	source := i.claim(key)
	first := i.snapshot(key, source, nil) // without a body
	if first.SandboxID != source || first.TemplateID != "default" || first.SizeBytes != fakenode.SnapshotBytes || first.ParentID != "" || first.Name != "" || first.ExpiresAt != nil {
		t.Errorf("%+v", first)
	}
	in := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	second := i.snapshot(key, source, map[string]any{"name": "n", "description": "d", "expires_at": in})
	if second.Name != "n" || second.Description != "d" || second.ExpiresAt == nil || !second.ExpiresAt.Equal(in) {
		t.Errorf("%+v", second)
	}
	var got snapshot
	i.send(request{method: "GET", path: snapshotsPath + second.ID, token: key}).want(200, &got)
	if got.ID != second.ID || got.Name != "n" {
		t.Errorf("%+v", got)
	}
	if ids := i.snapshotsOf(key, source); len(ids) != 2 || ids[0] != second.ID {
		t.Errorf("listed: %v", ids)
	}

	// The tree: a sandbox is its snapshot's child, and so are its snapshots.
	child := i.claimFrom(key, first.ID)
	if i.node.Begun(child) != first.ID {
		t.Errorf("it has begun with %q", i.node.Begun(child))
	}
	if s := i.snapshot(key, child, "{}"); s.ParentID != first.ID {
		t.Errorf("the child's snapshot has the parent %q", s.ParentID)
	}

	restore := request{method: "POST", path: "/api/v1/sandboxes/" + child + "/rootfs/restore", token: key, body: map[string]string{"snapshot_id": second.ID}}
	i.send(restore).refused(409, "conflict")
	i.send(request{method: "POST", path: "/api/v1/sandboxes/" + child + "/pause", token: key}).want(200, nil)
	var restored struct {
		SandboxID  string `json:"sandbox_id"`
		SnapshotID string `json:"snapshot_id"`
		Status     string
		Generation int `json:"runtime_generation"`
	}
	i.send(restore).want(200, &restored)
	if restored.SandboxID != child || restored.SnapshotID != second.ID || restored.Status != "paused" || restored.Generation != 2 {
		t.Errorf("%+v", restored)
	}
	if s := i.snapshot(key, child, nil); s.ParentID != second.ID { // of a paused one
		t.Errorf("what was restored has the parent %q", s.ParentID)
	}

	// What began with a snapshot outlives it, and a snapshot its sandbox.
	i.send(request{method: "DELETE", path: snapshotsPath + first.ID, token: key}).want(200, nil)
	for _, method := range []string{"GET", "DELETE"} {
		i.send(request{method: method, path: snapshotsPath + first.ID, token: key}).refused(404, "not_found")
	}
	i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: from(first.ID)}).refused(404, "not_found")
	i.send(request{method: "POST", path: restore.path, token: key, body: map[string]string{"snapshot_id": first.ID}}).refused(404, "not_found")
	i.send(request{method: "POST", path: "/api/v1/sandboxes/" + child + "/resume", token: key}).want(200, nil)
	i.send(request{method: "DELETE", path: "/api/v1/sandboxes/" + source, token: key}).want(200, nil)
	if ids := i.snapshotsOf(key, source); len(ids) != 1 || ids[0] != second.ID {
		t.Errorf("of a sandbox that has ended: %v", ids)
	}
	i.claimFrom(key, second.ID)
}

func TestPauseWithoutMemory(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	for body, want := range map[string]bool{"": false, "{}": false, `{"memory":true}`: false, `{"memory":false}`: true} {
		id := i.claim(key)
		r := request{method: "POST", path: "/api/v1/sandboxes/" + id + "/pause", token: key}
		if body != "" {
			r.body = body
		}
		i.send(r).want(200, nil)
		if got := i.node.FilesOnly(id); got != want {
			t.Errorf("%s: files only %v", body, got)
		}
	}
	id := i.claim(key)
	i.send(request{method: "POST", path: "/api/v1/sandboxes/" + id + "/pause", token: key, body: `{"memory":0}`}).refused(400, "bad_request")
}

// A02: what a snapshot is called is bounded; what is not there is not there.
func TestA02_SnapshotRequests(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("admin")
	id := i.claim(key)
	path := "/api/v1/sandboxes/" + id + "/snapshots"
	for name, body := range map[string]any{
		"name too long":        map[string]string{"name": strings.Repeat("ä", 257)},
		"control in the name":  map[string]string{"name": "a\x00"},
		"description too long": map[string]string{"description": strings.Repeat("x", 4097)},
		"in the past":          map[string]any{"expires_at": time.Now().Add(-time.Minute)},
		"no time":              `{"expires_at":"tomorrow"}`,
		"unknown field":        `{"memory":true}`,
		"no object":            `[]`,
	} {
		if a := i.send(request{method: "POST", path: path, token: key, body: body}); a.status != 400 {
			t.Errorf("%s: %d %s", name, a.status, a.raw)
		}
	}
	if left := i.node.Snapshots(); len(left) != 0 {
		t.Errorf("left at the node: %v", left)
	}
	i.snapshot(key, id, map[string]string{"name": strings.Repeat("ä", 256), "description": strings.Repeat("x", 4096)})
	for _, unknown := range []string{uuid.NewString(), "x", uuid.Nil.String(), strings.ToUpper(uuid.NewString()), "..%2f" + id} {
		i.send(request{method: "GET", path: snapshotsPath + unknown, token: key}).refused(404, "not_found")
		i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: from(unknown)}).refused(404, "not_found")
	}
	i.send(request{method: "POST", path: "/api/v1/templates", token: key, body: `{"template_id":"other","spec":{"mainContainer":{"image":"x","resources":{"memory":"1Gi"}}}}`}).want(201, nil)
	other := from(i.snapshotsOf(key, id)[0])
	other["template"] = "other"
	i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: other}).refused(400, "bad_request")
	i.send(request{method: "DELETE", path: "/api/v1/sandboxes/" + id, token: key}).want(200, nil)
	i.send(request{method: "POST", path: path, token: key}).refused(404, "not_found")
}

// A16: a claim from a snapshot is repeated like any other.
func TestA16_AClaimFromASnapshotHasAKey(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	snap := i.snapshot(key, i.claim(key), nil)
	claim := func(body any) answer {
		return i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: body, header: http.Header{"Idempotency-Key": {"k"}}})
	}
	var one, again struct {
		SandboxID string `json:"sandbox_id"`
	}
	claim(from(snap.ID)).want(201, &one)
	i.send(request{method: "DELETE", path: snapshotsPath + snap.ID, token: key}).want(200, nil)
	claim(from(snap.ID)).want(201, &again)
	if one != again {
		t.Errorf("%v and %v", one, again)
	}
	claim(map[string]any{"template": "default"}).refused(422, "bad_request")
}

// G02: an expired snapshot is not begun with, by the database's clock, and goes with
// its files; a node that does not do it is told again.
func TestG02_SnapshotsExpire(t *testing.T) {
	t.Parallel()
	var refusals atomic.Int32
	i := start(t, func(_ *api.Config, n *fakenode.Node) {
		n.OnDeleteSnapshot = func(context.Context, string) error {
			if refusals.Add(1) == 1 {
				return errors.New("the disk is busy")
			}
			return nil
		}
	})
	key := i.key("developer")
	id := i.claim(key)
	stays := i.snapshot(key, id, nil)
	snap := i.snapshot(key, id, map[string]any{"expires_at": time.Now().Add(time.Hour)})
	exec(t, i.dsn, "UPDATE rootfs_snapshots SET expires_at = now() - interval '1 second' WHERE id = '"+snap.ID+"'")
	a := i.send(request{method: "POST", path: "/api/v1/sandboxes", token: key, body: from(snap.ID)})
	if a.status != 400 && a.status != 404 { // until it is gone, and then
		t.Errorf("%d %s", a.status, a.raw)
	}
	fakenode.Eventually(t, "the node was asked", func() bool { return refusals.Load() == 1 })
	i.send(request{method: "GET", path: snapshotsPath + snap.ID, token: key}).refused(404, "not_found")
	exec(t, i.dsn, "UPDATE rootfs_snapshots SET lease_until = now() WHERE state = 'deleting'")
	fakenode.Eventually(t, "its files are gone", func() bool { n := i.node.Snapshots(); return len(n) == 1 && n[0] == stays.ID })
	fakenode.Eventually(t, "and its row", func() bool { return count(t, i.dsn, "SELECT count(*) FROM rootfs_snapshots") == 1 })
}

func count(t *testing.T, dsn, sql string) (n int) {
	t.Helper()
	conn := connect(t, dsn)
	defer conn.Close(context.Background())
	if err := conn.QueryRow(context.Background(), sql).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// R4: what a node has made whose answer was lost does not stay.
func TestR4_ASnapshotWhoseAnswerWasLost(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("developer")
	id := i.claim(key)
	i.node.Stop()
	a := i.send(request{method: "POST", path: "/api/v1/sandboxes/" + id + "/snapshots", token: key})
	if a.status != 503 && a.status != 502 && a.status != 409 {
		t.Errorf("%d %s", a.status, a.raw)
	}
	i.node.Listen(t)
	fakenode.Eventually(t, "nothing is left of it", func() bool { return count(t, i.dsn, "SELECT count(*) FROM rootfs_snapshots") == 0 })
	if ids := i.snapshotsOf(key, id); len(ids) != 0 {
		t.Errorf("listed: %v", ids)
	}
}

// D09: what a team keeps is bounded by its quota.
func TestD09_SnapshotQuota(t *testing.T) {
	t.Parallel()
	i := start(t)
	key := i.key("admin")
	id := i.claim(key)
	var me struct {
		TeamID string `json:"team_id"`
	}
	i.send(request{method: "GET", path: "/api/v1/sandboxes/" + id, token: key}).want(200, &me)
	i.send(request{method: "PUT", path: "/internal/v1/teams/" + me.TeamID + "/quotas/snapshot_storage_gb", token: i.signIn(), body: `{"limit_value":5}`}).want(200, nil)
	i.snapshot(key, id, nil)
	last := i.snapshot(key, id, nil) // 3 GB each: beyond the limit, which is then used up
	i.send(request{method: "POST", path: "/api/v1/sandboxes/" + id + "/snapshots", token: key}).refused(429, "quota_exceeded")
	var q struct {
		Current   int64
		Remaining int64
	}
	i.send(request{method: "GET", path: "/api/v1/quotas/snapshot_storage_gb", token: key}).want(200, &q)
	if q.Current != 6 || q.Remaining != 0 {
		t.Errorf("%+v", q)
	}
	i.send(request{method: "DELETE", path: snapshotsPath + last.ID, token: key}).want(200, nil)
	i.snapshot(key, id, nil)
}

// G11: to another team nothing of it exists.
func TestG11_SnapshotsOfAnotherTeam(t *testing.T) {
	t.Parallel()
	w := newWalk(t)
	owner, stranger := w.ours.people["owner"], w.theirs.people["owner"]
	id := w.ours.name("snapshot")
	theirs := w.theirs.name("sandbox")
	w.send(stranger.sends(request{method: "POST", path: "/api/v1/sandboxes/" + theirs + "/pause"})).want(200, nil)
	for name, r := range map[string]request{
		"get":     {method: "GET", path: snapshotsPath + id},
		"delete":  {method: "DELETE", path: snapshotsPath + id},
		"list":    {method: "GET", path: "/api/v1/sandboxes/" + w.ours.name("sandbox") + "/snapshots"},
		"claim":   {method: "POST", path: "/api/v1/sandboxes", body: from(id)},
		"restore": {method: "POST", path: "/api/v1/sandboxes/" + theirs + "/rootfs/restore", body: fmt.Sprintf(`{"snapshot_id":%q}`, id)},
	} {
		if a := w.send(stranger.sends(r)); a.status != 404 {
			t.Errorf("%s: %d %s", name, a.status, a.raw)
		}
	}
	w.send(owner.sends(request{method: "GET", path: snapshotsPath + id})).want(200, nil)
}
