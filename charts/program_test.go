package charts

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"s0.run/internal/s0test/podtest"
)

// program is a container's.
type program struct {
	cmd   *exec.Cmd
	dir   string // of the container around it; "": none
	again func() *program
	log   *os.File
	done  chan struct{}
	err   error // when it is done
}

func (p *program) said() string {
	b, _ := os.ReadFile(p.log.Name())
	return string(b[max(0, len(b)-4000):])
}

func (h *host) exec(name string, args []string) *program {
	h.t.Helper()
	path := filepath.Join(h.bin, args[0]) // as the image's, before the machine's
	if _, err := os.Stat(path); err != nil {
		path = args[0]
	}
	p := &program{cmd: exec.Command(path, args[1:]...), again: func() *program { return h.exec(name, args) }}
	p.cmd.Env = []string{"PATH=" + h.bin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	return h.follow(name, p)
}

// follow starts a program, and ends it with the test.
func (h *host) follow(name string, p *program) *program {
	h.t.Helper()
	var err error
	p.log, err = os.OpenFile(filepath.Join(h.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	h.must(err)
	p.done = make(chan struct{})
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	h.must(p.cmd.Start())
	go func() { // ends with the program
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	h.t.Cleanup(func() {
		p.stop(syscall.SIGTERM)
		if h.t.Failed() {
			h.t.Logf("%s said: %s", name, p.said())
		}
		p.log.Close()
	})
	return p
}

func (p *program) stop(how syscall.Signal) {
	if p.dir != "" && how == syscall.SIGKILL { // which runc can't pass on
		_ = podtest.Kill(p.dir)
	} else {
		_ = p.cmd.Process.Signal(how)
	}
	select {
	case <-p.done:
	case <-time.After(patience):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}
