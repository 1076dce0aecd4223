package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/s0test"
	"s0.run/internal/volumeapi"
)

const sandboxVolumes = "/api/v1/sandboxvolumes"

// volumes measures volumes beside the local disk and beside what they are made of.
type volumes struct {
	*client
	stack *s0test.Stack
	slots int
	dir   string // on the disk that the instance's data is on
	plain *juicefs
	meta  func() string // a PostgreSQL database of one's own
}

func newVolumes(c *client, stack *s0test.Stack, slots int) (*volumes, error) {
	dir, err := os.MkdirTemp("", "s0bv") // short: paths are bounded
	if err != nil {
		return nil, err
	}
	v := &volumes{client: c, stack: stack, slots: slots, dir: dir}
	v.plain, err = mountJuiceFS(filepath.Join(stack.Bin(), "juicefs"), filepath.Join(dir, "juicefs"))
	return v, err
}

func (v *volumes) close() error { return errors.Join(v.plain.close(), os.RemoveAll(v.dir)) }

func (v *volumes) probe() string { return filepath.Join(v.dir, "probe") }

func (v *volumes) steps() []step {
	return []step{
		{"idle", v.idleCost},
		{"claims", v.claims},
		{"files on the host", v.filesOnHost},
		{"files in a sandbox", v.filesInside},
		{"work", v.work},
		{"a hundred thousand files", v.hundredThousand},
		{"many volumes", v.manyMounted},
		{"a second node", v.secondNode},
	}
}

// api is volumed's own socket.
func (v *volumes) api() *volumeapi.Client {
	return volumeapi.NewClient(filepath.Join(v.stack.RunDir, "volumed.sock"))
}

// make makes a volume, which remove removes.
func (v *volumes) make(ctx context.Context) (id string, err error) {
	var out struct{ ID string }
	_, err = v.must(ctx, http.MethodPost, sandboxVolumes, struct{}{}, &out)
	return out.ID, err
}

func (v *volumes) removeVolume(ctx context.Context, id string) error {
	_, err := v.must(ctx, http.MethodDelete, sandboxVolumes+"/"+id+"?force=true", nil, nil)
	return err
}

// claimWith claims a sandbox that has a volume at /data, or none if it is "".
func (v *volumes) claimWith(ctx context.Context, volume string) (id string, a answer, err error) {
	body := map[string]any{"template": template}
	if volume != "" {
		body["mounts"] = []map[string]string{{"sandboxvolume_id": volume, "mount_point": "/data"}}
	}
	var out struct {
		SandboxID string `json:"sandbox_id"`
	}
	a, err = v.must(ctx, http.MethodPost, sandboxes, body, &out)
	return out.SandboxID, a, err
}

// claims measures warm claims with a volume and without, by turns: with one that the node had
// a moment ago, and with one that is new.
func (v *volumes) claims(ctx context.Context) ([]row, error) {
	known, err := v.make(ctx)
	if err != nil {
		return nil, err
	}
	var without, with, fresh []time.Duration
	for range *samples / 4 {
		anew, err := v.make(ctx)
		if err != nil {
			return nil, err
		}
		for volume, took := range map[string]*[]time.Duration{"": &without, known: &with, anew: &fresh} {
			if err := v.client.idle(ctx, template, v.slots); err != nil {
				return nil, err
			}
			id, a, err := v.claimWith(ctx, volume)
			if err != nil {
				return nil, err
			}
			*took = append(*took, a.took)
			if err := v.remove(ctx, id); err != nil {
				return nil, err
			}
		}
		if err := v.removeVolume(ctx, anew); err != nil {
			return nil, err
		}
	}
	typical := percentile(slices.Sorted(slices.Values(milliseconds(without))), 50)
	adds := func(name string, took []time.Duration) row {
		r := rowOf(name, "1 client", took)
		for i := range r.samples {
			r.samples[i] -= typical
		}
		r.budget = budget{p50: 5}
		return r
	}
	return []row{
		rowOf("warm claim without a volume, by HTTP", "1 client", without),
		adds("  what a volume adds, had here before", with),
		adds("  what a volume adds, new", fresh),
	}, v.removeVolume(ctx, known)
}

