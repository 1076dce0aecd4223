package fault_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"s0.run/api/client"
	"s0.run/internal/procapi"
	"s0.run/internal/s0test"
)

const (
	// shortGenerations is how many lives a sandbox has in `make test`.
	shortGenerations = 6
	// compared is of how many lives the first and the last are held against each other.
	compared = 100
	// An image may grow by what procd keeps of what is printed, by the REPL and in lines by
	// all, for which its heap takes half as much again; and by what gVisor keeps of each life
	// (ADR 8). Little else may.
	moreMemory    = (procapi.LogJournalBytes + procapi.LogBytes) * 3 / 2
	moreOfALife   = 1 << 10
	moreOfTheRest = 64 << 10
	// A resume waits until nothing runs of the life before, and a machine with other work may
	// take its time for that: lifePatience bounds it, and who is in the way for longer than
	// slowLife is looked at before it is gone.
	lifePatience = 5 * time.Minute
	slowLife     = 10 * time.Second
)

// A life is what a sandbox takes with it from one generation to the next, put there once
// and looked at after each.
const (
	makeTree = `set -e; mkdir -p /workspace/t/a/b; cd /workspace/t; head -c 3000000 /dev/urandom >blob; ln -s ../blob a/link; ln blob a/hard
printf x >'a/ü name'; chmod 4751 a/b; touch -d @1234567890 blob; mkfifo a/fifo; : >a/empty; truncate -s 50M a/sparse; chown 12:34 a/empty; echo done`
	treeDigest = `cd /workspace/t && find . -printf '%p %y %m %U %G %s %T@ %n %l\n' | sort | sha256sum; find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum`
	makeState  = `import os, hashlib; n = 0; data = os.urandom(4 << 20); f = open('/tmp/gone', 'w+b'); f.write(data[:99999]); f.flush(); os.unlink('/tmp/gone'); g = open('/workspace/open', 'a'); r, w = os.pipe(); os.write(w, b'in a pipe')`
	stateOf    = `f.seek(0); print(hashlib.sha256(data).hexdigest(), hashlib.sha256(f.read()).hexdigest(), f.tell(), g.fileno(), r, w)`
	ticker     = `i=0; while :; do i=$((i+1)); echo $i >/tmp/n.new; mv /tmp/n.new /tmp/n; sleep 0.2; done`
	children   = `(sleep 100000 & sleep 100001 & wait) & exec sleep 100002`
	treeOf     = `for p in /proc/[0-9]*; do [ $p = /proc/$$ ] || case "$(tr '\0' ' ' <$p/cmdline)" in *' 10000'*) echo "${p#/proc/} $(cut -d' ' -f4 $p/stat) $(cat $p/comm) $(tr '\0' ' ' <$p/cmdline | sha256sum)";; esac; done 2>/dev/null`
)

// TestGenerations pauses and resumes one sandbox again and again, S0_GENERATIONS times.
// Its files, its REPL's memory, its open and its deleted files and its process tree are
// the same to the byte after each; its image does not grow, and a life takes it no longer than
// another sandbox.
func TestGenerations(t *testing.T) {
	cycles, err := strconv.Atoi(os.Getenv("S0_GENERATIONS"))
	if err != nil {
		cycles = shortGenerations
	}
	s := s0test.Start(t, s0test.Options{Pool: 1})
	g := &generations{t: t, s: s, c: s.Client()}
	g.begin("old")
	wantTree, wantState, wantProcesses := g.sh(treeDigest), g.exec(stateOf), g.sh(treeOf)
	if n := len(strings.Split(wantProcesses, "\n")); n != 4 {
		t.Fatalf("a process tree of %d:\n%s", n, wantProcesses)
	}
	began := time.Now()
	for i := range cycles {
		g.cycle()
		for what, x := range map[string]struct{ got, want string }{
			"the files":     {g.sh(treeDigest), wantTree},
			"the memory":    {g.exec(stateOf), wantState},
			"the processes": {g.sh(treeOf), wantProcesses},
			"the counter":   {g.exec("n += 1; print(n)"), fmt.Sprint(i + 1)},
		} {
			if x.got != x.want {
				t.Fatalf("generation %d: %s are %q, were %q", i+2, what, x.got, x.want)
			}
		}
		g.ticks()
		if life := i + 1; life%250 == 0 || life&(life-1) == 0 { // each power of two: what grows at first is seen
			t.Logf("%d lives in %s: an image of %v", life, time.Since(began).Round(time.Second), g.images[i])
		}
	}
	g.wantFlat(cycles)
	if cycles > compared {
		g.wantAsFast(compared / 2)
	}
	g.end()
}

