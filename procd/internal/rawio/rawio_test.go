package rawio_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"s0.run/procd/internal/rawio"
)

func pair(t *testing.T) (*rawio.Conn, net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := rawio.NewConn(near.(*net.UnixConn))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); far.Close() })
	return conn, far
}

// More than a socket holds goes both ways, whoever waits for whom, and an end is an end.
func TestConn(t *testing.T) {
	t.Parallel()
	conn, far := pair(t)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	echoed := make(chan error, 1)
	go func() {
		_, err := io.Copy(far, far)
		echoed <- err
	}()
	go func() {
		if n, err := conn.Write(sent); n != len(sent) || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	}()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%v, equal: %v", err, bytes.Equal(got, sent))
	}
	far.(*net.UnixConn).CloseWrite()
	if n, err := conn.Read(got); n != 0 || err != io.EOF {
		t.Fatalf("%d, %v", n, err)
	}
	conn.Close()
	if err := <-echoed; err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(got); err == nil {
		t.Fatal("a closed connection reads")
	}
	if _, err := conn.Write(sent); err == nil {
		t.Fatal("a closed connection writes")
	}
}

func TestDeadlines(t *testing.T) {
	t.Parallel()
	conn, _ := pair(t)
	conn.SetDeadline(time.Unix(1, 0))
	if _, err := conn.Read(make([]byte, 1)); !os.IsTimeout(err) {
		t.Errorf("read: %v", err)
	}
	if _, err := conn.Write([]byte{1}); !os.IsTimeout(err) {
		t.Errorf("write: %v", err)
	}
}

// A goroutine that always finds something to read leaves the others their turn, on one
// processor and after a while in which nothing happened, too.
func TestABusyReaderStarvesNobody(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // after a minute the watcher looks by itself
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestHelperBusy$")
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1", busyHelper+"=1")
	to, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	from, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = cmd.Wait() }()
	said := bufio.NewReader(from)
	if line, err := said.ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	awaitStill(t, ctx, cmd.Process.Pid)
	for _, want := range []string{"busy\n", "answered\n"} {
		if _, err := io.WriteString(to, "x"); err != nil {
			t.Fatal(err)
		}
		if line, err := said.ReadString('\n'); err != nil || line != want {
			t.Fatalf("%q, %v; want %q", line, err, want)
		}
	}
}

const busyHelper = "RAWIO_TEST_BUSY"

// TestHelperBusy is the process of [TestABusyReaderStarvesNobody].
func TestHelperBusy(t *testing.T) {
	if os.Getenv(busyHelper) == "" {
		return
	}
	zero, err := os.Open("/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(0, true); err != nil {
		t.Fatal(err)
	}
	conn, err := os.NewFile(0, "stdin").SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	next := func() {
		err := conn.Read(func(fd uintptr) bool {
			_, err := rawio.Read(int(fd), make([]byte, 1))
			return err != unix.EAGAIN
		})
		if err != nil {
			t.Error(err)
		}
	}
	fmt.Println("ready")
	next()
	go func() {
		b := []byte("busy\n")
		_, _, _ = unix.RawSyscall(unix.SYS_WRITE, 1, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b))) // wakes no watcher
		for fd := int(zero.Fd()); ; {
			if _, err := rawio.Read(fd, b); err != nil {
				panic(err)
			}
		}
	}()
	next()
	fmt.Println("answered")
	os.Exit(0)
}

// awaitStill waits until a process has not run for a while: the scheduler's watcher looks
// at least every 10 ms while it is awake.
func awaitStill(t *testing.T, ctx context.Context, pid int) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for before, same := "", 0; same < 3; {
		all, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		now := ""
		for _, name := range all {
			b, _ := os.ReadFile(name)
			_, switches, _ := strings.Cut(string(b), "voluntary_ctxt_switches")
			now += switches + ";"
		}
		if same++; now != before {
			before, same = now, 0
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("it never rests")
		}
	}
}
