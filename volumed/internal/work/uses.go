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

func (m *Manager) endUse(v *volume, use string, seq uint64) error {
	if err := os.Remove(m.useFile(v.id, use, seq)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.uses, use)
	v.idle = time.Now()
	return nil
}

// recoverUses takes up the uses that an earlier process knew.
func (m *Manager) recoverUses() error {
	entries, err := os.ReadDir(m.usesDir())
	if err != nil {
		return err
	}
	for _, e := range entries {
		parts := strings.Split(e.Name(), separator)
		if len(parts) != 3 {
			return fmt.Errorf("%q is no use of a volume", e.Name())
		}
		seq, err := strconv.ParseUint(parts[2], 10, 64)
		if err != nil {
			return fmt.Errorf("%q is no use of a volume: %w", e.Name(), err)
		}
		v := m.get(parts[0])
		v.uses[parts[1]] = seq == 0
		if seq != 0 {
			if err := m.recoverReader(v, parts[1], seq); err != nil {
				m.cfg.Log.Error("a read-only mount could not be taken up again", "volume", v.id, "error", err)
			}
		}
	}
	return nil
}
