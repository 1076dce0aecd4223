package e2e_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"s0.run/api/client"
	"s0.run/internal/s0test"
)

// patience bounds one call on a loaded machine.
const patience = 90 * time.Second

// A user is a client of a stack whose calls must succeed.
type user struct {
	t     *testing.T
	stack *s0test.Stack
	c     *client.Client
}

func newUser(t *testing.T, s *s0test.Stack) *user {
	t.Helper()
	return &user{t: t, stack: s, c: s.Client()}
}

func (u *user) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	u.t.Cleanup(cancel)
	return ctx
}

// refused makes a call whose answer comes before its body has gone. The server closes half
// a second after it (net/http's rstAvoidanceDelay), and a client that was not scheduled in
// that time may see its write fail first: it asks again.
func refused(call func() (*http.Response, error)) (resp *http.Response, err error) {
	for range 5 {
		resp, err = call()
		if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
			break
		}
	}
	return resp, err
}

func must[T any](u *user, what string, v T, err error) T {
	u.t.Helper()
	if err != nil {
		u.t.Fatalf("%s: %v", what, err)
	}
	return v
}

// claim takes a sandbox of the template `default`, which is deleted with the test.
func (u *user) claim() (id string) {
	u.t.Helper()
	return u.claimed(client.ClaimRequest{Template: "default"})
}

// claimed takes a sandbox, which is deleted with the test. Told to wait, as beside a
// restart of containerd or while an image is on its way, it does; and so it does for a
// volume that a sandbox has which is not yet known to be dead.
func (u *user) claimed(req client.ClaimRequest) (id string) {
	u.t.Helper()
	u.stack.Eventually("a claim of "+req.Template, func() error {
		sb, err := u.c.CreateSandbox(u.ctx(), req)
		if err == nil {
			id = sb.SandboxID
		} else if held := len(req.Mounts) > 0 && isStatus(err, 409); !held && !isStatus(err, 503) && !isStatus(err, 429) {
			u.t.Fatalf("claiming a sandbox of %s: %v", req.Template, err)
		}
		return err
	})
	u.t.Cleanup(func() {
		if err := u.c.DeleteSandbox(u.ctx(), id); err != nil && !isStatus(err, 404) {
			u.t.Errorf("deleting %s: %v", id, err)
		}
	})
	return id
}

// awaitAnswer waits until a sandbox can be asked again after a restart.
func (u *user) awaitAnswer(id string) {
	u.t.Helper()
	u.stack.Eventually(id+" to answer", func() error {
		_, err := u.c.ListContexts(u.ctx(), id)
		return err
	})
}

func (u *user) remove(id string) {
	u.t.Helper()
	if err := u.c.DeleteSandbox(u.ctx(), id); err != nil {
		u.t.Fatalf("deleting %s: %v", id, err)
	}
}

func (u *user) python(id string) (contextID string) {
	u.t.Helper()
	alias := "python"
	repl, err := u.c.CreateContext(u.ctx(), id, client.CreateContextRequest{Type: client.ContextTypeREPL, REPL: &client.REPLRequest{Alias: &alias}})
	return must(u, "starting Python in "+id, repl, err).ID
}

// exec runs a line in a REPL and returns what it printed.
func (u *user) exec(id, contextID, line string) string {
	u.t.Helper()
	res, err := u.c.ExecContext(u.ctx(), id, contextID, line)
	return printed(must(u, "running "+line+" in "+id, res, err).OutputRaw, line)
}

// printed takes off the echo of a REPL's terminal.
func printed(output, line string) string {
	return strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(output), line))
}

func (u *user) wantExec(id, contextID, line, want string) {
	u.t.Helper()
	if got := u.exec(id, contextID, line); got != want {
		u.t.Errorf("%s: %q printed %q, want %q", id, line, got, want)
	}
}

// run runs a command to its end and returns what it left.
func (u *user) run(id string, argv ...string) *client.ContextResponse {
	u.t.Helper()
	wait := true
	res, err := u.c.CreateContext(u.ctx(), id, client.CreateContextRequest{
		Type: client.ContextTypeCMD, CMD: &client.CMDRequest{Command: argv}, WaitUntilDone: &wait,
	})
	return must(u, "running "+strings.Join(argv, " "), res, err)
}

func (u *user) read(id, path string) string {
	u.t.Helper()
	r, err := u.c.ReadFile(u.ctx(), id, path)
	must(u, "reading "+path, r, err)
	defer r.Close()
	b, err := io.ReadAll(r)
	return string(must(u, "reading "+path, b, err))
}

func (u *user) write(id, path, content string) {
	u.t.Helper()
	if err := u.c.WriteFile(u.ctx(), id, path, strings.NewReader(content)); err != nil {
		u.t.Fatalf("writing %s: %v", path, err)
	}
}