type generations struct {
	t             *testing.T
	s             *s0test.Stack
	c             *client.Client
	id, python    string
	tick          int
	before        []int // processes of the life before
	pauses, wakes []time.Duration
	images        []map[string]int64 // the sizes of their parts
}

func (g *generations) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	g.t.Cleanup(cancel)
	return ctx
}

func (g *generations) must(err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
}

// again repeats what may be repeated while a machine with other work has it fail.
func (g *generations) again(request func() error) {
	g.t.Helper()
	begin := time.Now()
	ended := g.lookWhenSlow()
	err := request()
	for ; err != nil && again(err) && time.Since(begin) < lifePatience; err = request() {
		<-time.After(look)
	}
	ended()
	if took := time.Since(begin); took > slowLife {
		g.t.Logf("life %d: a request took %s: %v", len(g.images), took.Round(time.Millisecond), err)
	}
	g.must(err)
}

// lookWhenSlow logs, each slowLife until ended is called, what the sandbox's processes are at.
func (g *generations) lookWhenSlow() (ended func()) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(slowLife)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				for _, pid := range slices.Concat(g.before, g.s.Pids("sentry", g.id), g.s.Pids("gofer", g.id), g.s.Pids("runsc", g.id)) {
					g.t.Logf("life %d waits; %s", len(g.images), threads(pid))
				}
			case <-stop:
				return
			}
		}
	}()
	return func() { close(stop); <-stopped }
}

// threads are what the kernel says of a process and of each of its threads that does not
// merely wait for work.
func threads(pid int) string {
	var b strings.Builder
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	fmt.Fprintf(&b, "%d has %d threads, %s", pid, len(tasks), comm)
	for _, task := range tasks {
		status, _ := os.ReadFile(filepath.Join(task, "status"))
		wchan, _ := os.ReadFile(filepath.Join(task, "wchan"))
		if filepath.Base(task) != strconv.Itoa(pid) && strings.HasPrefix(string(wchan), "futex_wait") {
			continue
		}
		stack, _ := os.ReadFile(filepath.Join(task, "stack"))
		fmt.Fprintf(&b, "%s in %s\n%s%s", filepath.Base(task), wchan, told(string(status)), stack)
	}
	return b.String()
}

// told are the lines of a status that say why a process lives.
func told(status string) (lines string) {
	for line := range strings.Lines(status) {
		if name, _, _ := strings.Cut(line, ":"); slices.Contains([]string{"State", "PPid", "TracerPid", "SigPnd", "ShdPnd", "VmRSS"}, name) {
			lines += line
		}
	}
	return lines
}

func (g *generations) begin(key string) {
	g.t.Helper()
	g.again(func() error {
		sb, err := g.c.CreateSandboxOnce(g.ctx(), key, client.ClaimRequest{Template: "default"})
		if err == nil {
			g.id = sb.SandboxID
		}
		return err
	})
	repl, err := g.c.CreateContext(g.ctx(), g.id, client.CreateContextRequest{Type: client.ContextTypeREPL, REPL: &client.REPLRequest{Alias: new("python")}})
	g.must(err)
	g.python = repl.ID
	if got := g.sh(makeTree); got != "done" {
		g.t.Fatalf("making a tree: %q", got)
	}
	g.exec(makeState)
	for _, script := range []string{ticker, children} {
		_, err := g.c.CreateContext(g.ctx(), g.id, client.CreateContextRequest{Type: client.ContextTypeCMD, CMD: &client.CMDRequest{Command: []string{"sh", "-c", script}}})
		g.must(err)
	}
	g.s.Eventually("the process tree", func() error {
		if tree := g.sh(treeOf); strings.Count(tree, " sleep ") != 3 { // else one of them is still on its way
			return fmt.Errorf("%s", tree)
		}
		return nil
	})
	g.ticks()
}

// cycle is one pause and one resume.
func (g *generations) cycle() {
	g.t.Helper()
	g.before = slices.Concat(g.s.Pids("sentry", g.id), g.s.Pids("gofer", g.id))
	begin := time.Now()
	g.again(func() error { _, err := g.c.PauseSandbox(g.ctx(), g.id); return err })
	paused := time.Now()
	g.images = append(g.images, g.image())
	woken := time.Now()
	g.again(func() error { _, err := g.c.ResumeSandbox(g.ctx(), g.id); return err })
	g.pauses, g.wakes = append(g.pauses, paused.Sub(begin)), append(g.wakes, time.Since(woken))
}

