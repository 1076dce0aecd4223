package noded_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"connectrpc.com/connect"
	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"s0.run/internal/nodeapi"
	"s0.run/internal/s0test/freeport"
	"s0.run/noded"
)

func init() {
	os.Setenv("AWS_ACCESS_KEY_ID", "tester")
	os.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
}

// objectStores are what nodes may share.
func objectStores(t *testing.T, test func(t *testing.T, url string)) {
	t.Run("dir", func(t *testing.T) { t.Parallel(); test(t, "file://"+filepath.Join(t.TempDir(), "store")) })
	t.Run("s3", func(t *testing.T) {
		t.Parallel()
		backend := s3mem.New()
		if err := backend.CreateBucket("bucket"); err != nil {
			t.Fatal(err)
		}
		srv := httptest.NewServer(gofakes3.New(backend).Server())
		t.Cleanup(srv.Close)
		test(t, "s3://bucket?region=us-east-1&endpoint="+srv.URL)
	})
}

// withStore is a noded that has an object store.
func withStore(t *testing.T, name, url, key string) noded.Config {
	t.Helper()
	cfg := simulated(t)
	cfg.Node, cfg.ObjectStore, cfg.ObjectKeyFile = name, url, key
	return cfg
}

func newObjectKey(t *testing.T) string {
	t.Helper()
	key := filepath.Join(t.TempDir(), "object.key")
	if err := noded.MakeObjectKey(key); err != nil {
		t.Fatal(err)
	}
	return key
}

// pausedAndStored makes a claimed sandbox that is paused and in the object store.
func (d *daemon) pausedAndStored() *nodeapi.Sandbox {
	d.t.Helper()
	d.setPool(simSpec, 1)
	id := d.untilFree(1)[0]
	d.claim(id)
	if _, err := d.rpc.Pause(d.ctx(), &nodeapi.PauseRequest{Id: id}); err != nil {
		d.t.Fatal(err)
	}
	return d.untilSandbox(id, func(sb *nodeapi.Sandbox) bool { return sb.GetStoredGeneration() != 0 })
}

// untilSandbox watches one until it is as wanted.
func (d *daemon) untilSandbox(id string, done func(*nodeapi.Sandbox) bool) *nodeapi.Sandbox {
	d.t.Helper()
	stream, err := d.rpc.Watch(d.ctx(), &nodeapi.WatchRequest{})
	if err != nil {
		d.t.Fatal(err)
	}
	defer stream.Close()
	for stream.Receive() {
		if sb := stream.Msg().GetSandbox(); sb.GetId() == id && done(sb) {
			return sb
		}
	}
	d.t.Fatalf("sandbox %s is never as wanted: %v", id, stream.Err())
	return nil
}

func storedAs(sb *nodeapi.Sandbox, after uint64) *nodeapi.ResumeRequest {
	return &nodeapi.ResumeRequest{Id: sb.GetId(), Stored: &nodeapi.StoredImage{
		Generation: sb.GetStoredGeneration(), Team: sb.GetTeam(), ClaimId: sb.GetClaimId(), AfterGeneration: after,
	}}
}

