//go:build linux

package progress

import (
	"bytes"
	"os"
	"testing"
	"time"

	"github.com/containerd/console"
)

// On a terminal the line is there, changes, and leaves nothing behind.
func TestTerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	master, path, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	if err := master.Resize(console.WinSize{Width: 60, Height: 24}); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	shown := &screen{read: master.Read}
	b := Start(slave, "Up", 100)
	shown.waitFor(t, "Up  [")
	b.Add(50)
	shown.waitFor(t, " 50 %")
	b.Say("Still up")
	shown.waitFor(t, "Still up")
	b.Stop()
	if _, err := slave.WriteString("behind"); err != nil {
		t.Fatal(err)
	}
	shown.waitFor(t, wipe+"behind")
}

type screen struct {
	read func([]byte) (int, error)
	all  []byte
}

func (s *screen) waitFor(t *testing.T, text string) {
	t.Helper()
	buf := make([]byte, 1024)
	for deadline := time.Now().Add(time.Minute); !bytes.Contains(s.all, []byte(text)); {
		n, err := s.read(buf)
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("%q was never shown but %q: %v", text, s.all, err)
		}
		s.all = append(s.all, buf[:n]...)
	}
}
