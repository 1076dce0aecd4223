package fault_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// A process is one of our daemons, started again and again with the same arguments.
type process struct {
	s    *stack
	name string
	args []string
	log  string
	// program is the s0d that it is, of this version or another.
	program string

	cmd    *exec.Cmd
	exited chan struct{} // closed when it has ended
}

func newProcess(s *stack, name string, args []string) *process {
	ended := make(chan struct{})
	close(ended)
	return &process{s: s, name: name, args: args, log: filepath.Join(s.Root, name+".log"), program: filepath.Join(s.BinDir, "s0d"), exited: ended}
}

func (p *process) start(env string) {
	p.s.Helper()
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	p.s.must(err)
	defer log.Close()
	cmd := exec.Command(p.program, p.args...)
	cmd.Env = append(os.Environ(), env)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.s.must(cmd.Start())
	exited := make(chan struct{})
	go func() { // ends with the process, which finish kills
		_ = cmd.Wait()
		close(exited)
	}()
	p.cmd, p.exited = cmd, exited
}

// kill ends it as a crash would, and waits for that.
func (p *process) kill() {
	if p.cmd != nil {
		_ = p.cmd.Process.Kill()
	}
	<-p.exited
}

func (p *process) signal(sig syscall.Signal) {
	p.s.Helper()
	p.s.must(p.cmd.Process.Signal(sig))
}

// resume lets it go on if it was stopped.
func (p *process) resume() {
	if !p.ended() {
		_ = p.cmd.Process.Signal(syscall.SIGCONT)
	}
}

func (p *process) ended() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// died waits until it has ended by itself.
func (p *process) died(why string) {
	p.s.Helper()
	select {
	case <-p.exited:
	case <-time.After(patience):
		p.s.Fatalf("%s lives on: %s\n%s", p.name, why, p.tail())
	}
}

// tail is the end of its log.
func (p *process) tail() string {
	raw, _ := os.ReadFile(p.log)
	lines := bytes.SplitAfter(raw, []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-30):], nil))
}
