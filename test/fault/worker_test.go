package fault_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"s0.run/api/client"
)

// A worker is a tenant's program that remembers what it was told.
type worker struct {
	*run
	number int
	began  time.Time
	claims int
	boxes  []*box
}

// A box is one of a worker's sandboxes, and what its file may hold: what the last
// acknowledged write has put there, or any that came after it and was not.
type box struct {
	id    string
	holds []string
}

// maxBoxes bounds what a worker has, so that all of them fit on the machine.
const maxBoxes = 2

func (w *worker) work() {
	for !w.over() {
		if len(w.boxes) == 0 {
			w.claim()
			continue
		}
		b := w.boxes[w.dice(len(w.boxes))]
		c := w.picked([]choice{
			{"claim", 2, w.claim},
			{"exec", 10, func() { w.exec(b) }},
			{"write", 8, func() { w.write(b) }},
			{"read", 8, func() { w.read(b) }},
			{"pause", 5, func() { w.try(b, func() error { _, err := w.c.PauseSandbox(w.ctx(), b.id); return err }) }},
			{"resume", 4, func() { w.try(b, func() error { _, err := w.c.ResumeSandbox(w.ctx(), b.id); return err }) }},
			{"snapshot", 1, func() { w.snapshot(b) }},
			{"fork", 1, func() { w.fork(b) }},
			{"delete", 1, func() { w.delete(b) }},
		})
		w.count(c.name)
		c.do()
	}
}

// try makes a request, once. What comes of it is one of: it is done; nobody knows; or
// the sandbox is no more, which only one that was hurt may be.
func (w *worker) try(b *box, request func() error) (done bool) {
	err := request()
	var answer *client.APIError
	switch {
	case err == nil:
		return true
	case !errors.As(err, &answer), again(err):
		w.count("unknown outcomes")
		<-time.After(look) // a server that is away refuses in no time
	case w.isHurt(b.id):
		w.give(b)
	case answer.StatusCode == 409:
		w.count("conflicts")
		w.mayNotHaveFailed(b, err)
	default:
		w.report("R1: %s: %v", b.id, err)
		w.give(b)
	}
	return false
}

// mayNotHaveFailed looks why a request was refused.
func (w *worker) mayNotHaveFailed(b *box, why error) {
	sb, err := w.c.GetSandbox(w.ctx(), b.id)
	if err == nil && sb.Status == client.SandboxStateFailed && !w.isHurt(b.id) {
		w.report("R3: %s has failed, and nobody has hurt it: %v", b.id, why)
		w.give(b)
	}
}

// give gives a sandbox up. Whatever it is, it is deleted.
func (w *worker) give(b *box) {
	w.boxes = slices.DeleteFunc(w.boxes, func(other *box) bool { return other == b })
	_ = w.c.DeleteSandbox(w.ctx(), b.id) // the end of the run does it again
}

// claim asks for one sandbox, twice at the same time, until it has been told which.
func (w *worker) claim() {
	if len(w.boxes) >= maxBoxes {
		return
	}
	w.claims++
	key := fmt.Sprintf("worker-%d-%d", w.number, w.claims)
	ids := make([]string, 2)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			for deadline := time.Now().Add(patience); ids[i] == "" && time.Now().Before(deadline); {
				if ids[i] = w.claimOnce(key); ids[i] == "" {
					<-time.After(look)
				}
			}
		})
	}
	wg.Wait()
	if ids[0] == "" { // of a sandbox that was hurt before its claim was answered
		return
	}
	w.boxes = append(w.boxes, &box{id: ids[0], holds: []string{""}})
}

func (w *worker) claimOnce(key string) (id string) {
	op := porcupine.Operation{ClientId: w.number, Input: key, Call: int64(time.Since(w.began))}
	sb, err := w.c.CreateSandboxOnce(w.ctx(), key, client.ClaimRequest{Template: "default"})
	if err == nil {
		id = sb.SandboxID
	}
	op.Output, op.Return = id, int64(time.Since(w.began))
	w.record(op)
	return id
}

