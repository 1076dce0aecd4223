package kubelet

import (
	"context"
	"fmt"
	"io"

	"github.com/google/uuid"
	"github.com/virtual-kubelet/virtual-kubelet/errdefs"
	"github.com/virtual-kubelet/virtual-kubelet/node/api"
	utilexec "k8s.io/utils/exec"

	"s0.run/internal/procapi"
	"s0.run/vk-provider/internal/noded"
)

// exec runs a command in a container's sandbox, started by procd like all others.
func (s *Server) exec(ctx context.Context, namespace, pod, container string, cmd []string, attach api.AttachIO) error {
	target, err := s.cfg.Pods.Find(namespace, pod, container)
	if err != nil {
		return errdefs.NotFound(err.Error())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	request := procapi.CreateContext{Type: "cmd", CMD: &procapi.CMDRequest{Command: cmd}, EnvVars: target.Env, Cwd: target.Dir}
	streams := noded.Streams{Stdin: attach.Stdin(), Stdout: attach.Stdout(), Stderr: attach.Stderr()}
	if attach.TTY() {
		sizes := make(chan procapi.PTYSize)
		streams.Resize = sizes
		request.PTYSize = &procapi.PTYSize{Rows: 24, Cols: 80}
		go copySizes(ctx, attach.Resize(), sizes)
	}
	s.cfg.Log.Info("exec", "pod", namespace+"/"+pod, "container", container, "sandbox", target.Sandbox.ID, "tty", attach.TTY())
	exit, err := s.cfg.Node.Exec(ctx, target.Sandbox, request, streams)
	if err != nil {
		return err
	}
	return exitError(exit)
}

// exitError is what tells a client another exit code than 0.
func exitError(exit procapi.Exit) error {
	if exit.ExitCode == 0 {
		return nil
	}
	return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", exit.ExitCode), Code: exit.ExitCode}
}

func copySizes(ctx context.Context, from <-chan api.TermSize, to chan<- procapi.PTYSize) {
	defer close(to)
	for {
		select {
		case <-ctx.Done():
			return
		case size, ok := <-from:
			if !ok {
				return
			}
			select {
			case to <- procapi.PTYSize{Rows: size.Height, Cols: size.Width}:
			case <-ctx.Done():
				return
			}
		}
	}
}

// attach connects a client with what a container runs, from now on.
func (s *Server) attach(ctx context.Context, namespace, pod, container string, io api.AttachIO) error {
	target, err := s.cfg.Pods.Find(namespace, pod, container)
	if err != nil {
		return errdefs.NotFound(err.Error())
	}
	if target.Session == "" {
		return errdefs.InvalidInput("a sandbox of a pool has no process to attach to: exec a command")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	now, err := s.cfg.Node.Session(ctx, target.Sandbox, target.Session)
	if err != nil {
		return err
	}
	if stdin := io.Stdin(); stdin != nil {
		go s.copyInput(ctx, target.Sandbox, target.Session, stdin) // ends with the client's connection
	}
	if resize := io.Resize(); io.TTY() && resize != nil {
		go s.followSizes(ctx, target.Sandbox, target.Session, resize)
	}
	return s.follow(ctx, target.Sandbox, target.Session, now.Cursor.Latest, io)
}

// follow passes on what a session prints until its attempt ends or the client goes.
func (s *Server) follow(ctx context.Context, sb noded.Sandbox, session string, after uint64, to api.AttachIO) error {
	var failed, exit error
	err := s.cfg.Node.FollowSession(ctx, sb, session, after, func(e procapi.SessionEvent) bool {
		switch e.Type {
		case procapi.SessionOutput:
			w := to.Stdout()
			if e.Stream == "stderr" {
				w = to.Stderr()
			}
			if w != nil {
				_, failed = w.Write(e.Data)
			}
		case procapi.AttemptExited:
			if e.ExitCode != nil {
				exit = exitError(procapi.Exit{ExitCode: *e.ExitCode})
			}
			return false
		}
		return failed == nil
	})
	switch {
	case failed != nil:
		return failed
	case exit != nil:
		return exit
	}
	return err
}

// copyInput gives a session what a client types. Each piece has an id, so that it is
// taken once.
func (s *Server) copyInput(ctx context.Context, sb noded.Sandbox, session string, stdin io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := stdin.Read(buf)
		in := procapi.SessionInput{InputID: uuid.NewString(), Data: buf[:n], EOF: err == io.EOF}
		if n > 0 || in.EOF {
			if err := s.cfg.Node.SessionInput(ctx, sb, session, in); err != nil {
				s.cfg.Log.Debug("input was not taken", "sandbox", sb.ID, "session", session, "error", err)
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (s *Server) followSizes(ctx context.Context, sb noded.Sandbox, session string, sizes <-chan api.TermSize) {
	for {
		select {
		case <-ctx.Done():
			return
		case size, ok := <-sizes:
			if !ok {
				return
			}
			if err := s.cfg.Node.ResizeSession(ctx, sb, session, procapi.PTYSize{Rows: size.Height, Cols: size.Width}); err != nil {
				s.cfg.Log.Debug("a terminal was not resized", "sandbox", sb.ID, "session", session, "error", err)
			}
		}
	}
}

func (s *Server) forward(ctx context.Context, namespace, pod string, port int32, stream io.ReadWriteCloser) error {
	target, err := s.cfg.Pods.Find(namespace, pod, "")
	if err != nil {
		return errdefs.NotFound(err.Error())
	}
	return s.cfg.Node.Forward(ctx, target.Sandbox, port, stream)
}
