package proc

import (
	"errors"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"s0.run/internal/procapi"
)

// What a program writes to its terminal just before it ends is never lost, however its
// end falls between two looks of the kernel's. Without a second look about one in 1,500 was.
func TestTerminalsLastWordsAreKept(t *testing.T) {
	t.Parallel()
	for i := range 5_000 {
		master, slave, err := openPTY(procapi.PTYSize{Rows: 24, Cols: 80})
		if err != nil {
			t.Fatal(err)
		}
		var said []byte
		p, err := newPump(master, NewLog(1<<10), func(b []byte) { said = append(said, b...) })
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error)
		go func() { ended <- sayAndEnd(slave, rand.IntN(3000)) }()
		for err = nil; err == nil; {
			_ = p.conn.Control(func(fd uintptr) { _, err = p.read(int(fd), p.emit) })
		}
		if err := errors.Join(<-ended, master.Close()); err != nil {
			t.Fatal(err)
		}
		if string(said) != "bye" {
			t.Fatalf("terminal %d: %q, then %v", i, said, err)
		}
	}
}

// sayAndEnd writes to a terminal after a moment, and closes it.
func sayAndEnd(slave, moment int) error {
	for range moment {
	}
	_, err := unix.Write(slave, []byte("bye"))
	return errors.Join(err, unix.Close(slave))
}

// What was written to a terminal that nobody reads is unread from then on, whether or not
// the kernel has carried it there yet.
func TestWhatWasJustWrittenIsUnread(t *testing.T) {
	t.Parallel()
	master, slave, err := openPTY(procapi.PTYSize{Rows: 24, Cols: 80})
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer unix.Close(slave)
	for i := range 5_000 {
		if _, err := master.WriteString("line\n"); err != nil {
			t.Fatal(err)
		}
		if n, err := unread(int(master.Fd())); err != nil || n != len("line\n") {
			t.Fatalf("line %d: %d bytes are unread, %v", i, n, err)
		}
		if err := errors.Join(second(unix.Read(slave, make([]byte, 100))), second(master.Read(make([]byte, 100)))); err != nil {
			t.Fatal(err)
		}
	}
}

func second(_ int, err error) error { return err }
