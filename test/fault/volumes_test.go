package fault_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"s0.run/api/client"
	"s0.run/internal/volumeapi"
	"s0.run/volumed"
)

// A volumeStack is a stack whose node has volumes, in a store that is a directory.
type volumeStack struct {
	*stack
	run    string // volumed's mounts, and who uses them
	volume string // the id of one that holds nothing yet
}

// newVolumeStack starts one with a single slot. noded hears of volumed when it starts anew.
func newVolumeStack(t *testing.T) *volumeStack {
	t.Helper()
	dir, err := os.MkdirTemp("", "s0v-") // a socket's address is short
	if err != nil {
		t.Fatal(err)
	}
	v := &volumeStack{run: filepath.Join(dir, "r")}
	var daemon *process
	t.Cleanup(func() { // behind the stack's own end, which still needs it
		if daemon != nil {
			daemon.kill()
		}
		if err := errors.Join(volumed.Unmount(v.run), removeAll(dir)); err != nil {
			t.Error(err)
		}
	})
	socket := filepath.Join(dir, "s")
	v.stack = newStackWith(t, 1, false, "--volumed-socket="+socket)
	daemon = newProcess(v.stack, "volumed", []string{"volumed", "--node=" + v.node, "--data-dir=" + filepath.Join(dir, "d"), "--run-dir=" + v.run, "--socket=" + socket, "--log-level=debug"})
	daemon.start("")
	api := volumeapi.NewClient(socket)
	defer api.Close()
	v.eventually("volumed to answer", func() error { _, err := api.Info(v.ctx()); return err })
	v.restartNoded("")
	v.eventuallyDone("a volume", func() error {
		made, err := v.c.CreateVolume(v.ctx(), "volume", client.CreateSandboxVolumeRequest{})
		if err == nil {
			v.volume = made.ID
		}
		return err
	})
	return v
}

// removeAll removes a directory in which JuiceFS may still write: it ends after its mounts.
func removeAll(dir string) (err error) {
	for late := time.Now().Add(patience); time.Now().Before(late); <-time.After(look) {
		if err = os.RemoveAll(dir); err == nil {
			return nil
		}
	}
	return err
}

func (v *volumeStack) tryClaimWith(key string) (id string, err error) {
	sb, err := v.c.CreateSandboxOnce(v.ctx(), key, client.ClaimRequest{
		Template: "default", Mounts: []client.ClaimMount{{SandboxvolumeID: v.volume, MountPoint: "/data"}},
	})
	if err != nil {
		return "", err
	}
	return sb.SandboxID, nil
}

func (v *volumeStack) claimWith(key string) (id string) {
	v.Helper()
	v.eventuallyDone("a claim with a volume", func() (err error) { id, err = v.tryClaimWith(key); return err })
	return id
}

// uses are the mounts of volumes that the node has: as volumed counts them, and as the
// sandboxes' portals name them.
func (v *volumeStack) uses() (counted, named int) {
	v.Helper()
	files, err := os.ReadDir(filepath.Join(v.run, "u"))
	v.must(err)
	names, err := filepath.Glob(filepath.Join(v.nodedRun(), "portals", "base", "*", "*"))
	v.must(err)
	return len(files), len(names)
}

// mountRows counts the mounts that the database has.
func (v *volumeStack) mountRows() (n int, err error) {
	ctx := v.ctx()
	db, err := pgx.Connect(ctx, v.dsn)
	if err != nil {
		return 0, err
	}
	defer db.Close(ctx)
	err = db.QueryRow(ctx, "SELECT count(*) FROM volume_mounts").Scan(&n)
	return n, err
}

// checkUnused waits until nobody has a volume, and asks the oracle for the rest.
func (v *volumeStack) checkUnused() {
	v.Helper()
	v.eventually("nobody to have a volume", func() error {
		counted, named := v.uses()
		rows, err := v.mountRows()
		if err == nil && counted+named+rows > 0 {
			err = fmt.Errorf("volumed counts %d uses, portals have %d names, the database has %d rows", counted, named, rows)
		}
		return err
	})
	v.check()
}