// idleCost is what volumes cost an instance that uses none.
func (v *volumes) idleCost(context.Context) ([]row, error) {
	daemon, fs, err := v.pss()
	line := func(name string, mib float64) row {
		return row{name: name, load: "no volumes", unit: "MiB", samples: []float64{mib}}
	}
	return []row{line("PSS of volumed", daemon), line("PSS of its JuiceFS", fs)}, err
}

// pss is the memory of the instance's volumed and of its JuiceFS, in MiB.
func (v *volumes) pss() (daemon, fs float64, err error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, 0, err
	}
	for _, dir := range dirs {
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		cmdline := strings.ReplaceAll(string(line), "\x00", " ")
		if err != nil || !strings.Contains(cmdline, filepath.Join(v.stack.RunDir, "volumed")) {
			continue
		}
		mib, err := processPSS(dir)
		if err != nil {
			return 0, 0, err
		}
		switch {
		case strings.Contains(cmdline, "juicefs mount"):
			fs += mib
		case strings.Contains(cmdline, " volumed "):
			daemon += mib
		}
	}
	return daemon, fs, nil
}

// manyMounted measures what each of many mounted volumes takes, of memory and of time.
func (v *volumes) manyMounted(ctx context.Context) ([]row, error) {
	const count = 50
	api := v.api()
	defer api.Close()
	daemonBefore, fsBefore, err := v.pss()
	if err != nil {
		return nil, err
	}
	kernelBefore, err := slab()
	if err != nil {
		return nil, err
	}
	all := make([]volumeapi.Volume, count)
	var took []time.Duration
	for i := range all {
		all[i] = volumeapi.Volume{ID: fmt.Sprint("bench", i), Team: "bench", Epoch: 1, UID: 1000, GID: 1000}
		if _, err := api.Create(ctx, volumeapi.Create{Volume: all[i]}); err != nil {
			return nil, err
		}
		begin := time.Now()
		m, err := api.Use(ctx, volumeapi.Use{Volume: all[i], Use: "bench"})
		if err != nil {
			return nil, err
		}
		took = append(took, time.Since(begin))
		for f := range 100 {
			if err := os.WriteFile(filepath.Join(m.Path, fmt.Sprint(f)), make([]byte, 4096), 0o644); err != nil {
				return nil, err
			}
		}
		if _, err := api.Commit(ctx, all[i].ID); err != nil {
			return nil, err
		}
	}
	daemon, fs, err := v.pss()
	if err != nil {
		return nil, err
	}
	kernel, err := slab()
	if err != nil {
		return nil, err
	}
	for _, one := range all {
		if err := errors.Join(api.Leave(ctx, volumeapi.Leave{ID: one.ID, Use: "bench"}), api.Remove(ctx, one)); err != nil {
			return nil, err
		}
	}
	load := fmt.Sprintf("%d volumes of 100 files", count)
	each := func(name string, after, before float64) row {
		return row{name: name, load: load, unit: "MiB", samples: []float64{(after - before) / count}}
	}
	return []row{
		rowOf("volumed's part of a mount, of a volume that is open", load, took),
		each("memory of a mounted volume: volumed", daemon, daemonBefore), each("  JuiceFS, with its caches", fs, fsBefore),
		each("  the kernel's slabs, of the whole machine", kernel, kernelBefore),
	}, nil
}

// slab is the kernel's own memory, in MiB.
func slab() (float64, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	var kb float64
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "Slab:"); ok {
			_, err = fmt.Sscanf(strings.TrimSpace(rest), "%f", &kb)
		}
	}
	return kb / 1024, err
}

