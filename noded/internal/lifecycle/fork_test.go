package lifecycle_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"s0.run/internal/errdefs"
	"s0.run/internal/failpoint"
	"s0.run/internal/sandbox"
	"s0.run/internal/sealed"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/lifecycle"
	"s0.run/noded/internal/noop"
	"s0.run/noded/internal/snapshots"
)

func forkOf(id sandbox.ID, memory *bool, count int) lifecycle.ForkRequest {
	req := lifecycle.ForkRequest{ID: id, Memory: memory, User: "forker"}
	for i := range count {
		child, err := sandbox.NewID("local")
		if err != nil {
			panic(err)
		}
		req.Children = append(req.Children, lifecycle.Child{ID: child, ClaimID: fmt.Sprintf("%s-child-%d", child, i)})
	}
	return req
}

func (n *noded) fork(req lifecycle.ForkRequest) []sandbox.ID {
	n.t.Helper()
	made, err := n.Fork(n.ctx(), req)
	if err != nil || len(made) != len(req.Children) {
		n.t.Fatalf("fork of %s: %d children, %v", req.ID, len(made), err)
	}
	var ids []sandbox.ID
	for i, sb := range made {
		if c := req.Children[i]; sb.ID != c.ID || sb.Claim.ClaimID != c.ClaimID || sb.State() != sandbox.Paused || sb.Claim.User != req.User {
			n.t.Fatalf("child %d: %+v", i, sb)
		}
		ids = append(ids, sb.ID)
	}
	return ids
}

// serves checks that a sandbox runs and that its procd answers.
func (n *noded) serves(id sandbox.ID) {
	n.t.Helper()
	eventually(n.t, string(id)+" serves", func() bool {
		sb, err := n.Get(id)
		return err == nil && sb.State() == sandbox.Running && !sb.Record.Frozen && n.Connected(id)
	})
}

func (n *noded) manifestOf(id sandbox.ID) snapshots.Manifest {
	n.t.Helper()
	sb, err := n.Get(id)
	if err != nil {
		n.t.Fatal(err)
	}
	m, err := snapshots.Read(filepath.Join(n.image(id), fmt.Sprint(sb.Image)))
	if err != nil {
		n.t.Fatal(err)
	}
	return m
}

func TestForkOfARunningSandbox(t *testing.T) {
	t.Parallel()
	for name, memory := range map[string]*bool{"files": nil, "memory": new(true), "no memory": new(false)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newMachine(t).boot()
			id := n.warm(1)[0]
			n.claim(id)
			before := n.Holding()
			children := n.fork(forkOf(id, memory, 4))
			n.serves(id)
			if sb, _ := n.Get(id); sb.Generation != 1 {
				t.Errorf("the source has generation %d", sb.Generation)
			}
			if n.Holding() != before {
				t.Errorf("the node holds %d, before %d", n.Holding(), before)
			}
			for _, child := range children {
				if m := n.manifestOf(child); m.Memory != (memory != nil && *memory) || m.Sandbox != id {
					t.Errorf("manifest %+v", m)
				}
				n.resume(child, 2)
				who := (noop.Runtime{Node: n.node}).Identity(child)
				if who.SandboxID != string(child) || who.Generation != 2 || who.Env["A"] != "claim" || who.Env["SANDBOX0_SANDBOX_ID"] != string(child) {
					t.Errorf("a child was told to be %+v", who)
				}
			}
			ips := []string{}
			for _, who := range append(children, id) {
				sb, _ := n.Get(who)
				ips = append(ips, sb.IP.String())
			}
			slices.Sort(ips)
			if len(slices.Compact(ips)) != 5 {
				t.Errorf("addresses %v", ips)
			}
			for _, who := range append(children, id) {
				if err := n.Delete(n.ctx(), who, 0, "test"); err != nil {
					t.Error(err)
				}
			}
			n.nothingLeft()
		})
	}
}

