package proc

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/reap"
)

// ErrNoTerminal is returned for a terminal's operations on a process without one.
var ErrNoTerminal = errors.New("process has no terminal")

// ErrDone is returned for an operation on a process that has ended.
var ErrDone = reap.ErrDone

// The characters with which a terminal's line discipline raises signals.
var signalKeys = map[syscall.Signal]string{syscall.SIGINT: "\x03", syscall.SIGQUIT: "\x1c"}

// endOfFileKey is ^D.
const endOfFileKey = 4

// Write queues data for the process's standard input, all of it or nothing.
func (p *Process) Write(data []byte) error {
	if p.input == nil {
		return ErrNoInput
	}
	if p.ended() {
		return ErrDone
	}
	return p.input.write(data)
}

// InputRoom returns a channel that is closed when it is worth trying again to
// write what was [ErrInputFull].
func (p *Process) InputRoom() <-chan struct{} { return p.input.awaitRoom() }

// CloseInput tells the process that no more input follows: it closes a pipe, and
// types what ends a file into a terminal.
func (p *Process) CloseInput() error {
	switch {
	case p.input == nil:
		return ErrNoInput
	case p.ended():
		return ErrDone
	case p.terminal != nil:
		return p.Write([]byte{endOfFileKey})
	}
	p.input.end()
	return nil
}

func (p *Process) ended() bool {
	select {
	case <-p.child.Done():
		return true
	default:
		return false
	}
}

// fitLineMode lets a line pass that the terminal's line mode would cut, and puts
// the mode back before the next input that has none such. It alone touches
// p.lifted, in the one goroutine that writes input.
func (p *Process) fitLineMode(data []byte) {
	long := hasLongLine(data)
	if long && p.lifted == 0 {
		_ = p.onTerminal(func(fd int) error { p.lifted = liftLineMode(fd); return nil })
	}
	if !long && p.lifted != 0 {
		_ = p.onTerminal(func(fd int) error { restoreLineMode(fd, p.lifted); return nil })
		p.lifted = 0
	}
	if p.lifted&unix.ECHO != 0 {
		p.pumps[0].emit(echoOf(data))
	}
}

// onTerminal runs an ioctl on the terminal while it is sure to be open.
func (p *Process) onTerminal(do func(fd int) error) error {
	if p.terminal == nil {
		return ErrNoTerminal
	}
	conn, err := p.terminal.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := conn.Control(func(fd uintptr) { failed = do(int(fd)) }); err != nil {
		return fmt.Errorf("%w: %w", ErrDone, err)
	}
	return failed
}

// Resize sets the terminal's size; the kernel tells the process.
func (p *Process) Resize(size procapi.PTYSize) error {
	return p.onTerminal(func(fd int) error { return setSize(fd, size) })
}

// Unread is how many bytes of its terminal's input nobody has read.
func (p *Process) Unread() (n int, err error) {
	err = p.onTerminal(func(fd int) error {
		if n = p.input.pending(); n == 0 {
			n, err = unread(fd)
		}
		return err
	})
	return n, err
}

// Signal signals the process the way a user at a terminal would: INT and QUIT
// reach what runs in the foreground, STOP, CONT and KILL all of its session, any
// other signal its process group.
func (p *Process) Signal(sig syscall.Signal) error {
	if p.ended() {
		return ErrDone
	}
	switch sig {
	case syscall.SIGINT, syscall.SIGQUIT:
		if p.terminal != nil {
			return p.interrupt(sig)
		}
	case syscall.SIGSTOP, syscall.SIGCONT:
		signalFamily(p.PID(), sig)
	case syscall.SIGKILL:
		return p.Kill()
	}
	return p.child.SignalGroup(sig)
}

func (p *Process) interrupt(sig syscall.Signal) error {
	return p.onTerminal(func(fd int) error {
		if group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP); err == nil && group > 0 {
			return syscall.Kill(-group, sig)
		}
		// gVisor doesn't tell the foreground group to others, but its line discipline
		// knows it. As on a keyboard interrupt, unread input is dropped first: the key
		// would wait behind it.
		_ = unix.IoctlSetInt(fd, unix.TCFLSH, unix.TCOFLUSH) // the master's output is the slave's input
		_, err := unix.Write(fd, []byte(signalKeys[sig]))
		return err
	})
}

// Kill ends the process and all of its session and descendants. It doesn't wait.
func (p *Process) Kill() error {
	p.kill.Do(func() { close(p.killed) })
	if p.PID() == 0 {
		return nil // to the kernel that would be somebody else
	}
	for range killPasses {
		// A pid that exists although its process was reaped belongs to another process.
		if _, reused := readStat(p.PID()); p.ended() && reused {
			return nil
		}
		if signalFamily(p.PID(), syscall.SIGKILL) == 0 {
			break
		}
	}
	if err := p.child.SignalGroup(syscall.SIGKILL); err != nil && !errors.Is(err, ErrDone) && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}

// Close kills what is left of the process, closes its streams and waits for its
// goroutines. The log stays readable.
func (p *Process) Close() {
	_ = p.Kill()
	p.log.Release()
	<-p.child.Done()
	p.closeStreams()
	p.running.Wait()
}

// Stats sums up the process and all that belongs to it.
func (p *Process) Stats() procapi.ContextStats {
	s := procapi.ContextStats{PID: p.PID()}
	if p.ended() {
		return s
	}
	for _, m := range family(p.PID()) {
		s.Processes++
		s.CPUNanos += m.cpuTicks * clockTick
		s.Threads += m.threads
		s.RSSBytes += m.rssPages * int64(os.Getpagesize())
		s.VMSBytes += m.vmsBytes
	}
	return s
}