// hundredThousand measures snapshots and forks of a volume that a sandbox has mounted: whose
// files were written since, and whose files lie below.
func (v *volumes) hundredThousand(ctx context.Context) ([]row, error) {
	const count = 100_000
	id, err := v.make(ctx)
	if err != nil {
		return nil, err
	}
	var rows []row
	for i, load := range []string{"100,000 files written since the mount", "100,000 files, mounted anew"} {
		if err := v.client.idle(ctx, template, 1); err != nil {
			return rows, err
		}
		sandbox, _, err := v.claimWith(ctx, id)
		if err != nil {
			return rows, err
		}
		at, err := v.onHost(id)
		if err != nil {
			return rows, err
		}
		if i == 0 {
			if err := tree(at, count); err != nil {
				return rows, err
			}
			begin := time.Now()
			if err := v.snapshot(ctx, id); err != nil {
				return rows, err
			}
			rows = append(rows, rowOf("the first snapshot, which commits them", load, []time.Duration{time.Since(begin)}))
		}
		more, err := v.snapshotsAndForks(ctx, id, at, load)
		rows = append(rows, more...)
		if err := errors.Join(err, v.remove(ctx, sandbox), v.released(ctx, id)); err != nil {
			return rows, err
		}
	}
	return rows, v.removeVolume(ctx, id)
}

// released lets a volume go, so that it is mounted anew.
func (v *volumes) released(ctx context.Context, id string) error {
	api := v.api()
	defer api.Close()
	for {
		list, err := api.List(ctx, []string{id})
		if err != nil || len(list.States) != 1 {
			return fmt.Errorf("the volume's state: %v, %w", list, err)
		}
		if err = api.Release(ctx, volumeapi.Volume{ID: id, Team: "bench", Epoch: list.States[0].Epoch}); err == nil {
			return nil
		}
		if serr := sleep(ctx, 100*time.Millisecond); serr != nil { // the sandbox is on its way out
			return errors.Join(err, serr)
		}
	}
}

func (v *volumes) snapshot(ctx context.Context, id string) error {
	_, err := v.must(ctx, http.MethodPost, sandboxVolumes+"/"+id+"/snapshots", map[string]string{"name": "bench"}, nil)
	return err
}

func (v *volumes) snapshotsAndForks(ctx context.Context, id, at, load string) ([]row, error) {
	const rounds = 10
	var snapshots, changed, forks []time.Duration
	var made []string
	for i := range rounds {
		for _, took := range []*[]time.Duration{&snapshots, &changed} {
			if took == &changed {
				if err := os.WriteFile(filepath.Join(at, "changed"), fmt.Append(nil, i), 0o644); err != nil {
					return nil, err
				}
			}
			begin := time.Now()
			if err := v.snapshot(ctx, id); err != nil {
				return nil, err
			}
			*took = append(*took, time.Since(begin))
		}
		begin := time.Now()
		var fork struct{ ID string }
		if _, err := v.must(ctx, http.MethodPost, sandboxVolumes+"/"+id+"/fork", struct{}{}, &fork); err != nil {
			return nil, err
		}
		forks = append(forks, time.Since(begin))
		made = append(made, fork.ID)
	}
	var rows []row
	for _, what := range []struct {
		name string
		took []time.Duration
	}{{"snapshot of what is committed", snapshots}, {"snapshot with one file changed", changed}, {"fork of what is committed", forks}} {
		r := rowOf(what.name, load, what.took)
		r.budget = budget{p50: 100}
		rows = append(rows, r)
	}
	for _, fork := range made {
		if err := v.removeVolume(ctx, fork); err != nil {
			return rows, err
		}
	}
	return rows, nil
}

// onHost is where the node has a volume mounted for writing.
func (v *volumes) onHost(id string) (string, error) {
	all, err := filepath.Glob(filepath.Join(v.stack.RunDir, "volumed", "w", "*."+id))
	if err == nil && len(all) != 1 {
		err = fmt.Errorf("volume %s is mounted at %v", id, all)
	}
	return strings.Join(all, ""), err
}

// tree makes so many small files.
func tree(at string, count int) error {
	for i := range count {
		dir := filepath.Join(at, fmt.Sprint("d", i/1000))
		if i%1000 == 0 {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), fmt.Append(nil, "file ", i), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// bind shows a directory of the host in another place.
func bind(from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("showing %s at %s: %w", from, to, err)
	}
	return nil
}
