package fault_test

import (
	"fmt"
	"io"
	"strings"

	"s0.run/api/client"
)

// eventuallyDone repeats a request while its answer means that this can help.
func (s *stack) eventuallyDone(what string, request func() error) {
	s.Helper()
	s.eventually(what, func() error {
		err := request()
		if err != nil && !again(err) {
			s.Fatalf("%s: %v", what, err)
		}
		return err
	})
}

// claim takes a sandbox, once however often it has to be asked for.
func (s *stack) claim(key, template string) (id string) {
	s.Helper()
	s.eventuallyDone("a claim", func() error {
		sb, err := s.c.CreateSandboxOnce(s.ctx(), key, client.ClaimRequest{Template: template})
		if err == nil {
			id = sb.SandboxID
		}
		return err
	})
	return id
}

func (s *stack) pause(id string) {
	s.Helper()
	s.eventuallyDone("a pause", func() error { _, err := s.c.PauseSandbox(s.ctx(), id); return err })
}

func (s *stack) resume(id string) {
	s.Helper()
	s.eventuallyDone("a resume", func() error { _, err := s.c.ResumeSandbox(s.ctx(), id); return err })
}

// remove deletes a sandbox; one that is gone is what was wanted.
func (s *stack) remove(id string) {
	s.Helper()
	s.eventuallyDone("a delete", func() error {
		err := s.c.DeleteSandbox(s.ctx(), id)
		if isStatus(err, 404) {
			return nil
		}
		return err
	})
}

func isStatus(err error, status int) bool {
	answer, ok := err.(*client.APIError)
	return ok && answer.StatusCode == status
}

// run runs a command to its end.
func (s *stack) run(id string, argv ...string) (*client.ContextResponse, error) {
	wait := true
	return s.c.CreateContext(s.ctx(), id, client.CreateContextRequest{
		Type: client.ContextTypeCMD, CMD: &client.CMDRequest{Command: argv}, WaitUntilDone: &wait,
	})
}

// mustServe has a sandbox run something.
func (s *stack) mustServe(id string) {
	s.Helper()
	s.eventuallyDone(id+" to serve", func() error {
		res, err := s.run(id, "/bin/probe", "echo", "well")
		if err == nil && (res.ExitCode == nil || *res.ExitCode != 0 || strings.TrimSpace(*res.Stdout) != "[well]") {
			s.Fatalf("%s: %+v", id, *res)
		}
		return err
	})
}

// A tenant's traces in a sandbox: what has to be there as long as it is.
type traces struct {
	context string // a process that never ends by itself
	content string // of a file
}

const tracesFile = "/workspace/kept"

// leaveTraces puts something into a sandbox's files and memory.
func (s *stack) leaveTraces(id string) traces {
	s.Helper()
	tr := traces{content: "of " + id}
	s.eventuallyDone("a write", func() error { return s.c.WriteFile(s.ctx(), id, tracesFile, strings.NewReader(tr.content)) })
	s.eventuallyDone("a process", func() error {
		p, err := s.c.CreateContext(s.ctx(), id, client.CreateContextRequest{Type: client.ContextTypeCMD, CMD: &client.CMDRequest{Command: []string{"/bin/probe", "sleep"}}})
		if err == nil {
			tr.context = p.ID
		}
		return err
	})
	return tr
}

// wantTraces: R7 for files, and the same processes as before.
func (s *stack) wantTraces(id string, tr traces) {
	s.Helper()
	s.wantFile(id, tr)
	s.eventuallyDone("a look at a process", func() error {
		p, err := s.c.GetContext(s.ctx(), id, tr.context)
		if err == nil && !p.Running {
			err = fmt.Errorf("its process has ended: %+v", *p)
		}
		return err
	})
}

func (s *stack) wantFile(id string, tr traces) {
	s.Helper()
	s.eventuallyDone("a read", func() error {
		got, err := s.read(id, tracesFile)
		if err == nil && got != tr.content {
			s.Fatalf("R7: %s holds %q, want %q", id, got, tr.content)
		}
		return err
	})
}

func (s *stack) read(id, path string) (string, error) {
	r, err := s.c.ReadFile(s.ctx(), id, path)
	if err != nil {
		return "", err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	return string(b), err
}
