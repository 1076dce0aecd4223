package tty

import (
	"errors"
	"io"
	"strings"
	"testing"
)

// Two questions read two lines of the same input.
func TestReadLine(t *testing.T) {
	t.Parallel()
	r := strings.NewReader("first\r\n\nlast")
	for _, want := range []string{"first", "", "last"} {
		if got, err := readLine(r); err != nil || got != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	if got, err := readLine(r); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %q, %v", got, err)
	}
}