func (w *worker) exec(b *box) {
	w.try(b, func() error {
		res, err := w.run.stack.run(b.id, "/bin/probe", "echo", b.id)
		if err == nil && (res.ExitCode == nil || res.Stdout == nil || *res.ExitCode != 0 || strings.TrimSpace(*res.Stdout) != "["+b.id+"]") && !w.isHurt(b.id) {
			w.report("%s: a command: %+v", b.id, *res)
		}
		return err
	})
}

// write makes the file's content something that it has never been.
func (w *worker) write(b *box) {
	next := fmt.Sprintf("%s at %d %s", b.id, time.Now().UnixNano(), strings.Repeat("x", w.dice(100_000)))
	b.holds = append(b.holds, next) // from here on it may
	if w.try(b, func() error { return w.c.WriteFile(w.ctx(), b.id, tracesFile, strings.NewReader(next)) }) {
		b.holds = []string{next}
	}
}

// read: R7, the file holds what was acknowledged, or something later.
func (w *worker) read(b *box) {
	var got string
	if !w.try(b, func() (err error) {
		got, err = w.run.stack.read(b.id, tracesFile)
		if isStatus(err, 404) && b.holds[0] == "" {
			return nil // nothing was ever acknowledged to be there
		}
		return err
	}) {
		return
	}
	w.wantOneOf(b.id, got, b.holds)
	b.holds = []string{got}
}

func (w *worker) wantOneOf(id, got string, want []string) {
	if !slices.Contains(want, got) {
		w.report("R7: %s holds %.60q (%d bytes), want one of %d, the oldest %.60q", id, got, len(got), len(want), want[0])
	}
}

// snapshot keeps the files, begins another sandbox with them, and looks.
func (w *worker) snapshot(b *box) {
	w.read(b)
	holds := slices.Clone(b.holds)
	var snap *client.SandboxRootFSSnapshot
	if !w.try(b, func() (err error) {
		snap, err = w.c.CreateSandboxSnapshot(w.ctx(), b.id, client.CreateSandboxRootFSSnapshotRequest{})
		return err
	}) {
		return
	}
	w.claims++
	sb, err := w.c.CreateSandboxOnce(w.ctx(), fmt.Sprintf("worker-%d-%d", w.number, w.claims), client.ClaimRequest{Template: "default", SnapshotID: &snap.ID})
	if err == nil {
		w.look("a sandbox from a snapshot", &box{id: sb.SandboxID, holds: holds})
	}
	_ = w.c.DeleteSandboxSnapshot(w.ctx(), snap.ID)
}

// fork makes a child with memory, and looks.
func (w *worker) fork(b *box) {
	w.read(b)
	holds := slices.Clone(b.holds)
	memory := w.dice(2) == 0
	var res *client.ForkResponse
	w.claims++
	if w.try(b, func() (err error) {
		res, err = w.c.ForkSandboxOnce(w.ctx(), b.id, fmt.Sprintf("worker-%d-%d", w.number, w.claims), client.ForkRequest{Config: &client.ForkConfig{Memory: &memory}})
		return err
	}) {
		w.look("a fork", &box{id: res.Sandbox.ID, holds: holds})
	}
}

// look reads a sandbox's file if that can be had, and deletes the sandbox.
func (w *worker) look(what string, b *box) {
	if got, err := w.run.stack.read(b.id, tracesFile); err == nil {
		w.wantOneOf(what+" "+b.id, got, b.holds)
		w.count("looked at " + what)
	}
	w.give(b)
}

func (w *worker) delete(b *box) {
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		err := w.c.DeleteSandbox(w.ctx(), b.id)
		if err == nil || isStatus(err, 404) {
			break
		}
		if !again(err) {
			w.report("delete of %s: %v", b.id, err)
			break
		}
		<-time.After(look)
	}
	w.boxes = slices.DeleteFunc(w.boxes, func(other *box) bool { return other == b })
}