func TestForkOfAPausedSandboxSharesItsImage(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot()
	id := n.warm(1)[0]
	n.claim(id)
	n.pause(id)
	n.released()
	whole := n.fork(forkOf(id, nil, 2))
	files := n.fork(forkOf(id, new(false), 1))[0]
	for _, child := range whole {
		if !n.manifestOf(child).Memory {
			t.Error("a child of a sandbox with memory has none")
		}
	}
	if n.manifestOf(files).Memory {
		t.Error("a child that was to have no memory has some")
	}
	grand := n.fork(forkOf(files, nil, 1))[0]
	if _, err := n.Fork(n.ctx(), forkOf(files, new(true), 1)); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("memory of what has none: %v", err)
	}
	if err := n.Delete(n.ctx(), id, 0, "test"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the source is gone", func() bool { return !n.hasImage(id) })
	for _, child := range append(whole, files, grand) {
		n.resume(child, 2)
		n.serves(child)
	}
}

func TestForkIsIdempotent(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot()
	id := n.warm(1)[0]
	n.claim(id)
	req := forkOf(id, nil, 3)
	n.fork(req)
	n.fork(req)
	other := forkOf(id, nil, 2)
	other.Children[1].ID = req.Children[0].ID
	if _, err := n.Fork(n.ctx(), other); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("a fork into what is there: %v", err)
	}
	if _, err := n.Get(other.Children[0].ID); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("a half fork: %v", err)
	}
}

func TestG11_ForkRefusesWhatIsNotItsOwn(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot()
	slots := n.warm(2)
	id, slot := slots[0], slots[1]
	n.claim(id)
	if _, err := n.Fork(n.ctx(), forkOf(slot, nil, 1)); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("of a slot: %v", err)
	}
	if _, err := n.Fork(n.ctx(), forkOf("local-nosuch", nil, 1)); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("of nothing: %v", err)
	}
	for name, spoil := range map[string]func(*lifecycle.ForkRequest){
		"no children":       func(r *lifecycle.ForkRequest) { r.Children = nil },
		"too many":          func(r *lifecycle.ForkRequest) { *r = forkOf(id, nil, 17) },
		"a path for an id":  func(r *lifecycle.ForkRequest) { r.Children[0].ID = "../../etc" },
		"another cluster":   func(r *lifecycle.ForkRequest) { r.Children[0].ID = "other-aaaaaaaaaaaaaaaaaaaaaaaaaa" },
		"no claim":          func(r *lifecycle.ForkRequest) { r.Children[0].ClaimID = "" },
		"the same twice":    func(r *lifecycle.ForkRequest) { r.Children[1] = r.Children[0] },
		"the source itself": func(r *lifecycle.ForkRequest) { r.Children[0].ID = id },
		"a slot":            func(r *lifecycle.ForkRequest) { r.Children[0].ID = slot },
		"older generation":  func(r *lifecycle.ForkRequest) { r.Generation = 7 },
	} {
		req := forkOf(id, nil, 2)
		spoil(&req)
		if made, err := n.Fork(n.ctx(), req); err == nil {
			t.Errorf("%s: made %v", name, made)
		}
	}
	n.pause(id)
	dir := filepath.Join(n.image(id), "1")
	m, err := snapshots.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	m.Team = "somebody-else"
	if err := snapshots.Write(dir, m); err != nil {
		t.Fatal(err)
	}
	if made, err := n.Fork(n.ctx(), forkOf(id, nil, 1)); err == nil {
		t.Errorf("another team's image became %v", made)
	}
	if err := os.Remove(filepath.Join(dir, snapshots.FileName)); err != nil {
		t.Fatal(err)
	}
	if made, err := n.Fork(n.ctx(), forkOf(id, nil, 1)); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("nobody's image became %v, %v", made, err)
	}
	if got := n.free(); len(got) != 1 || got[0] != slot {
		t.Errorf("free slots %v", got)
	}
}

