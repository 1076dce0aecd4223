//go:build unix

package tty

import "os"

// obeyEscapes makes a terminal obey escape sequences, which all but those of Windows
// do anyway.
func obeyEscapes(*os.File) (undo func()) { return func() {} }
