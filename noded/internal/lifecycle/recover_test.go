package lifecycle_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"s0.run/internal/procapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/journal"
)

// R3: that noded can't listen for a sandbox is no end of it, whether it was being saved or
// not.
func TestR3_ASandboxThatCannotBeListenedForIsTriedAgain(t *testing.T) {
	t.Parallel()
	for _, state := range []journal.State{journal.Claimed, journal.Pausing} {
		t.Run(string(state), func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			n := m.boot()
			id := n.warm(1)[0]
			rec := n.claim(id).Record
			if state == journal.Pausing {
				rec.State, rec.Image = state, 1
			}
			if err := n.journal.Put(n.ctx(), rec); err != nil {
				t.Fatal(err)
			}
			n.stop()
			socket := filepath.Join(m.dir, "run", string(id), filepath.Base(procapi.Socket))
			if err := errors.Join(os.Remove(socket), os.MkdirAll(filepath.Join(socket, "in the way"), 0o700)); err != nil {
				t.Fatal(err)
			}
			n = m.prepare()
			n.SetAdoptGrace(time.Minute)
			n.run()
			n.Adopt(t.Context()) // which does not wait for it for ever
			if sb, err := n.Get(id); err != nil || sb.State() != sandbox.Unknown {
				t.Errorf("while it can't be listened for it is %s %q: %v", sb.State(), sb.Reason, err)
			}
			if err := os.Remove(filepath.Join(socket, "in the way")); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is running", func() bool {
				sb, err := n.Get(id)
				return err == nil && sb.State() == sandbox.Running
			})
		})
	}
}