// X24 without the kill: a fork that fails leaves its source as it was and no child.
func TestX24_ForkUndo(t *testing.T) {
	defer failpoint.Arm("")
	for _, c := range []struct {
		memory *bool
		paused bool
		steps  []string
	}{
		{nil, false, []string{"dirs", "save", "clone", "commit"}},
		{new(true), false, []string{"dirs", "intent", "quiesce", "freeze", "save", "thaw", "seal", "clone", "commit"}},
		{nil, true, []string{"clone", "commit"}},
	} {
		for _, step := range append(c.steps, "journal.commit") {
			t.Run(fmt.Sprintf("paused %v memory %v %s", c.paused, c.memory != nil, step), func(t *testing.T) {
				n := newMachine(t).boot()
				id := n.warm(1)[0]
				n.claim(id)
				if c.paused {
					n.pause(id)
					eventually(t, "it rests", func() bool { // its teardown has written to the journal, too
						sb, err := n.Get(id)
						return err == nil && sb.NetIndex == 0
					})
				}
				place := "fork.after-" + step
				if strings.Contains(step, ".") {
					place = step
				}
				if err := failpoint.Arm(place + "=1*error(on purpose)"); err != nil {
					t.Fatal(err)
				}
				req := forkOf(id, c.memory, 3)
				if _, err := n.Fork(n.ctx(), req); err == nil || strings.Contains(errdefs.From(err).Message, "on purpose") {
					t.Errorf("fork: %v", err)
				}
				n.noChildren(req)
				if c.paused {
					n.resume(id, 2)
				}
				n.serves(id)
				n.fork(forkOf(id, c.memory, 2)) // and it can be forked again
				n.serves(id)
			})
		}
	}
}

// noChildren waits until there is no trace of a fork's children.
func (n *noded) noChildren(req lifecycle.ForkRequest) {
	n.t.Helper()
	eventually(n.t, "no children", func() bool {
		records, err := n.journal.All()
		return err == nil && !slices.ContainsFunc(req.Children, func(c lifecycle.Child) bool {
			_, err := n.Get(c.ID)
			return err == nil || n.hasImage(c.ID) || slices.ContainsFunc(records, func(r journal.Record) bool { return r.ID == c.ID })
		})
	})
}

// X24: what a fork was at when its noded died is nobody's, and its source goes on.
func TestX24_ForkIsUndoneByTheNextNoded(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot()
	id := n.warm(1)[0]
	n.claim(id)
	sb, err := n.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	rec := sb.Record
	rec.Frozen = true
	if err := n.journal.Put(n.ctx(), rec); err != nil {
		t.Fatal(err)
	}
	n.stop()
	req := forkOf(id, nil, 2)
	for _, c := range req.Children {
		if err := os.MkdirAll(filepath.Join(n.image(c.ID), "1", snapshots.FilesPart), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := (noop.Runtime{Node: n.node}).Freeze(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	n = n.boot()
	n.serves(id)
	n.noChildren(req)
	if records, err := n.journal.All(); err != nil || len(records) != 1 || records[0].Frozen {
		t.Errorf("records %+v, %v", records, err)
	}
}

func TestX24_ASourceThatEndsWhileItIsForkedHasFailed(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.node.Fault = func(effect string, id sandbox.ID) error {
		if effect == "runtime.SaveFrozen" {
			go noop.Runtime{Node: m.node}.Kill(id, true)
			return fmt.Errorf("it has died")
		}
		return nil
	}
	n := m.boot()
	id := n.warm(1)[0]
	n.claim(id)
	req := forkOf(id, new(true), 2)
	if _, err := n.Fork(n.ctx(), req); err == nil {
		t.Error("a sandbox that died was forked")
	}
	eventually(t, "it has failed", func() bool {
		sb, err := n.Get(id)
		return err == nil && sb.State() == sandbox.Failed
	})
	n.noChildren(req)
}

// G11: a child has its source's policy, and none of the credentials that its source was
// given.
func TestG11_ForkInheritsNoCredential(t *testing.T) {
	t.Parallel()
	n := newMachine(t).boot()
	id := n.warm(1)[0]
	n.claim(id)
	sb, err := n.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	rec, claim := sb.Record, *sb.Claim
	claim.Network = &journal.Network{Policy: []byte(`{"mode":"block-all"}`), Credentials: []sealed.Credential{{Source: "canary"}}}
	rec.Claim = &claim
	if err := n.journal.Put(n.ctx(), rec); err != nil {
		t.Fatal(err)
	}
	n.stop()
	n = n.boot()
	child, err := n.Get(n.fork(forkOf(id, nil, 1))[0])
	if err != nil || child.Claim.Network == nil || string(child.Claim.Network.Policy) != string(claim.Network.Policy) || len(child.Claim.Network.Credentials) != 0 {
		t.Errorf("the child: %+v, %v", child.Claim.Network, err)
	}
	if source, err := n.Get(id); err != nil || len(source.Claim.Network.Credentials) != 1 {
		t.Errorf("the source: %+v, %v", source.Claim.Network, err)
	}
}
