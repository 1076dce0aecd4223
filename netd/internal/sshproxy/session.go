package sshproxy

import (
	"context"
	"io"
	"regexp"
	"sync"

	"golang.org/x/crypto/ssh"
)

// What a session's requests carry (RFC 4254, sections 6.4, 6.5 and 6.10).
type (
	envRequest  struct{ Name, Value string }
	execRequest struct{ Command string }
	exitStatus  struct{ Status uint32 }
)

const (
	gitProtocol = "GIT_PROTOCOL"
	// refused is the exit status of what was not run, ssh's own for its errors.
	refused = 255
)

// protocols are the values of GIT_PROTOCOL that git knows.
var protocols = regexp.MustCompile(`^version=[0-9](:[a-z0-9=-]{1,32}){0,4}$`)

// session is one channel of the sandbox's, on which one command runs.
func (p *proxy) session(ctx context.Context, c ssh.NewChannel) error {
	down, requests, err := c.Accept()
	if err != nil {
		return nil // it has hung up
	}
	defer down.Close()
	protocol := ""
	for r := range requests {
		switch r.Type {
		case "env":
			var env envRequest
			ok := ssh.Unmarshal(r.Payload, &env) == nil && env.Name == gitProtocol && protocols.MatchString(env.Value)
			if ok {
				protocol = env.Value
			}
			_ = r.Reply(ok, nil)
		case "exec":
			go ssh.DiscardRequests(requests) // ends with the channel
			var exec execRequest
			if err := ssh.Unmarshal(r.Payload, &exec); err != nil {
				_ = r.Reply(false, nil)
				return nil
			}
			_ = r.Reply(true, nil)
			return p.run(ctx, down, exec.Command, protocol)
		default: // a terminal, a shell, a subsystem, forwarding of an agent
			_ = r.Reply(false, nil)
		}
	}
	return nil
}

// run has upstream run a command, and says why when it does not.
func (p *proxy) run(ctx context.Context, down ssh.Channel, text, protocol string) error {
	command, err := ParseCommand(text)
	if err == nil {
		p.ran(command)
		err = p.relay(ctx, down, command, protocol)
	}
	if err != nil {
		_, _ = io.WriteString(down.Stderr(), line(tellable(err)))
		_, _ = down.SendRequest("exit-status", false, ssh.Marshal(exitStatus{refused}))
	}
	return err
}

// relay passes a command's streams and its end. An error says that nothing ran.
func (p *proxy) relay(ctx context.Context, down ssh.Channel, command Command, protocol string) error {
	conn, err := p.up()
	if err != nil {
		return err
	}
	up, requests, err := conn.OpenChannel("session", nil)
	if err != nil {
		return err
	}
	defer up.Close()
	if protocol != "" {
		if _, err := up.SendRequest("env", false, ssh.Marshal(envRequest{gitProtocol, protocol})); err != nil {
			return err
		}
	}
	ok, err := up.SendRequest("exec", true, ssh.Marshal(execRequest{command.String()}))
	if err != nil || !ok {
		go ssh.DiscardRequests(requests) // ends with the channel
		return errRefusedUpstream
	}
	defer context.AfterFunc(ctx, func() { up.Close() })()
	go func() { // ends with the sandbox's channel, which is closed behind us
		_, _ = io.Copy(up, down)
		_ = up.CloseWrite()
	}()
	var out sync.WaitGroup
	out.Go(func() {
		_, _ = io.Copy(down, up)
		_ = down.CloseWrite()
	})
	out.Go(func() { _, _ = io.Copy(down.Stderr(), up.Stderr()) })
	var ends []*ssh.Request
	for r := range requests { // until upstream closes the channel
		if (r.Type == "exit-status" || r.Type == "exit-signal") && len(ends) == 0 {
			ends = append(ends, r)
		}
		_ = r.Reply(false, nil)
	}
	out.Wait() // the end comes behind the output
	for _, r := range ends {
		_, _ = down.SendRequest(r.Type, false, r.Payload)
	}
	return nil
}