// claimed counts the sandboxes of the journal that are a tenant's.
func (v *volumeStack) claimed() (n int, err error) {
	records, err := v.records()
	for _, r := range records {
		if r.State == "claimed" {
			n++
		}
	}
	return n, err
}

// TestX12_KilledBetweenAVolumesMountAndItsPortal kills noded in a claim when the volume is
// mounted on the node for it and has not entered the sandbox: before the journal knows of the
// claim, and behind that. Nothing of either is left, and the volume is to be had again.
func TestX12_KilledBetweenAVolumesMountAndItsPortal(t *testing.T) {
	v := newVolumeStack(t)
	const longer = "1h" // than any test: it ends with noded
	for _, c := range []struct {
		name, failpoints string
		journalled       bool
	}{
		{"before the journal", "journal.commit=delay(" + longer + ");attach.after-use=exit", false},
		{"behind the journal", "attach.after-use=delay(" + longer + ")", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			v.TB = t
			v.checkUnused()
			v.restartNoded(c.failpoints)
			v.check()
			answered := make(chan error, 1)
			go func() { answered <- v.claimUntilDead(claimKey(t)) }()
			v.diesHalfway(c.journalled)
			if err := <-answered; err == nil {
				t.Error("R1: it was answered")
			}
			v.startNoded("")
			v.checkUnused()
			v.hasItsVolumeAgain()
		})
		v.TB = t
	}
}

// claimUntilDead asks for a claim that is not answered, again where it was given up on a slow
// machine, until noded has died.
func (v *volumeStack) claimUntilDead(key string) (err error) {
	for {
		if _, err = v.tryClaimWith(key); err == nil || v.noded.ended() {
			return err
		}
		<-time.After(look)
	}
}

// diesHalfway waits until a volume is in use that has not entered its portal, with its claim
// in the journal or without, and has noded be dead then, if it does not die by itself.
func (v *volumeStack) diesHalfway(journalled bool) {
	v.Helper()
	v.eventually("the volume to be mounted for a claim", func() error {
		counted, named := v.uses()
		n, err := v.claimed()
		if err == nil && (counted == 0 || named == 0 || n > 0 != journalled) {
			err = fmt.Errorf("volumed counts %d uses, portals have %d names, the journal has %d claims", counted, named, n)
		}
		return err
	})
	if journalled {
		v.noded.kill()
	}
	v.noded.died("a claim did not come by attach.after-use")
	if shown := v.portalMounts(); len(shown) > 0 {
		v.Errorf("the volume has entered the sandbox: %v", shown)
	}
}

// portalMounts are the volumes that sandboxes see.
func (v *volumeStack) portalMounts() (all []string) {
	v.Helper()
	traces, err := v.Traces()
	v.must(err)
	for _, t := range traces {
		if t.Kind == "mount" && strings.Contains(t.Name, "/portals/") && strings.Contains(t.Name, v.volume) {
			all = append(all, t.Name)
		}
	}
	return all
}

// hasItsVolumeAgain claims with the volume twice: the second sandbox has what the first has
// written.
func (v *volumeStack) hasItsVolumeAgain() {
	v.Helper()
	const file, content = "/data/kept", "of the first"
	first := v.claimWith(claimKey(v))
	if len(v.portalMounts()) == 0 {
		v.Error("no sandbox sees the volume")
	}
	v.eventuallyDone("a write", func() error { return v.c.WriteFile(v.ctx(), first, file, strings.NewReader(content)) })
	v.remove(first)
	v.checkUnused()
	second := v.claimWith(claimKey(v) + "-second")
	v.eventuallyDone("a read", func() error {
		got, err := v.read(second, file)
		if err == nil && got != content {
			v.Fatalf("R7: the volume holds %q", got)
		}
		return err
	})
	v.remove(second)
	v.checkUnused()
}
