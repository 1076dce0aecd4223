package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"

	"s0.run/internal/s0test"
)

// terminal is s0 at a terminal, and the person who sits there.
type terminal struct {
	t      *testing.T
	master console.Console
	slave  *os.File
	before unix.Termios // what s0 found
	cmd    *exec.Cmd
	ended  chan struct{}

	mu     sync.Mutex
	shown  []byte
	moment chan struct{} // closed when there is more
}

// atTerminal starts s0 on a terminal of 30 rows and 100 columns.
func atTerminal(t *testing.T, s *s0test.Stack, server string, args ...string) *terminal {
	t.Helper()
	master, path, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	slave, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	x := &terminal{t: t, master: master, slave: slave, ended: make(chan struct{}), moment: make(chan struct{})}
	x.resize(30, 100)
	x.before = x.mode()
	x.cmd = s0Command(s, server, args...)
	x.cmd.Stdin, x.cmd.Stdout, x.cmd.Stderr = slave, slave, slave
	x.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := x.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		x.cmd.Wait()
		close(x.ended)
	}()
	go x.watch()
	t.Cleanup(func() {
		x.cmd.Process.Kill()
		<-x.ended
	})
	return x
}

func s0Command(s *s0test.Stack, server string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.Bin(), "s0"), args...)
	cmd.Env = append(os.Environ(), "SANDBOX0_BASE_URL="+server, "SANDBOX0_TOKEN="+s.Key(), "TERM=xterm", "HOME=/nonexistent")
	return cmd
}

