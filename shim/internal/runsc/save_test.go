package runsc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// received reads a call as the sentry does: files come beside the first byte.
func received(conn *net.UnixConn) (call struct {
	Method string
	Arg    map[string]any
}, files []*os.File, err error) {
	first, beside := make([]byte, 1), make([]byte, 1024)
	_, n, _, _, err := conn.ReadMsgUnix(first, beside)
	if err != nil {
		return call, nil, err
	}
	messages, err := unix.ParseSocketControlMessage(beside[:n])
	if err != nil {
		return call, nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return call, nil, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), fmt.Sprint(fd)))
		}
	}
	err = json.NewDecoder(io.MultiReader(strings.NewReader(string(first)), conn)).Decode(&call)
	return call, files, err
}

// The sentry writes an image into the files that it gets, in gVisor's order.
func TestSave(t *testing.T) {
	t.Parallel()
	type call struct {
		method string
		arg    map[string]any
	}
	calls := make(chan call, 2)
	r := sentryThat(t, func(conn *net.UnixConn) {
		c, files, err := received(conn)
		if err != nil {
			return // of one that could not make its files
		}
		for i, f := range files {
			_, werr := fmt.Fprint(f, i)
			err = errors.Join(err, werr, f.Close())
		}
		calls <- call{c.Method, c.Arg}
		fmt.Fprintf(conn, `{"success":%t,"err":"%v"}`, err == nil, err)
	})
	for _, test := range []struct {
		save   func(context.Context, string) error
		method string
		arg    string
		files  []string
	}{
		{r.Checkpoint, saveMethod, "map[Resume:true have_pages_file:true metadata:map[compression:none]]", imageFiles},
		{r.CheckpointFiles, saveFilesMethod, "map[paths:[map[path:/]]]", filesImageFiles},
	} {
		dir := t.TempDir()
		if err := test.save(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		if got := <-calls; got.method != test.method || fmt.Sprint(got.arg) != test.arg {
			t.Errorf("asked for %s %v", got.method, got.arg)
		}
		for i, name := range test.files {
			if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != fmt.Sprint(i) {
				t.Errorf("%s holds %q, %v", name, b, err)
			}
		}
		if err := test.save(t.Context(), dir); !errors.Is(err, fs.ErrExist) {
			t.Errorf("over an image: %v", err)
		}
	}
}

func TestSaveThatFails(t *testing.T) {
	t.Parallel()
	r := sentryThat(t, func(conn *net.UnixConn) {
		_, files, _ := received(conn)
		closeFiles(files)
		fmt.Fprint(conn, `{"success":false,"err":"no space left"}`)
	})
	if err := r.Checkpoint(t.Context(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("refused: %v", err)
	}
	if err := New(Config{Root: t.TempDir()}, "id", nil).Checkpoint(t.Context(), t.TempDir()); !errors.Is(err, ErrNotFound) {
		t.Errorf("of what is gone: %v", err)
	}
	r = sentryThat(t, func(conn *net.UnixConn) { _, files, _ := received(conn); closeFiles(files) })
	if err := r.Checkpoint(t.Context(), t.TempDir()); err == nil {
		t.Error("a sentry that dies has saved")
	}
}

// X41: who can't make its files asks for nothing.
func TestX41_SaveWithoutRoom(t *testing.T) {
	t.Parallel()
	r := sentryThat(t, func(conn *net.UnixConn) {
		if _, files, err := received(conn); err == nil {
			closeFiles(files)
			fmt.Fprint(conn, `{"success":true}`)
		}
	})
	if err := r.Checkpoint(t.Context(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// Who gives up is not held by a sentry that writes for long.
func TestSaveIsGivenUp(t *testing.T) {
	t.Parallel()
	asked, gone := make(chan struct{}), make(chan struct{})
	r := sentryThat(t, func(conn *net.UnixConn) {
		_, files, _ := received(conn)
		closeFiles(files)
		close(asked)
		_, _ = conn.Read(make([]byte, 1))
		close(gone)
	})
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	dir := t.TempDir()
	go func() { failed <- r.Checkpoint(ctx, dir) }()
	<-asked
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	<-gone
}
