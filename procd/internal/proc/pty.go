package proc

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"s0.run/internal/procapi"
)

// maxCanonicalLine is below the kernel's limit of a line that a terminal collects
// before a program reads it (4096); what exceeds it is cut without a word.
const maxCanonicalLine = 4000

// openPTY makes a pseudo-terminal. The slave is a plain descriptor: it is for the
// child alone.
func openPTY(size procapi.PTYSize) (master *os.File, slave int, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, -1, fmt.Errorf("opening a terminal: %w", err)
	}
	slave, err = openSlave(fd, size)
	if err != nil {
		unix.Close(fd)
		return nil, -1, fmt.Errorf("opening a terminal: %w", err)
	}
	return os.NewFile(uintptr(fd), "ptmx"), slave, nil
}

func openSlave(master int, size procapi.PTYSize) (int, error) {
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return -1, err
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return -1, err
	}
	if err := setSize(master, size); err != nil {
		return -1, err
	}
	return unix.Open("/dev/pts/"+strconv.Itoa(n), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
}

func setSize(fd int, size procapi.PTYSize) error {
	return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
}

// hasLongLine tells whether a terminal in line mode would cut a line of data.
func hasLongLine(data []byte) bool {
	for len(data) > maxCanonicalLine {
		i := bytes.LastIndexAny(data[:maxCanonicalLine], "\r\n")
		if i < 0 {
			return true
		}
		data = data[i+1:]
	}
	return false
}

// setLineMode switches the terminal's line mode and says whether it changed.
// Without it a program gets a line in pieces, which all but the terminal's own
// line editing bear, and of any length.
func setLineMode(fd int, on bool) bool {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil || (t.Lflag&unix.ICANON != 0) == on {
		return false
	}
	t.Lflag ^= unix.ICANON
	if !on {
		t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	} else {
		t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 4, 0 // VEOF and VEOL share these places
	}
	return unix.IoctlSetTermios(fd, unix.TCSETS, t) == nil
}
