package runsc

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"s0.run/internal/shimapi"
)

// statePath is runsc's own record of the container. Every sandbox of ours has one
// container, so both halves of the name are its id.
func (r *Runsc) statePath() string {
	return filepath.Join(r.cfg.Root, fmt.Sprintf("%s_sandbox:%s.state", r.id, r.id))
}

func (r *Runsc) known() bool {
	_, err := os.Stat(r.statePath())
	return err == nil
}

// GoferPid reads the gofer's pid from runsc's state: no command tells it.
func (r *Runsc) GoferPid() (int, error) {
	raw, err := os.ReadFile(r.statePath())
	if err != nil {
		return 0, fmt.Errorf("reading runsc's state of %s: %w", r.id, err)
	}
	var state struct {
		GoferPid int `json:"goferPid"`
	}
	if err := json.Unmarshal(raw, &state); err != nil {
		return 0, fmt.Errorf("reading runsc's state of %s: %w", r.id, err)
	}
	if state.GoferPid <= 0 {
		return 0, fmt.Errorf("reading runsc's state of %s: no gofer in it", r.id)
	}
	return state.GoferPid, nil
}

// Processes lists every process on the host that runs for the container: sentry,
// gofer and runsc commands. It finds them by their command line, which survives
// the death of whoever knew their pids.
func (r *Runsc) Processes() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && r.owns(cmdline) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// owns reports whether a command line is runsc's with our state directory and id.
func (r *Runsc) owns(cmdline []byte) bool {
	args := bytes.Split(bytes.TrimSuffix(cmdline, []byte{0}), []byte{0})
	has := func(want string) bool {
		return slices.ContainsFunc(args, func(a []byte) bool { return string(a) == want })
	}
	return has("--root="+r.cfg.Root) && has(r.id)
}

// RemoveState deletes runsc's files of the container that `runsc delete` left. Its
// processes must be gone.
func (r *Runsc) RemoveState() error {
	for _, n := range shimapi.RunscFiles(r.id) {
		if err := os.Remove(filepath.Join(r.cfg.Root, n)); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("removing runsc's state of %s: %w", r.id, err)
		}
	}
	return nil
}