// X47 and R2: two nodes of one machine share an object store. What one has paused the
// other resumes; the first one's instance, when it is back, is not the sandbox any more.
func TestX47_AnotherNodeResumes(t *testing.T) {
	t.Parallel()
	objectStores(t, func(t *testing.T, url string) {
		key := newObjectKey(t)
		first, second := withStore(t, "first", url, key), withStore(t, "second", url, key)
		a, b := run(t, first), run(t, second)
		sb := a.pausedAndStored()
		a.stop()

		for what, other := range map[string]*nodeapi.StoredImage{
			"team": {Generation: 1, Team: "another", ClaimId: sb.GetClaimId(), AfterGeneration: 1}, "claim": {Generation: 1, Team: sb.GetTeam(), ClaimId: "another", AfterGeneration: 1},
			"generation": {Generation: 7, Team: sb.GetTeam(), ClaimId: sb.GetClaimId(), AfterGeneration: 7},
		} {
			if _, err := b.rpc.Resume(b.ctx(), &nodeapi.ResumeRequest{Id: sb.GetId(), Stored: other}); connect.CodeOf(err) != connect.CodeFailedPrecondition {
				t.Errorf("G11: as another %s's: %v", what, err)
			}
		}
		got, err := b.rpc.Resume(b.ctx(), storedAs(sb, 3))
		if err != nil || got.GetState() != "running" || got.GetGeneration() != 4 || got.GetClaimId() != sb.GetClaimId() || got.GetMemoryBytes() != sb.GetMemoryBytes() {
			t.Fatalf("resumed as %v: %v", got, err)
		}
		if again, err := b.rpc.Resume(b.ctx(), storedAs(sb, 3)); err != nil || again.GetGeneration() != 4 {
			t.Errorf("again: %v, %v", again, err)
		}

		// The sandbox goes back, to a node that still has an older instance of it.
		if _, err := b.rpc.Pause(b.ctx(), &nodeapi.PauseRequest{Id: sb.GetId()}); err != nil {
			t.Fatal(err)
		}
		sb = b.untilSandbox(sb.GetId(), func(sb *nodeapi.Sandbox) bool { return sb.GetStoredGeneration() == 4 })
		b.stop()
		a = run(t, first)
		if old, err := a.rpc.Get(a.ctx(), &nodeapi.GetRequest{Id: sb.GetId()}); err != nil || old.GetState() != "paused" || old.GetGeneration() != 1 {
			t.Fatalf("the first node has %v: %v", old, err)
		}
		if _, err := a.rpc.Resume(a.ctx(), storedAs(sb, 6)); connect.CodeOf(err) != connect.CodeUnavailable {
			t.Errorf("while there is an older one: %v", err)
		}
		a.until("the older one is gone", func(p *picture) bool { return len(p.sandboxes) == 0 })
		if got, err = a.rpc.Resume(a.ctx(), storedAs(sb, 6)); err != nil || got.GetGeneration() != 7 || got.GetState() != "running" {
			t.Errorf("resumed as %v: %v", got, err)
		}
		if _, err := a.rpc.RemoveStored(a.ctx(), &nodeapi.RemoveStoredRequest{Id: sb.GetId(), BelowGeneration: 7}); err != nil {
			t.Fatal(err)
		}
		if _, err := a.rpc.Delete(a.ctx(), &nodeapi.DeleteRequest{Id: sb.GetId()}); err != nil {
			t.Fatal(err)
		}
		a.until("the end", func(p *picture) bool { return len(p.sandboxes) == 0 })
		if _, err := a.rpc.Resume(a.ctx(), storedAs(sb, 8)); connect.CodeOf(err) != connect.CodeFailedPrecondition {
			t.Errorf("what was removed: %v", err)
		}
	})
}

// What a sandbox was asked to be while it was paused is what another node makes of it.
func TestAnUpdateOfAPausedSandboxIsStored(t *testing.T) {
	t.Parallel()
	url, key := "file://"+filepath.Join(t.TempDir(), "store"), newObjectKey(t)
	a, b := run(t, withStore(t, "first", url, key)), run(t, withStore(t, "second", url, key))
	sb := a.pausedAndStored()
	updated, err := a.rpc.Update(a.ctx(), &nodeapi.UpdateRequest{Id: sb.GetId(), ReplaceEnv: true, Env: map[string]string{"CANARY": "update-4711"}})
	if err != nil || updated.GetStoredGeneration() != 0 {
		t.Fatalf("updated: %v, %v", updated, err)
	}
	sb = a.untilSandbox(sb.GetId(), func(sb *nodeapi.Sandbox) bool { return sb.GetStoredGeneration() != 0 })
	a.stop()
	if _, err := b.rpc.Resume(b.ctx(), storedAs(sb, 3)); err != nil {
		t.Fatal(err)
	}
	if got, err := b.rpc.Get(b.ctx(), &nodeapi.GetRequest{Id: sb.GetId()}); err != nil || got.GetEnv()["CANARY"] != "update-4711" {
		t.Errorf("it has %v: %v", got.GetEnv(), err)
	}
}

