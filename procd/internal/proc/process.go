package proc

import (
	"cmp"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/reap"
)

const (
	// outputGrace is how long the streams of an ended process may stay open before
	// its log ends without them: what it printed itself is there already, this is
	// for children that are about to end, too.
	outputGrace = 50 * time.Millisecond

	// killPasses bounds the hunt for processes that fork while they are killed.
	killPasses = 10
)

// States of a process, as the contract calls them.
const (
	StateRunning = "running"
	StatePaused  = "paused"
	StateStopped = "stopped" // ended by itself, successfully
	StateKilled  = "killed"
	StateCrashed = "crashed" // ended by itself, unsuccessfully
)

// KilledExitCode is a killed process's exit code, as shells have it.
const KilledExitCode = 128 + int(syscall.SIGKILL)

// Config says what to run. All fields but the optional ones are required.
type Config struct {
	Path string   // of the executable
	Argv []string // with argv[0]
	Dir  string
	Env  []string

	Size    *procapi.PTYSize // optional: run on a terminal of this size
	Keep    int              // optional: bytes of output that the log keeps; procapi.LogBytes without it
	NoInput bool             // without a terminal: read from /dev/null instead of a pipe
	Expect  bool             // somebody is about to attach to the log; see [Log.Expect]
	Observe func([]byte)     // optional: called with all output, after it is in the log; must not block
}

// Process is a process that was started. Its methods are safe for concurrent use.
type Process struct {
	child    *reap.Child
	log      *Log
	pumps    []*pump
	input    *input   // nil without input
	terminal *os.File // nil without a terminal; a pump owns it

	done   chan struct{}
	exit   procapi.Exit // constant once done is closed
	killed chan struct{}
	kill   sync.Once

	running sync.WaitGroup // every goroutine of this process
	lifted  uint32         // terminal modes that are off for a long line; see fitLineMode
}

// Start runs a process. An error of the kernel's is returned as it is.
func Start(r *reap.Reaper, cfg Config) (*Process, error) {
	p := &Process{log: NewLog(cmp.Or(cfg.Keep, procapi.LogBytes)), done: make(chan struct{}), killed: make(chan struct{})}
	ends, err := p.open(cfg)
	if err != nil {
		p.closeStreams()
		return nil, err
	}
	defer closeAll(ends)
	attr := &syscall.ProcAttr{Dir: cfg.Dir, Env: cfg.Env, Sys: &syscall.SysProcAttr{Setsid: true}}
	if cfg.Size != nil {
		attr.Sys.Setctty, attr.Sys.Ctty = true, 0
	}
	for _, fd := range ends {
		attr.Files = append(attr.Files, uintptr(fd))
	}
	p.child, err = r.Start(cfg.Path, cfg.Argv, attr)
	if err != nil {
		p.closeStreams()
		return nil, err
	}
	if cfg.Expect {
		p.log.Expect()
	}
	for _, pump := range p.pumps {
		p.running.Go(pump.run)
	}
	p.running.Go(p.follow)
	return p, nil
}

// Ended is a process of an earlier life of the sandbox, of which nothing is left but how
// it ended.
func Ended(exit procapi.Exit) *Process {
	p := &Process{child: reap.Gone(), log: NewLog(procapi.LogBytes), done: make(chan struct{}), killed: make(chan struct{}), exit: exit}
	p.log.Close()
	close(p.done)
	return p
}

// open makes the process's streams and returns the child's ends of them, which
// the caller closes; ours are in p, also on an error.
func (p *Process) open(cfg Config) (ends []int, err error) {
	if cfg.Size != nil {
		return p.openTerminal(cfg)
	}
	defer func() {
		if err != nil {
			closeAll(ends)
		}
	}()
	stdin, err := p.openInput(cfg.NoInput)
	if err != nil {
		return nil, err
	}
	ends = append(ends, stdin)
	for _, src := range []Source{Stdout, Stderr} {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			return ends, err
		}
		ends = append(ends, fds[1])
		if err := p.addPump(fds[0], src, cfg.Observe); err != nil {
			return ends, err
		}
	}
	return ends, nil
}

func (p *Process) openInput(none bool) (childEnd int, err error) {
	if none {
		return unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return -1, err
	}
	if err := unix.SetNonblock(fds[1], true); err != nil {
		closeAll(fds[:])
		return -1, err
	}
	file := os.NewFile(uintptr(fds[1]), "stdin")
	input, err := newInput(file, &p.running, nil)
	if err != nil {
		file.Close()
		unix.Close(fds[0])
		return -1, err
	}
	p.input = input
	return fds[0], nil
}