func (x *terminal) watch() {
	buf := make([]byte, 4096)
	for {
		n, err := x.master.Read(buf)
		x.mu.Lock()
		x.shown = append(x.shown, buf[:n]...)
		close(x.moment)
		x.moment = make(chan struct{})
		x.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (x *terminal) resize(rows, cols uint16) {
	x.t.Helper()
	if err := x.master.Resize(console.WinSize{Height: rows, Width: cols}); err != nil {
		x.t.Fatal(err)
	}
}

func (x *terminal) mode() unix.Termios {
	x.t.Helper()
	mode, err := unix.IoctlGetTermios(int(x.slave.Fd()), unix.TCGETS)
	if err != nil {
		x.t.Fatal(err)
	}
	return *mode
}

func (x *terminal) keys(keys string) {
	x.t.Helper()
	if _, err := io.WriteString(x.master, keys); err != nil {
		x.t.Fatal(err)
	}
}

// sees waits until the terminal shows something that it has not shown before.
func (x *terminal) sees(pattern string) {
	x.t.Helper()
	if !x.seesWithin(patience, pattern) {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.t.Fatalf("the terminal never showed %q but %q", pattern, x.shown)
	}
}

func (x *terminal) seesWithin(limit time.Duration, pattern string) bool {
	re := regexp.MustCompile(pattern)
	deadline := time.After(limit)
	for {
		x.mu.Lock()
		at, more := re.FindIndex(x.shown), x.moment
		if at != nil {
			x.shown = x.shown[at[1]:]
		}
		x.mu.Unlock()
		if at != nil {
			return true
		}
		select {
		case <-more:
		case <-deadline:
			return false
		}
	}
}

// ends waits for s0's end, which must give the terminal back as it was.
func (x *terminal) ends(code int) {
	x.t.Helper()
	select {
	case <-x.ended:
	case <-time.After(patience):
		x.t.Fatal("s0 does not end")
	}
	if got := x.cmd.ProcessState.ExitCode(); got != code {
		x.t.Errorf("exit code %d, want %d", got, code)
	}
	if now := x.mode(); now != x.before {
		x.t.Errorf("the terminal is left in another mode: %+v, was %+v", now, x.before)
	}
}

func (x *terminal) raw() bool { return x.mode().Lflag&unix.ICANON == 0 }

// testTerminal: a shell in a sandbox at a real terminal.
func testTerminal(t *testing.T, s *s0test.Stack) {
	id := newUser(t, s).claim()
	x := atTerminal(t, s, s.URL, "sandbox", "exec", "-it", id, "--", "bash", "--norc")
	x.keys("echo size-$(stty size | tr ' ' x)\r")
	x.sees(`[\r\n]size-30x100\r`)
	if !x.raw() {
		t.Error("the terminal is not raw while a shell has it")
	}
	x.resize(40, 120)
	x.keys("until [ \"$(stty size)\" = '40 120' ]; do sleep 0.1; done; echo resized-$((1+1))\r")
	x.sees(`[\r\n]resized-2\r`)

	// What prints is in the foreground already, as a sleep behind an echo need not be.
	x.keys(`sh -c 'trap "echo caught-\$((1+1)); exit" INT; echo started-$((1+1)); while :; do sleep 0.1; done'` + "\r")
	x.sees(`[\r\n]started-2\r`)
	x.keys("\x03")
	x.sees(`caught-2\r`)
	x.keys("echo after-$((1+1))\r")
	x.sees(`[\r\n]after-2\r`)
	x.keys("exit 7\r")
	x.ends(7)
}

// testTerminalSignals: who kills s0 gets the terminal back, and nothing stays behind.
func testTerminalSignals(t *testing.T, s *s0test.Stack) {
	u := newUser(t, s)
	id := u.claim()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT} {
		x := atTerminal(t, s, s.URL, "sandbox", "exec", "-it", id, "--", "bash", "--norc")
		x.keys("trap '' TERM HUP QUIT; echo ready-$((1+1))\r")
		x.sees(`[\r\n]ready-2\r`)
		again := time.NewTicker(50 * time.Millisecond)
		for done := false; !done; { // the first is the shell's, another ends s0
			x.cmd.Process.Signal(sig)
			select {
			case <-x.ended:
				done = true
			case <-again.C:
			}
		}
		again.Stop()
		x.sees("s0: interrupted")
		x.ends(1)
	}
	s.Eventually("the shells to be gone", func() error {
		list, err := u.c.ListContexts(u.ctx(), id)
		if err == nil && len(list.Contexts) > 0 {
			return fmt.Errorf("%d contexts are left", len(list.Contexts))
		}
		return err
	})
}

// testTerminalReattach: a connection that breaks is made again; one that can't be is
// given up by who sits there.
func testTerminalReattach(t *testing.T, s *s0test.Stack) {
	id := newUser(t, s).claim()
	net := newBreakable(t, s.URL)
	x := atTerminal(t, s, net.url, "sandbox", "exec", "-it", id, "--", "bash", "--norc")
	x.keys("y=4; echo first-$((1+1))\r")
	x.sees(`[\r\n]first-2\r`)
	net.breakAll()
	x.keys("\r")
	s.Eventually("another connection", func() error {
		if net.count() < 1 {
			return errors.New("there is none")
		}
		return nil
	})
	s.Eventually("the shell to answer again", func() error { // what is typed while it is broken is lost
		x.keys("echo again-$((y+1))\r")
		if !x.seesWithin(time.Second, `[\r\n]again-5\r`) {
			return errors.New("it does not")
		}
		return nil
	})
	net.close()
	x.sees("attaching again")
	x.keys("\x03")
	x.sees("it may still run")
	x.ends(1)
}

// testOutputOverBreaks: what a command prints arrives whole, whatever becomes of the
// connections.
func testOutputOverBreaks(t *testing.T, s *s0test.Stack) {
	id := newUser(t, s).claim()
	net := newBreakable(t, s.URL)
	cmd := s0Command(s, net.url, "sandbox", "exec", id, "--", "sh", "-c", "seq 1 20000; sleep 1; seq 20001 40000; sleep 1; seq 40001 60000; exit 5")
	var got, want, stderr bytes.Buffer
	breaking := &breaker{w: &got, at: []string{"\n10000\n", "\n20000\n", "\n50000\n"}, do: net.breakAll}
	cmd.Stdout, cmd.Stderr = breaking, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 5 {
		t.Errorf("%v\n%s", err, &stderr)
	}
	for i := range 60000 {
		fmt.Fprintln(&want, i+1)
	}
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		t.Errorf("%d bytes of output, want %d\n%s", got.Len(), want.Len(), &stderr)
	}
	if len(breaking.at) > 0 {
		t.Errorf("the connection was not broken at %q", breaking.at)
	}
}

// breaker does something when what is written to w first ends behind each of the marks.
type breaker struct {
	w  *bytes.Buffer
	at []string
	do func()
}

func (b *breaker) Write(p []byte) (int, error) {
	n, err := b.w.Write(p)
	if len(b.at) > 0 && strings.Contains(b.w.String(), b.at[0]) {
		b.at = b.at[1:]
		b.do()
	}
	return n, err
}

// breakable is the network between s0 and its server.
type breakable struct {
	url    string
	listen net.Listener

	mu    sync.Mutex
	conns map[net.Conn]bool
}

func newBreakable(t *testing.T, server string) *breakable {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &breakable{url: "http://" + l.Addr().String(), listen: l, conns: map[net.Conn]bool{}}
	t.Cleanup(b.close)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go b.carry(c, u.Host)
		}
	}()
	return b
}

func (b *breakable) carry(c net.Conn, to string) {
	defer c.Close()
	s, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer s.Close()
	b.mu.Lock()
	b.conns[c] = true
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		delete(b.conns, c)
		b.mu.Unlock()
	}()
	go func() {
		io.Copy(s, c)
		s.Close()
	}()
	io.Copy(c, s)
}

func (b *breakable) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.conns)
}

// breakAll breaks every connection; new ones can be made.
func (b *breakable) breakAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.conns {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
		delete(b.conns, c)
	}
}

// close breaks every connection for good.
func (b *breakable) close() {
	b.listen.Close()
	b.breakAll()
}
