package tty

import (
	"os"

	"golang.org/x/sys/windows"
)

// obeyEscapes makes a console obey escape sequences until undo is called.
func obeyEscapes(f *os.File) (undo func()) {
	console := windows.Handle(f.Fd())
	var mode uint32
	if windows.GetConsoleMode(console, &mode) != nil {
		return func() {}
	}
	windows.SetConsoleMode(console, mode|windows.ENABLE_VIRTUAL_TERMINAL_PROCESSING)
	return func() { windows.SetConsoleMode(console, mode) }
}
