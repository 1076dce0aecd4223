package worker

import (
	"os"
	"os/exec"

	"golang.org/x/sys/windows"
)

// detach makes a command one that outlives the console.
func detach(cmd *exec.Cmd) {
	cmd.SysProcAttr = &windows.SysProcAttr{CreationFlags: windows.DETACHED_PROCESS | windows.CREATE_NEW_PROCESS_GROUP}
}

// terminate ends a worker: a process without a console hears of no signal, and a worker
// may end at any point.
func terminate(p *os.Process) error { return p.Kill() }
