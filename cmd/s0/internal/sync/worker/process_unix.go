//go:build !windows

package worker

import (
	"os"
	"os/exec"
	"syscall"
)

// detach makes a command one that outlives the terminal.
func detach(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }

// terminate asks a worker to end.
func terminate(p *os.Process) error { return p.Signal(syscall.SIGTERM) }
