package runsc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// sentry answers calls on a control socket with what answer returns for a method.
func sentry(t *testing.T, answer func(method string) string) *Runsc {
	t.Helper()
	return sentryThat(t, func(conn *net.UnixConn) {
		for dec := json.NewDecoder(conn); ; {
			var call struct {
				Method string
				Arg    json.RawMessage
			}
			if dec.Decode(&call) != nil || string(call.Arg) != "null" {
				return
			}
			fmt.Fprint(conn, answer(call.Method))
		}
	})
}

// sentryThat serves each connection to a control socket.
func sentryThat(t *testing.T, serve func(*net.UnixConn)) *Runsc {
	t.Helper()
	root := filepath.Join(t.TempDir(), strings.Repeat("long", 20)) // for a path that no address has room for
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	short, err := os.MkdirTemp("", "c")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	l, err := net.Listen("unix", filepath.Join(short, "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	socket := filepath.Join(root, "runsc-id.sock")
	if err := os.Rename(filepath.Join(short, "s"), socket); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn.(*net.UnixConn))
			}()
		}
	}()
	r := New(Config{Root: root}, "id", nil)
	state := fmt.Sprintf(`{"id": "id", "sandbox": {"controlSocketPath": %q}}`, socket)
	if err := os.WriteFile(r.statePath(), []byte(state), 0o600); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestControl(t *testing.T) {
	t.Parallel()
	var asked []string
	r := sentry(t, func(method string) string {
		asked = append(asked, method)
		if len(asked) == 3 {
			return `{"success":false,"err":"no","result":null}`
		}
		return `{"success":true,"err":"","result":{}}`
	})
	if err := errors.Join(r.Pause(t.Context()), r.Resume(t.Context())); err != nil {
		t.Fatal(err)
	}
	if err := r.Pause(t.Context()); err == nil || !strings.Contains(err.Error(), "no") {
		t.Errorf("refused: %v", err)
	}
	if got := strings.Join(asked, " "); got != pauseMethod+" "+resumeMethod+" "+pauseMethod {
		t.Errorf("asked for %s", got)
	}
}

// X30: a sentry that answers too much, or nonsense, is refused.
func TestX30_GarbageFromASentry(t *testing.T) {
	t.Parallel()
	for _, garbage := range []string{`{"success":"yes"}`, "x", `{"err":"` + strings.Repeat("x", 2*maxAnswer) + `"}`} {
		r := sentry(t, func(string) string { return garbage })
		if err := r.Pause(t.Context()); err == nil {
			t.Errorf("taken for an answer: %.40s", garbage)
		}
	}
}

// A pause that comes after who asked for it has given up is undone.
func TestALatePauseIsUndone(t *testing.T) {
	t.Parallel()
	asked, undone, late := make(chan struct{}), make(chan struct{}), make(chan struct{})
	r := sentry(t, func(method string) string {
		if method == pauseMethod {
			close(asked)
			<-late
		} else {
			close(undone)
		}
		return `{"success":true}`
	})
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() { failed <- r.Pause(ctx) }()
	<-asked
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	close(late)
	<-undone
}

func (r *Runsc) resumption() *resumption {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.resuming
}

// A sentry that is resumed twice panics: who asks again waits for the first answer.
func TestALateResumeIsNotIssuedAgain(t *testing.T) {
	t.Parallel()
	asked, late := make(chan struct{}, 3), make(chan struct{})
	r := sentry(t, func(string) string {
		asked <- struct{}{}
		<-late
		return `{"success":true}`
	})
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() { failed <- r.Resume(ctx) }()
	<-asked
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	issued := r.resumption()
	if err := r.Resume(ctx); !errors.Is(err, context.Canceled) || r.resumption() != issued {
		t.Errorf("asked again: %v", err)
	}
	close(late)
	<-issued.done // while nobody waits for it
	if err := r.Resume(t.Context()); err != nil || len(asked) != 0 {
		t.Errorf("answered late: %v, resumed %d times more", err, len(asked))
	}
	if err := r.Resume(t.Context()); err != nil || len(asked) != 1 {
		t.Errorf("of the next pause: %v, asked %d times", err, len(asked))
	}
}

func TestAResumeThatFailedIsNotIssuedAgain(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{}, 3)
	r := sentry(t, func(string) string {
		asked <- struct{}{}
		return `{"success":false,"err":"no"}`
	})
	state, err := os.ReadFile(r.statePath())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(r.statePath()); err != nil {
		t.Fatal(err)
	}
	if err := r.Resume(t.Context()); !errors.Is(err, ErrNotFound) {
		t.Errorf("without a state: %v", err)
	}
	if err := os.WriteFile(r.statePath(), state, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.Resume(t.Context()); err == nil || !strings.Contains(err.Error(), "no") {
			t.Errorf("refused: %v", err)
		}
	}
	if len(asked) != 1 {
		t.Errorf("asked %d times", len(asked))
	}
}

func TestControlOfWhatIsGone(t *testing.T) {
	t.Parallel()
	r := New(Config{Root: t.TempDir()}, "id", nil)
	if err := r.Pause(t.Context()); !errors.Is(err, ErrNotFound) {
		t.Errorf("without a state: %v", err)
	}
	gone := fmt.Sprintf(`{"sandbox": {"controlSocketPath": %q}}`, filepath.Join(r.cfg.Root, "gone"))
	for state, found := range map[string]bool{gone: false, `{"sandbox": {}}`: true, "x": true} {
		if err := os.WriteFile(r.statePath(), []byte(state), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := r.Pause(t.Context()); err == nil || errors.Is(err, ErrNotFound) == found {
			t.Errorf("%s: %v", state, err)
		}
	}
}
