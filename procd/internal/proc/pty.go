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
	slave, err = prepareSlave(fd, size)
	if err != nil {
		unix.Close(fd)
		return nil, -1, fmt.Errorf("opening a terminal: %w", err)
	}
	return os.NewFile(uintptr(fd), "ptmx"), slave, nil
}

func prepareSlave(master int, size procapi.PTYSize) (int, error) {
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return -1, err
	}
	if err := setSize(master, size); err != nil {
		return -1, err
	}
	return openSlave(master, unix.O_RDWR)
}

func openSlave(master, mode int) (int, error) {
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return -1, err
	}
	return unix.Open("/dev/pts/"+strconv.Itoa(n), mode|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
}

// unread is how many bytes of input no program has read. Only the slave's side
// tells, and holding it open would hide the end of the stream from the pump.
func unread(master int) (int, error) {
	slave, err := openSlave(master, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return 0, err
	}
	defer unix.Close(slave)
	// Linux carries what was written to the other side by and by, and has done with it
	// before it answers a poll.
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(slave), Events: unix.POLLIN}}, 0); err != nil && err != unix.EINTR {
		return 0, err
	}
	return unix.IoctlGetInt(slave, unix.TIOCINQ)
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

// liftLineMode switches the terminal's line mode off, and its echo, and returns
// what it switched. A program gets its lines in pieces then, which all but the
// terminal's own line editing bear, of any length. Echo goes because Linux loses
// output of the program's while it echoes more than the reader has taken.
func liftLineMode(fd int) (lifted uint32) {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil || t.Lflag&unix.ICANON == 0 {
		return 0
	}
	lifted = t.Lflag & (unix.ICANON | unix.ECHO)
	t.Lflag &^= lifted
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	if unix.IoctlSetTermios(fd, unix.TCSETS, t) != nil {
		return 0
	}
	return lifted
}

// restoreLineMode undoes liftLineMode, unless the program has set modes since.
func restoreLineMode(fd int, lifted uint32) {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil || t.Lflag&lifted != 0 {
		return
	}
	t.Lflag |= lifted
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 4, 0 // VEOF, ^D, and VEOL have these places in line mode
	_ = unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

// echoOf is what a terminal echoes of plain text.
func echoOf(data []byte) []byte {
	return bytes.ReplaceAll(data, []byte("\n"), []byte("\r\n"))
}
