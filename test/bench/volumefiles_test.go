package bench

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/volumeapi"
)

var (
	rounds     = flag.Int("rounds", 3, "of small files and large ones in each place")
	smallFiles = flag.Int("small-files", 10_000, "files of 4 KiB in each place")
	largeMiB   = flag.Int("large-mib", 256, "MiB of the large file in each place")
)

const (
	small2local = 0.5 // of what the local disk does: the budgets of volumes
	large2local = 0.8
)

// juicefs is a plain one: what volumes are made of, as who knows nothing better mounts it.
type juicefs struct {
	at  string
	cmd *exec.Cmd
}

func mountJuiceFS(binary, dir string) (*juicefs, error) {
	at := filepath.Join(dir, "mnt")
	if err := os.MkdirAll(at, 0o700); err != nil {
		return nil, err
	}
	meta := "badger://" + filepath.Join(dir, "meta")
	if out, err := exec.Command(binary, "format", meta, "plain", "--storage", "file", "--bucket", filepath.Join(dir, "objects")+"/", "--trash-days", "0", "--no-update").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("juicefs format: %w: %.500s", err, out)
	}
	// At a place of its own, which a kill by its command line finds.
	j := &juicefs{at: at, cmd: exec.Command(binary, "mount", meta, at, "--no-usage-report", "--no-syslog", "--backup-meta", "0", "--cache-dir", filepath.Join(dir, "cache"), "--log", filepath.Join(dir, "log"))}
	if err := j.cmd.Start(); err != nil {
		return nil, err
	}
	for end := time.Now().Add(time.Minute); ; {
		var st unix.Statfs_t
		if err := unix.Statfs(at, &st); err == nil && st.Type == 0x65735546 {
			return j, nil
		}
		if time.Now().After(end) {
			return nil, errors.Join(errors.New("juicefs does not mount"), j.close())
		}
		<-time.After(50 * time.Millisecond)
	}
}

func (j *juicefs) close() error {
	err := unix.Unmount(j.at, unix.MNT_DETACH)
	if kerr := j.cmd.Process.Signal(unix.SIGTERM); kerr == nil {
		_ = j.cmd.Wait()
	}
	return err
}

// besideLocal has a row for each place where something was done, the local disk's first. The
// volumes' have a budget.
func besideLocal(perSecond map[string][]float64, name, load, unit string) (rows []row) {
	least := small2local
	if unit == "MB/s" {
		least = large2local
	}
	local := percentile(slices.Sorted(slices.Values(perSecond["local"])), 50)
	for _, place := range []string{"local", "rootfs", "volume", "limited", "juicefs"} {
		if len(perSecond[place]) == 0 {
			continue
		}
		r := row{name: name + ", " + place, load: load, unit: unit, samples: perSecond[place]}
		if place == "volume" || place == "limited" {
			r.budget = budget{p50: least * local, least: true}
		}
		r.note = fmt.Sprintf("%.2f of local", percentile(r.sorted(), 50)/local)
		rows = append(rows, r)
	}
	return rows
}

