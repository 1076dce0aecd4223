package noded_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"s0.run/internal/nodeapi"
)

// X01–X18 and the claim between them: noded is killed at each step, and the next
// one finds everything out. After each round nothing is left.
func TestX01_KilledAtEachStep(t *testing.T) {
	m := newMachine(t)
	places := []string{
		"create.after-intent", "create.after-netns", "create.after-cgroup", "create.after-dirs", "create.after-listen", "create.after-start", "create.after-handshake",
		"claim.after-take", "claim.after-journal", "claim.after-env",
		"delete.after-intent", "delete.after-stop", "delete.after-cgroup", "delete.after-remains", "delete.after-dirs", "delete.after-netns",
	}
	for _, place := range places {
		t.Run(place, func(t *testing.T) {
			m.TB = t
			verb, _, _ := strings.Cut(place, ".")
			switch verb {
			case "create":
				m.killInCreate(place)
			case "claim":
				m.killInClaim(place)
			case "delete":
				m.killInDelete(place)
			}
			m.gone()
		})
		m.TB = t
	}
}

func (m *machine) killInCreate(place string) {
	d, died := m.spawn(place + "=exit")
	_ = d.trySetPool(m.spec, 1)
	died()
	d = m.run() // takes up what runs, ends what does not
	p := d.until("a decision", func(p *picture) bool { return true })
	if whole := place == "create.after-handshake"; whole && len(p.free) != 1 {
		m.Errorf("a slot that was whole was not taken up again: %v", p.free)
	}
	d.setPool(m.spec, 1) // either way there is one in the end, and it works
	id := d.untilFree(1)[0]
	d.claim(id)
	d.mustServe(id)
	d.setPool(m.spec, 0)
	d.delete(id)
	d.until("nothing", func(p *picture) bool { return len(p.sandboxes) == 0 && len(p.free) == 0 })
	m.gone()
	d.stop()
}

// R1 and idempotency: whatever the killed noded had made durable stands, and the
// same claim asked again gets it; what it had not is nobody's.
func (m *machine) killInClaim(place string) {
	d, died := m.spawn(place + "=exit")
	d.setPool(m.spec, 1)
	slot := d.untilFree(1)[0]
	req := &nodeapi.ClaimRequest{ClaimId: "again", Slot: slot, PoolKey: "p", Team: "team"}
	if _, err := d.rpc.Claim(d.ctx(), req); err == nil {
		m.Fatal("a claim was answered by a noded that was to die")
	}
	died()
	d = m.run()
	d.setPool(m.spec, 1)
	p := d.until("a free slot or the claim", func(p *picture) bool { return len(p.free)+len(p.sandboxes) > 0 })
	if place == "claim.after-journal" && p.sandboxes[slot] != "running" {
		m.Errorf("a durable claim is lost: %v", p.sandboxes)
	}
	if p.sandboxes[slot] == "" {
		req.Slot = d.untilFree(1)[0]
	}
	resp, err := d.rpc.Claim(d.ctx(), req)
	if err != nil {
		m.Fatalf("the claim asked again: %v", err)
	}
	if p.sandboxes[slot] != "" && resp.Sandbox.Id != slot {
		m.Errorf("one claim has two sandboxes: %s and %s", slot, resp.Sandbox.Id)
	}
	d.mustServe(resp.Sandbox.Id)
	d.setPool(m.spec, 0)
	d.delete(resp.Sandbox.Id)
	d.until("nothing", func(p *picture) bool { return len(p.sandboxes) == 0 && len(p.free) == 0 })
	m.gone()
	d.stop()
}

func (m *machine) killInDelete(place string) {
	d := m.run()
	d.setPool(m.spec, 1)
	id := d.untilFree(1)[0]
	d.claim(id)
	d.setPool(m.spec, 0)
	d.until("the sandbox alone", func(p *picture) bool { return len(p.free) == 0 })
	m.alone(id) // or the end of the slot that came after it is what is cut
	d.stop()
	d, died := m.spawn(place + "=exit")
	_, err := d.rpc.Delete(d.ctx(), &nodeapi.DeleteRequest{Id: id})
	if place == "delete.after-intent" && err == nil {
		m.Error("a delete was answered by a noded that was to die")
	}
	died()
	d = m.run()
	d.until("the delete's end", func(p *picture) bool { return len(p.sandboxes) == 0 && len(p.free) == 0 })
	m.gone()
	d.stop()
}