// image is what the sandbox takes on the disk while it is paused, by file.
func (g *generations) image() map[string]int64 {
	g.t.Helper()
	root := filepath.Join(g.s.DataDir, "noded", "paused", g.id)
	generations, err := os.ReadDir(root)
	g.must(err)
	if len(generations) != 1 {
		g.t.Fatalf("%d images of one sandbox", len(generations))
	}
	root = filepath.Join(root, generations[0].Name())
	parts := map[string]int64{}
	g.must(filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			parts[strings.TrimPrefix(path, root+"/")] = info.Size()
		}
		return err
	}))
	return parts
}

// ticks waits until the background counter has gone on from where it was.
func (g *generations) ticks() {
	g.t.Helper()
	g.s.Eventually("the background counter to go on", func() error {
		n, err := strconv.Atoi(g.sh("cat /tmp/n"))
		if err != nil || n <= g.tick {
			return fmt.Errorf("it is at %d, was at %d (%v)", n, g.tick, err)
		}
		g.tick = n
		return nil
	})
}

func (g *generations) sh(script string) string {
	g.t.Helper()
	wait := true
	var res *client.ContextResponse
	g.again(func() (err error) {
		res, err = g.c.CreateContext(g.ctx(), g.id, client.CreateContextRequest{
			Type: client.ContextTypeCMD, CMD: &client.CMDRequest{Command: []string{"sh", "-c", script}}, WaitUntilDone: &wait,
		})
		return err
	})
	g.must(g.c.DeleteContext(g.ctx(), g.id, res.ID)) // its output would be state, too
	return strings.TrimSpace(*res.Stdout)
}

func (g *generations) exec(line string) string {
	g.t.Helper()
	res, err := g.c.ExecContext(g.ctx(), g.id, g.python, line)
	g.must(err)
	return strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(res.OutputRaw), line))
}

// wantFlat compares the first lives with the last: what grows with each, and has no bound,
// is much larger after thousands.
func (g *generations) wantFlat(cycles int) {
	g.t.Helper()
	some := max(1, min(compared, cycles/10))
	first, last := largest(g.images[:some]), largest(g.images[cycles-some:])
	for part, size := range last {
		may := int64(moreOfTheRest)
		switch part {
		case "memory/pages.img":
			may = moreMemory
		case "memory/checkpoint.img":
			may += int64(cycles) * moreOfALife
		}
		g.t.Logf("%s: up to %d bytes in the first %d lives, %d in the last", part, first[part], some, size)
		if size > first[part]+may {
			g.t.Errorf("%s has grown from %d to %d bytes", part, first[part], size)
		}
	}
}

// wantAsFast holds the lives of a sandbox that has had many against those of one that has had
// none, by turns: whatever else the machine does is in the way of both.
func (g *generations) wantAsFast(lives int) {
	g.t.Helper()
	young := &generations{t: g.t, s: g.s, c: g.c}
	young.begin("young")
	for range lives {
		g.cycle()
		young.cycle()
	}
	for what, took := range map[string][2][]time.Duration{"pause": {g.pauses, young.pauses}, "resume": {g.wakes, young.wakes}} {
		old, first := took[0], took[1]
		late, early := median(old[len(old)-lives:]), median(first)
		g.t.Logf("%s: p50 %s in the first %d lives, %s in the last, %s at most; %s in the first of another", what,
			median(old[:lives]).Round(time.Millisecond), lives, late.Round(time.Millisecond), slices.Max(old).Round(time.Millisecond), early.Round(time.Millisecond))
		if late > 2*early {
			g.t.Errorf("a %s takes %s, of a sandbox that has had none before %s", what, late, early)
		}
	}
	young.end()
}

// largest has the largest size of each part.
func largest(images []map[string]int64) map[string]int64 {
	all := map[string]int64{}
	for _, parts := range images {
		for part, size := range parts {
			all[part] = max(all[part], size)
		}
	}
	return all
}

func median(of []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(of))
	return sorted[len(sorted)/2]
}

func (g *generations) end() {
	g.t.Helper()
	sb, err := g.c.GetSandbox(g.ctx(), g.id)
	g.must(err)
	if want := int64(len(g.images) + 1); sb.RuntimeGeneration != want {
		g.t.Errorf("generation %d, want %d", sb.RuntimeGeneration, want)
	}
	g.s.CheckOwned()
	g.must(g.c.DeleteSandbox(g.ctx(), g.id))
}