// places measures small files and a large one in each place, by turns. run runs the probe
// program there.
func places(dirs map[string]string, where string, run func(argv ...string) ([]byte, error)) (rows []row, err error) {
	small, large := map[string]map[string][]float64{}, map[string]map[string][]float64{}
	add := func(to map[string]map[string][]float64, place string, out []byte, count float64) error {
		var took map[string]float64
		if err := json.Unmarshal(out, &took); err != nil {
			return fmt.Errorf("the probe in %s printed %.200q: %w", place, out, err)
		}
		for phase, seconds := range took {
			if to[phase] == nil {
				to[phase] = map[string][]float64{}
			}
			to[phase][place] = append(to[phase][place], count/seconds)
		}
		return nil
	}
	for range *rounds {
		for place, dir := range dirs {
			out, err := run("small", dir, fmt.Sprint(*smallFiles))
			if err == nil {
				err = add(small, place, out, float64(*smallFiles))
			}
			if err == nil {
				out, err = run("large", dir, fmt.Sprint(*largeMiB))
			}
			if err == nil {
				err = add(large, place, out, float64(*largeMiB)*(1<<20)/1e6)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	for _, phase := range []string{"create", "stat", "read", "delete"} {
		rows = append(rows, besideLocal(small[phase], where+": "+phase, fmt.Sprintf("%d files of 4 KiB", *smallFiles), "/s")...)
	}
	for _, phase := range []string{"write", "read"} {
		rows = append(rows, besideLocal(large[phase], where+": "+phase+" in a row", fmt.Sprintf("%d MiB, fsync", *largeMiB), "MB/s")...)
	}
	return rows, nil
}

// filesOnHost measures a volume where the node has it mounted, without gVisor.
func (v *volumes) filesOnHost(ctx context.Context) ([]row, error) {
	api := v.api()
	defer api.Close()
	dirs := map[string]string{"local": filepath.Join(v.dir, "local"), "juicefs": v.plain.at}
	if err := os.MkdirAll(dirs["local"], 0o755); err != nil {
		return nil, err
	}
	all := map[string]volumeapi.Volume{
		"volume": {ID: "benchhost", Team: "bench", Epoch: 1}, "limited": {ID: "benchlimited", Team: "bench", Epoch: 1, Limit: 8 << 30},
	}
	for place, one := range all {
		if _, err := api.Create(ctx, volumeapi.Create{Volume: one}); err != nil {
			return nil, err
		}
		m, err := api.Use(ctx, volumeapi.Use{Volume: one, Use: "bench"})
		if err != nil {
			return nil, err
		}
		dirs[place] = m.Path
	}
	rows, err := places(dirs, "on the host", func(argv ...string) ([]byte, error) {
		return exec.CommandContext(ctx, v.probe(), argv...).Output()
	})
	for _, one := range all {
		err = errors.Join(err, api.Leave(ctx, volumeapi.Leave{ID: one.ID, Use: "bench"}), api.Remove(ctx, one))
	}
	return rows, err
}

// A workplace is a sandbox with a volume, beside which it sees directories of the host: what
// is mounted in its portal shows inside.
type workplace struct {
	*volumes
	volume, id string
	dirs       map[string]string // places, inside
	mounts     []string
}

// workplace claims a sandbox. Inside, /data is a volume, /data/local an overlay on the host's
// disk, /data/jfs a plain JuiceFS, and /data/in what the host has in a directory.
func (v *volumes) workplace(ctx context.Context, in string) (w *workplace, err error) {
	w = &workplace{volumes: v, dirs: map[string]string{"volume": "/data/volume", "local": "/data/local", "juicefs": "/data/jfs", "rootfs": "/rootfs"}}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.leave(ctx))
		}
	}()
	if w.volume, err = v.make(ctx); err != nil {
		return w, err
	}
	if w.id, _, err = v.claimWith(ctx, w.volume); err != nil {
		return w, err
	}
	portal, err := filepath.Glob(filepath.Join(v.stack.RunDir, "noded", "portals", "base", w.id, w.volume+"~*"))
	if err != nil || len(portal) != 1 {
		return w, fmt.Errorf("the sandbox's portal has %v, %w", portal, err)
	}
	overlay := map[string]string{}
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		overlay[name] = filepath.Join(v.dir, w.id, name)
		if err := os.MkdirAll(overlay[name], 0o755); err != nil {
			return w, err
		}
	}
	if err := unix.Mount("local", overlay["merged"], "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", overlay["lower"], overlay["upper"], overlay["work"])); err != nil {
		return w, err
	}
	w.mounts = append(w.mounts, overlay["merged"])
	for name, from := range map[string]string{"local": overlay["merged"], "jfs": v.plain.at, "in": in} {
		if from == "" {
			continue
		}
		at := filepath.Join(portal[0], name)
		if err := bind(from, at); err != nil {
			return w, err
		}
		w.mounts = append(w.mounts, at)
	}
	_, err = w.sh(ctx, "mkdir /rootfs /data/volume && ls /data/local /data/jfs >/dev/null")
	return w, err
}

// sh runs a script to its end, which must be a good one.
func (w *workplace) sh(ctx context.Context, script string) (string, error) {
	var out struct {
		Stdout, Stderr string
		ExitCode       *int `json:"exit_code"`
	}
	_, err := w.must(ctx, http.MethodPost, sandboxes+"/"+w.id+"/contexts", map[string]any{
		"type": "cmd", "cmd": map[string]any{"command": []string{"sh", "-c", script}}, "wait_until_done": true}, &out)
	if err == nil && (out.ExitCode == nil || *out.ExitCode != 0) {
		err = fmt.Errorf("%s: %.500s %.500s", script, out.Stdout, out.Stderr)
	}
	return out.Stdout, err
}

func (w *workplace) leave(ctx context.Context) (err error) {
	ctx = context.WithoutCancel(ctx)
	for _, at := range slices.Backward(w.mounts) {
		err = errors.Join(err, unix.Unmount(at, unix.MNT_DETACH))
	}
	if w.id != "" {
		err = errors.Join(err, w.remove(ctx, w.id))
	}
	if w.volume != "" {
		err = errors.Join(err, w.removeVolume(ctx, w.volume))
	}
	return err
}

// filesInside measures the same inside a gVisor sandbox, beside an overlay of the host, its own
// root file system and a plain JuiceFS, all of which the one sandbox sees.
func (v *volumes) filesInside(ctx context.Context) ([]row, error) {
	in := filepath.Join(v.dir, "in")
	if err := os.MkdirAll(in, 0o755); err != nil {
		return nil, err
	}
	program, err := os.ReadFile(v.probe())
	if err == nil {
		err = os.WriteFile(filepath.Join(in, "probe"), program, 0o755)
	}
	if err != nil {
		return nil, err
	}
	w, err := v.workplace(ctx, in)
	if err != nil {
		return nil, err
	}
	if _, err := w.sh(ctx, "cp /data/in/probe /tmp/probe && chmod 755 /tmp/probe"); err != nil {
		return nil, errors.Join(err, w.leave(ctx))
	}
	rows, err := places(w.dirs, "in gVisor", func(argv ...string) ([]byte, error) {
		out, err := w.sh(ctx, "/tmp/probe "+strings.Join(argv, " "))
		return []byte(out), err
	})
	return rows, errors.Join(err, w.leave(ctx))
}
