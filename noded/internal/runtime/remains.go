package runtime

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"s0.run/internal/sandbox"
	"s0.run/internal/shimapi"
)

// Remains lists the sandboxes that runsc keeps files of: those that run, and those whose
// shim has died and that nobody had the time to tidy up after.
func (r *Runtime) Remains() ([]sandbox.ID, error) {
	entries, err := os.ReadDir(r.cfg.RunscRoot)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listing runsc's files: %w", err)
	}
	ids := map[sandbox.ID]bool{}
	for _, e := range entries {
		if id, ok := runscOwner(e.Name()); ok {
			ids[id] = true
		}
	}
	return slices.Collect(maps.Keys(ids)), nil
}

// runscOwner is the sandbox that one of runsc's files is of.
func runscOwner(file string) (sandbox.ID, bool) {
	name := strings.TrimSuffix(strings.TrimPrefix(file, "runsc-"), ".sock")
	name, _, _ = strings.Cut(name, "_sandbox:")
	id, err := sandbox.ParseID(name)
	return id, err == nil && slices.Contains(shimapi.RunscFiles(name), file)
}

// RemoveRemains removes the files that runsc has left of a sandbox, whose container and
// control group are gone. What may still work with them, of the sandbox or on it, keeps them.
func (r *Runtime) RemoveRemains(id sandbox.ID) error {
	files, err := r.remains(id)
	if err != nil || len(files) == 0 {
		return err // nearly always: its shim has done it
	}
	pids, err := r.processes(id)
	if err == nil && len(pids) > 0 {
		err = fmt.Errorf("processes %v live", pids)
	}
	for _, file := range files {
		if err == nil {
			err = removeFile(file)
		}
	}
	if err != nil {
		return fmt.Errorf("removing what runsc has left of %s: %w", id, err)
	}
	return nil
}

// remains are the files of a sandbox that runsc's directory has.
func (r *Runtime) remains(id sandbox.ID) ([]string, error) {
	var files []string
	for _, name := range shimapi.RunscFiles(string(id)) {
		path := filepath.Join(r.cfg.RunscRoot, name)
		_, err := os.Lstat(path)
		if err == nil {
			files = append(files, path)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return files, nil
}

// removeFile removes a file that somebody else may be removing.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// processes are those of the sandbox, and runsc commands on it: they say so in their
// command lines, whoever has started them.
func (r *Runtime) processes(id sandbox.ID) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && r.names(cmdline, id) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func (r *Runtime) names(cmdline []byte, id sandbox.ID) bool {
	var root, owner bool
	for arg := range bytes.SplitSeq(cmdline, []byte{0}) {
		root = root || string(arg) == "--root="+r.cfg.RunscRoot
		owner = owner || string(arg) == string(id)
	}
	return root && owner
}