// F10: nothing of what a sandbox was given is in the store, nor the key.
func TestF10_TheObjectStoreKnowsNothing(t *testing.T) {
	t.Parallel()
	dir, keyFile := filepath.Join(t.TempDir(), "store"), newObjectKey(t)
	d := run(t, withStore(t, "first", "file://"+dir, keyFile))
	sb := d.pausedAndStored()
	if _, err := d.rpc.Update(d.ctx(), &nodeapi.UpdateRequest{Id: sb.GetId(), ReplaceEnv: true, Env: map[string]string{"CANARY": "canary-0815"}}); err != nil {
		t.Fatal(err)
	}
	d.untilSandbox(sb.GetId(), func(sb *nodeapi.Sandbox) bool { return sb.GetStoredGeneration() != 0 })
	key, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		seen++
		b, err := os.ReadFile(path)
		for _, secret := range [][]byte{[]byte("canary-0815"), []byte("CANARY"), []byte(sb.GetTeam()), []byte(sb.GetClaimId()), bytes.TrimSpace(key)} {
			if bytes.Contains(b, secret) {
				t.Errorf("%s holds %q", path, secret)
			}
		}
		return err
	})
	if err != nil || seen < 2 {
		t.Errorf("%d files: %v", seen, err)
	}
}

// X43: without its object store a node pauses, resumes and ends sandboxes, and says that
// nothing is stored.
func TestX43_ANodeWithoutItsStore(t *testing.T) {
	t.Parallel()
	port, err := freeport.Find()
	if err != nil {
		t.Fatal(err)
	}
	d := run(t, withStore(t, "first", fmt.Sprintf("s3://bucket?region=x&endpoint=http://127.0.0.1:%d", port), newObjectKey(t)))
	d.setPool(simSpec, 1)
	id := d.untilFree(1)[0]
	d.claim(id)
	for gen := uint64(1); gen < 4; gen++ {
		sb, err := d.rpc.Pause(d.ctx(), &nodeapi.PauseRequest{Id: id})
		if err != nil || sb.GetState() != "paused" || sb.GetStoredGeneration() != 0 {
			t.Fatalf("paused as %v: %v", sb, err)
		}
		if sb, err = d.rpc.Resume(d.ctx(), &nodeapi.ResumeRequest{Id: id}); err != nil || sb.GetGeneration() != gen+1 {
			t.Fatalf("resumed as %v: %v", sb, err)
		}
	}
	info, err := d.rpc.Info(d.ctx(), &nodeapi.InfoRequest{})
	if err != nil || info.GetObjectStore().GetUrl() == "" {
		t.Errorf("it tells %v of its store: %v", info.GetObjectStore(), err)
	}
	if _, err := d.rpc.RemoveStored(d.ctx(), &nodeapi.RemoveStoredRequest{Id: id}); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("removing images: %v", err)
	}
	if _, err := d.rpc.Delete(d.ctx(), &nodeapi.DeleteRequest{Id: id}); err != nil {
		t.Fatal(err)
	}
	d.until("the end", func(p *picture) bool { return len(p.sandboxes) == 0 })
}

func TestAnObjectStoreNeedsItsKey(t *testing.T) {
	t.Parallel()
	cfg := withStore(t, "first", "file://"+t.TempDir(), "")
	for _, key := range []string{"", "relative", filepath.Join(t.TempDir(), "missing")} {
		cfg.ObjectKeyFile = key
		if err := noded.Run(t.Context(), cfg); err == nil {
			t.Errorf("key file %q: it runs", key)
		}
	}
}
