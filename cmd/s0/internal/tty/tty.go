// Package tty is what s0 does with the user's terminal: ask questions, hide
// passwords, hand it over to a program in a sandbox and follow its size. It
// always gives a terminal back in the state in which it was.
package tty

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/term"
)

// Is reports whether f is a terminal.
func Is(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// CanRedraw reports whether f is a terminal whose lines can be drawn over.
func CanRedraw(f *os.File) bool {
	if !Is(f) || os.Getenv("TERM") == "dumb" {
		return false
	}
	obeyEscapes(f)
	return true
}

// Width is the terminal's width in cells, 0 if f is none.
func Width(f *os.File) int {
	cols, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return cols
}

// Ask asks on stderr and reads a line from stdin.
func Ask(question string) (string, error) {
	if Is(os.Stdin) {
		fmt.Fprint(os.Stderr, question)
	}
	return readLine(os.Stdin)
}

// AskSecret is Ask without an echo. Where stdin is no terminal it reads a line.
func AskSecret(question string) (string, error) {
	if !Is(os.Stdin) {
		return readLine(os.Stdin)
	}
	fmt.Fprint(os.Stderr, question)
	secret, err := term.ReadPassword(int(os.Stdin.Fd()))
	fmt.Fprintln(os.Stderr)
	return string(secret), err
}

// readLine reads no further than the line's end: what follows is for the next
// question.
func readLine(r io.Reader) (string, error) {
	var line strings.Builder
	one := make([]byte, 1)
	for line.Len() < bufio.MaxScanTokenSize {
		n, err := r.Read(one)
		if n == 1 && one[0] == '\n' {
			break
		}
		line.Write(one[:n])
		if errors.Is(err, io.EOF) && line.Len() > 0 {
			break
		}
		if err != nil {
			return "", err
		}
	}
	return strings.TrimSuffix(line.String(), "\r"), nil
}

// Size is a terminal's size in cells.
type Size struct{ Cols, Rows uint16 }

// GetSize is f's size, the usual one if f is no terminal.
func GetSize(f *os.File) Size {
	cols, rows, err := term.GetSize(int(f.Fd()))
	if err != nil || cols <= 0 || rows <= 0 {
		return Size{Rows: 24, Cols: 80}
	}
	return Size{Rows: uint16(rows), Cols: uint16(cols)}
}

// Raw makes f pass every key on as it is, and what is printed too. The returned func
// undoes it, and may be called again; where f is no terminal nothing is done.
func Raw(f *os.File) (restore func(), err error) {
	if !Is(f) {
		return func() {}, nil
	}
	state, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("taking over the terminal: %w", err)
	}
	undoEscapes := obeyEscapes(os.Stdout)
	return sync.OnceFunc(func() {
		undoEscapes()
		term.Restore(int(f.Fd()), state)
	}), nil
}

// calm ends what programs that draw on a whole screen begin: another screen, no
// cursor, reports of the mouse and of pasting, colours.
const calm = "\x1b[?1047l\x1b[?25h\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[0m"

// Reset calms the terminal f behind a program that could not tidy up itself.
func Reset(f *os.File) {
	if CanRedraw(f) {
		io.WriteString(f, calm)
	}
}
