// Package loop makes block devices of files.
//
// A device goes with its last user: whoever mounts it closes it afterwards, and the kernel
// takes it back with the mount. The package keeps nothing.
package loop

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Open makes a device of an open file, with flags of LO_FLAGS_* besides LO_FLAGS_AUTOCLEAR.
// The device's path is its name.
func Open(file *os.File, flags uint32) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("asking for a loop device: %w", err)
		}
		device, err := configure(fmt.Sprintf("/dev/loop%d", n), file, flags)
		if !errors.Is(err, unix.EBUSY) { // somebody else was quicker
			return device, err
		}
	}
}

func configure(name string, file *os.File, flags uint32) (*os.File, error) {
	mode := os.O_RDWR
	if flags&unix.LO_FLAGS_READ_ONLY != 0 {
		mode = os.O_RDONLY
	}
	device, err := os.OpenFile(name, mode, 0)
	if err != nil {
		return nil, err
	}
	info := unix.LoopInfo64{Flags: flags | unix.LO_FLAGS_AUTOCLEAR}
	copy(info.File_name[:len(info.File_name)-1], file.Name())
	if err := unix.IoctlLoopConfigure(int(device.Fd()), &unix.LoopConfig{Fd: uint32(file.Fd()), Info: info}); err != nil {
		_ = device.Close()
		return nil, fmt.Errorf("configuring %s: %w", name, err)
	}
	return device, nil
}