// X25: noded is killed again and again under sandboxes that work on.
func TestX25_CrashLoop(t *testing.T) {
	m := newMachine(t)
	d, _ := m.spawn("")
	d.setPool(m.spec, 4)
	slots := d.untilFree(4)
	for _, id := range slots[:3] {
		d.claim(id)
	}
	d.untilFree(4)
	before := counts(m.present())
	for range 8 {
		d.stop()
		d, _ = m.spawn("")
		d.setPool(m.spec, 4)
		for _, id := range slots[:3] {
			d.mustServe(id)
		}
	}
	d.until("the pool", func(p *picture) bool { return len(p.free) == 4 && len(p.sandboxes) == 3 })
	if after := counts(m.present()); after != before {
		t.Errorf("before the crashes %s, after them %s", before, after)
	}
	d.setPool(m.spec, 0)
	for _, id := range slots[:3] {
		d.delete(id)
	}
	m.gone()
}

// counts says how much of each kind is there.
func counts(present []string) string {
	n := map[string]int{}
	for _, s := range present {
		kind, _, _ := strings.Cut(s, " ")
		n[kind]++
	}
	var all []string
	for kind, c := range n {
		all = append(all, fmt.Sprint(kind, ":", c))
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// X28: containerd is killed. Sandboxes serve on, free slots can be claimed, and
// deletes are finished when it is back.
func TestX28_ContainerdKilled(t *testing.T) {
	m := newMachine(t)
	d := m.run()
	d.setPool(m.spec, 2)
	slots := d.untilFree(2)
	d.claim(slots[0])
	m.ctd.Kill()
	d.mustServe(slots[0])
	d.claim(slots[1])
	d.mustServe(slots[1])
	d.delete(slots[1])
	p := d.until("the decision", func(p *picture) bool { return p.sandboxes[slots[1]] == "terminating" })
	if p.sandboxes[slots[0]] != "running" {
		t.Errorf("without containerd: %v", p.sandboxes)
	}
	// noded may restart meanwhile: the sandbox is found again without containerd.
	d.stop()
	d = m.run()
	d.mustServe(slots[0])
	m.ctd.Start(t)
	d.until("the delete's end", func(p *picture) bool { return p.sandboxes[slots[1]] == "" })
	d.mustServe(slots[0])
	d.setPool(m.spec, 1)
	d.untilFree(1) // it warms again
	d.setPool(m.spec, 0)
	d.delete(slots[0])
	m.gone()
}

// X29: a sandbox whose sentry, gofer or shim is killed is failed within 5 s, with
// a reason, and frees everything; its neighbour in another shim does not notice.
func TestX29_PartsKilled(t *testing.T) {
	m := newMachine(t)
	d := m.run()
	// A whole shim's share is taken, and rests when it is given back: who comes
	// later has another shim than the first.
	const slots = 16
	d.setPool(m.spec, slots)
	neighbour := m.byIndex(d.untilFree(slots))[0]
	d.claim(neighbour)
	d.setPool(m.spec, 0)
	d.until("the neighbour alone", func(p *picture) bool { return len(p.free) == 0 })
	m.alone(neighbour)
	shim := m.shims()
	for _, part := range []string{"sentry", "gofer", "shim"} {
		t.Run(part, func(t *testing.T) {
			m.TB, d.t = t, t
			d.setPool(m.spec, 1)
			id := d.untilFree(1)[0]
			d.claim(id)
			d.setPool(m.spec, 0)
			d.until("quiet", func(p *picture) bool { return len(p.free) == 0 })
			m.kill(part, id, shim[0])
			begin := time.Now()
			p := d.until("the failure", func(p *picture) bool { return p.sandboxes[id] == "failed" })
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("failed after %v", took)
			}
			sb, err := d.rpc.Get(d.ctx(), &nodeapi.GetRequest{Id: id})
			if err != nil || sb.Reason == "" {
				t.Errorf("%v: reason %q (%v)", p.sandboxes, sb.GetReason(), err)
			}
			t.Logf("%s killed: %s", part, sb.GetReason())
			m.alone(neighbour) // of the other the record alone stays
			d.delete(id)
			d.until("the end", func(p *picture) bool { return p.sandboxes[id] == "" })
			d.mustServe(neighbour)
			if now := m.shims(); !slices.Equal(now, shim) {
				t.Errorf("shims %v, want the neighbour's %v", now, shim)
			}
		})
		m.TB, d.t = t, t
	}
	d.delete(neighbour)
	m.gone()
}

// alone waits until the host has one sandbox and its shim.
func (m *machine) alone(id string) {
	m.Helper()
	m.eventually("nothing but "+id, func() error {
		var others []string
		for _, s := range m.present() {
			if other := anyID.FindString(s); other != "" && other != id {
				others = append(others, s)
			}
		}
		if links, shims := m.veths(), m.shims(); len(others) > 0 || len(links) != 1 || len(shims) != 1 {
			return fmt.Errorf("%v, links %v, shims %v", others, links, shims)
		}
		return nil
	})
}

var anyID = regexp.MustCompile(`test-[a-z2-7]{26}`)

// byIndex sorts sandboxes by the number of their links: neighbours share a shim.
func (m *machine) byIndex(ids []string) []string {
	m.Helper()
	out, err := exec.Command("nsenter", "--net="+filepath.Join(m.cfg.RunDir, "netns", "_dataplane"), "ip", "-o", "link", "show", "type", "veth").Output()
	if err != nil {
		m.Fatal(err)
	}
	index := map[string]int{}
	for line := range strings.Lines(string(out)) {
		n, _, _ := strings.Cut(line, ":")
		for _, id := range ids {
			if strings.Contains(line, id) {
				index[id], _ = strconv.Atoi(n)
			}
		}
	}
	if len(index) != len(ids) {
		m.Fatalf("%d of %d sandboxes have a link:\n%s", len(index), len(ids), out)
	}
	slices.SortFunc(ids, func(a, b string) int { return index[a] - index[b] })
	return ids
}

// shims lists the pids of the node's shims.
func (m *machine) shims() []int {
	var pids []int
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		raw, err := os.ReadFile(f)
		program, _, _ := strings.Cut(string(raw), "\x00")
		if err == nil && bytes.Contains(raw, []byte(m.ctd.Dir)) && filepath.Base(program) == "containerd-shim-s0-v1" {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// kill kills a part of a sandbox on the host; spare is another's shim.
func (m *machine) kill(part, id string, spare int) {
	m.Helper()
	killed := 0
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil || !bytes.Contains(raw, []byte(m.ctd.Dir)) {
			continue
		}
		args := strings.Split(string(raw), "\x00")
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		is := map[string]bool{
			"sentry": slices.Contains(args, "boot") && bytes.Contains(raw, []byte(id)),
			"gofer":  slices.Contains(args, "gofer") && bytes.Contains(raw, []byte(id)),
			"shim":   strings.HasSuffix(args[0], "containerd-shim-s0-v1") && pid != spare,
		}
		if err == nil && is[part] && syscall.Kill(pid, syscall.SIGKILL) == nil {
			killed++
		}
	}
	if killed == 0 {
		m.Fatalf("no %s of %s", part, id)
	}
}

// D02: a memory bomb ends its sandbox alone, which says why.
func TestD02_OutOfMemory(t *testing.T) {
	m := newMachine(t)
	m.spec.MemoryBytes = 128 << 20
	d := m.run()
	d.setPool(m.spec, 2)
	slots := d.untilFree(2)
	for _, id := range slots {
		d.claim(id)
	}
	d.setPool(m.spec, 0)
	d.command(slots[0], "/bin/probe", "eat", "1000")
	d.until("the failure", func(p *picture) bool { return p.sandboxes[slots[0]] == "failed" })
	sb, err := d.rpc.Get(d.ctx(), &nodeapi.GetRequest{Id: slots[0]})
	if err != nil || sb.Reason != "oom" {
		t.Errorf("reason %q (%v)", sb.GetReason(), err)
	}
	d.mustServe(slots[1])
	d.delete(slots[0])
	d.delete(slots[1])
	m.gone()
}

// G01 with real sandboxes: 50 claimants for a pool of 6.
func TestG01_ConcurrentRealClaims(t *testing.T) {
	m := newMachine(t)
	d := m.run()
	d.setPool(m.spec, 6)
	slots := d.untilFree(6)
	var mu sync.Mutex
	owners := map[string]string{}
	var wg sync.WaitGroup
	for c := range 50 {
		wg.Go(func() {
			for i := range slots {
				slot, claim := slots[(i+c)%len(slots)], fmt.Sprint(c, "-", i)
				resp, err := d.rpc.Claim(d.ctx(), &nodeapi.ClaimRequest{ClaimId: claim, Slot: slot, PoolKey: "p", Team: "t"})
				if connect.CodeOf(err) == connect.CodeAborted {
					continue
				}
				if err != nil {
					t.Error(err)
					continue
				}
				mu.Lock()
				if owners[resp.Sandbox.Id] != "" {
					t.Errorf("%s was given away twice", resp.Sandbox.Id)
				}
				owners[resp.Sandbox.Id] = claim
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(owners) != len(slots) {
		t.Errorf("%d of %d slots were claimed", len(owners), len(slots))
	}
	d.setPool(m.spec, 0)
	for id, claim := range owners {
		sb, err := d.rpc.Get(d.ctx(), &nodeapi.GetRequest{Id: id})
		if err != nil || sb.ClaimId != claim {
			t.Errorf("%s is %v's (%v), want %s's", id, sb, err, claim)
		}
		d.mustServe(id)
		d.delete(id)
	}
	m.gone()
}
