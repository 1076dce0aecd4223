package noded_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// X29: containerd gives a shim's successor its time to tidy up, and when that was not enough,
// what runsc keeps of a sandbox stays. noded removes it with the sandbox, and what is nobody's
// at its start; what lives keeps its own.
func TestX29_WhatRunscLeftIsRemoved(t *testing.T) {
	m := newMachine(t)
	d := m.run()
	d.setPool(m.spec, 2)
	slots := d.untilFree(2)
	lives, failed := d.claim(slots[0]).Id, d.claim(slots[1]).Id
	d.setPool(m.spec, 0)
	own := m.runscFiles(lives)
	if len(own) == 0 {
		t.Fatal("runsc keeps nothing of a sandbox that runs")
	}
	m.kill("sentry", failed, 0)
	d.until("the failure", func(p *picture) bool { return p.sandboxes[failed] == "failed" })
	m.eventually("all of it to be freed", func() error { return m.without(failed) })
	m.leave(own, lives, failed)
	d.delete(failed)
	d.until("the end", func(p *picture) bool { return p.sandboxes[failed] == "" })
	if err := m.without(failed); err != nil {
		t.Errorf("it is deleted: %v", err)
	}

	d.stop()
	m.leave(own, lives, failed) // whose record is gone
	d = m.run()
	m.eventually("nobody's files to be removed", func() error { return m.without(failed) })
	d.mustServe(lives)
	if now := m.runscFiles(lives); !slices.Equal(now, own) {
		t.Errorf("of the living there is %v, want %v", now, own)
	}
	d.delete(lives)
	d.until("nothing", func(p *picture) bool { return len(p.sandboxes) == 0 })
	m.gone()
}

// runscFiles are the files that runsc keeps of a sandbox.
func (m *machine) runscFiles(id string) []string {
	m.Helper()
	files, err := filepath.Glob(filepath.Join(m.ctd.RunscRoot, "*"+id+"*"))
	if err != nil {
		m.Fatal(err)
	}
	return files
}

// leave makes another's files of what runsc keeps of a sandbox.
func (m *machine) leave(files []string, id, of string) {
	m.Helper()
	for _, file := range files {
		if err := os.WriteFile(strings.ReplaceAll(file, id, of), []byte("left"), 0o600); err != nil {
			m.Fatal(err)
		}
	}
}

// without says what the host still has of a sandbox.
func (m *machine) without(id string) error {
	if left := slices.DeleteFunc(m.present(), func(s string) bool { return !strings.Contains(s, id) }); len(left) > 0 {
		return fmt.Errorf("%s", strings.Join(left, "\n\t"))
	}
	return nil
}
