package work

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"s0.run/volumed/internal/store"
)

// A use outlives this process as long as its mount does: until a reboot. So each is an
// empty file beside the mounts, "<volume>~<use>~<version>", which is 0 for writing.

const separator = "~"

func (m *Manager) usesDir() string { return filepath.Join(m.cfg.RunDir, "u") }

func (m *Manager) useFile(id, use string, seq uint64) string {
	return filepath.Join(m.usesDir(), fmt.Sprint(id, separator, use, separator, seq))
}

// addUse comes before the use may begin.
func (m *Manager) addUse(v *volume, use string, seq uint64) error {
	if err := store.CheckID("mount", use); err != nil {
		return err
	}
	f, err := os.OpenFile(m.useFile(v.id, use, seq), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	v.mu.Lock()
	v.uses[use] = seq == 0
	v.mu.Unlock()
	return f.Close()
}

// endUse ends a use, also one that could not be taken up: what it has is what its files say.
// A version that no use reads any more is not held.
func (m *Manager) endUse(v *volume, use string) error {
	all, err := m.listUses()
	if err != nil {
		return err
	}
	read := map[uint64]bool{} // by others
	var ended []uint64
	for _, u := range all {
		if u.volume == v.id && u.use != use {
			read[u.seq] = true
		} else if u.volume == v.id {
			ended = append(ended, u.seq)
		}
	}
	for _, seq := range ended {
		if err := os.Remove(m.useFile(v.id, use, seq)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	v.mu.Lock()
	delete(v.uses, use)
	v.idle = time.Now()
	if v.left != nil {
		close(v.left)
		v.left = nil
	}
	v.mu.Unlock()
	for _, r := range v.readers {
		if r.uses[use] {
			m.leaveReader(v, r, use)
			ended = append(ended, r.seq)
		}
	}
	for _, seq := range ended {
		if seq != 0 && !read[seq] {
			m.endVersion(v, seq)
		}
	}
	return nil
}

// useFile is what the name of one tells.
type useFile struct {
	volume, use string
	seq         uint64
}

func (m *Manager) listUses() (all []useFile, err error) {
	entries, err := os.ReadDir(m.usesDir())
	for _, e := range entries {
		parts := strings.Split(e.Name(), separator)
		if len(parts) != 3 {
			return nil, fmt.Errorf("%q is no use of a volume", e.Name())
		}
		seq, err := strconv.ParseUint(parts[2], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%q is no use of a volume: %w", e.Name(), err)
		}
		all = append(all, useFile{parts[0], parts[1], seq})
	}
	return all, err
}

// recoverUses takes up the uses that an earlier process knew.
func (m *Manager) recoverUses() error {
	all, err := m.listUses()
	if err != nil {
		return err
	}
	for _, u := range all {
		v := m.get(u.volume)
		v.uses[u.use] = u.seq == 0
		if u.seq != 0 {
			if err := m.recoverReader(v, u.use, u.seq); err != nil {
				m.cfg.Log.Error("a read-only mount could not be taken up again", "volume", v.id, "error", err)
			}
		}
	}
	return nil
}