func (p *Process) openTerminal(cfg Config) (ends []int, err error) {
	master, slave, err := openPTY(*cfg.Size)
	if err != nil {
		return nil, err
	}
	pump, err := newPump(master, p.log, p.emitter(PTY, cfg.Observe))
	if err == nil {
		p.input, err = newInput(master, &p.running, p.fitLineMode)
	}
	if err != nil {
		p.input = nil
		master.Close()
		unix.Close(slave)
		return nil, err
	}
	p.pumps = append(p.pumps, pump)
	p.terminal = master
	return []int{slave, slave, slave}, nil
}

func (p *Process) addPump(fd int, src Source, observe func([]byte)) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return err
	}
	file := os.NewFile(uintptr(fd), "output")
	pump, err := newPump(file, p.log, p.emitter(src, observe))
	if err != nil {
		file.Close()
		return err
	}
	p.pumps = append(p.pumps, pump)
	return nil
}

func (p *Process) emitter(src Source, observe func([]byte)) func([]byte) {
	if observe == nil {
		return func(b []byte) { p.log.Append(src, b) }
	}
	return func(b []byte) {
		p.log.Append(src, b)
		observe(b)
	}
}

// closeAll closes descriptors, each once.
func closeAll(fds []int) {
	for i, fd := range fds {
		if i == 0 || fd != fds[i-1] {
			unix.Close(fd)
		}
	}
}

func (p *Process) closeStreams() {
	if p.input != nil {
		p.input.close()
		p.input.file.Close()
	}
	for _, pump := range p.pumps {
		pump.file.Close()
	}
}

// follow ends the log after the process.
func (p *Process) follow() {
	<-p.child.Done()
	p.awaitOutput()
	if p.input != nil {
		p.input.close()
		if p.terminal == nil {
			p.input.file.Close()
		}
	}
	p.exit = p.exitOf(p.child.Status())
	p.log.Close()
	close(p.done)
}

func (p *Process) awaitOutput() {
	grace := time.NewTimer(outputGrace)
	defer grace.Stop()
	for _, pump := range p.pumps {
		select {
		case <-pump.settled:
			continue
		case <-grace.C:
		}
		for _, late := range p.pumps {
			late.settle()
		}
		break
	}
	for _, pump := range p.pumps {
		<-pump.settled
	}
}

func (p *Process) exitOf(ws syscall.WaitStatus) procapi.Exit {
	if ws.Signaled() {
		state := StateKilled
		if crashes(ws.Signal()) {
			state = StateCrashed
		}
		return procapi.Exit{ExitCode: 128 + int(ws.Signal()), State: state}
	}
	code := ws.ExitStatus()
	select {
	case <-p.killed:
		return procapi.Exit{ExitCode: KilledExitCode, State: StateKilled}
	default:
	}
	switch code {
	case 0:
		return procapi.Exit{State: StateStopped}
	case KilledExitCode: // a shell whose command was killed
		return procapi.Exit{ExitCode: code, State: StateKilled}
	default:
		return procapi.Exit{ExitCode: code, State: StateCrashed}
	}
}

// crashes tells the signals of a program's own faults from those that others send.
func crashes(sig syscall.Signal) bool {
	switch sig {
	case syscall.SIGSEGV, syscall.SIGABRT, syscall.SIGBUS, syscall.SIGFPE, syscall.SIGILL, syscall.SIGSYS, syscall.SIGTRAP:
		return true
	}
	return false
}

// PID is the process's pid, process group and session; 0 for one that [Ended] has made.
func (p *Process) PID() int { return p.child.PID() }

// Log is the process's output.
func (p *Process) Log() *Log { return p.log }

// Terminal tells whether the process runs on a terminal.
func (p *Process) Terminal() bool { return p.terminal != nil }

// Done is closed when the process has ended and its log is complete.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit is how the process ended. It is valid after Done.
func (p *Process) Exit() procapi.Exit { return p.exit }

// State is the process's state now.
func (p *Process) State() string {
	select {
	case <-p.done:
		return p.exit.State
	default:
	}
	if p.child.Stopped() {
		return StatePaused
	}
	return StateRunning
}
