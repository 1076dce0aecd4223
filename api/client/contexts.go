package client

import (
	"context"
	"net/http"
	"strconv"
	"time"
)

// ListContexts lists a sandbox's contexts.
func (c *Client) ListContexts(ctx context.Context, sandboxID string) (*ContextList, error) {
	return do[ContextList](ctx, c, call{method: http.MethodGet, path: contextPath(sandboxID)})
}

// CreateContext starts a REPL or a command. With WaitUntilDone the answer holds
// the command's output. The server waits until ctx's deadline, 30 s without one,
// and then fails with "exec_timeout", and the command goes on: [Client.Attach]
// follows it.
func (c *Client) CreateContext(ctx context.Context, sandboxID string, req CreateContextRequest) (*ContextResponse, error) {
	in := call{method: http.MethodPost, path: contextPath(sandboxID), body: req}
	if value(req.WaitUntilDone) {
		in.header = patience(ctx)
	}
	return do[ContextResponse](ctx, c, in)
}

const (
	maxPatience = 24 * time.Hour // the server's limit
	// onTheWay is for an answer to arrive before the deadline that it is about.
	onTheWay = time.Second
)

// patience tells the server how long ctx lets it wait for a process. What is too
// short to tell about ends with ctx alone.
func patience(ctx context.Context) http.Header {
	deadline, ok := ctx.Deadline()
	left := min(time.Until(deadline)-onTheWay, maxPatience)
	if !ok || left <= 0 {
		return nil
	}
	return http.Header{"Request-Timeout": {strconv.FormatFloat(left.Seconds(), 'f', 3, 64)}}
}

// GetContext describes a context. What it prints comes by [Client.Attach].
func (c *Client) GetContext(ctx context.Context, sandboxID, contextID string) (*ContextResponse, error) {
	return do[ContextResponse](ctx, c, call{method: http.MethodGet, path: contextPath(sandboxID, contextID)})
}

// DeleteContext ends a context's processes and forgets it.
func (c *Client) DeleteContext(ctx context.Context, sandboxID, contextID string) error {
	return exec(ctx, c, call{method: http.MethodDelete, path: contextPath(sandboxID, contextID)})
}

// RestartContext starts a context's process anew under the same id.
func (c *Client) RestartContext(ctx context.Context, sandboxID, contextID string) (*ContextResponse, error) {
	return do[ContextResponse](ctx, c, call{method: http.MethodPost, path: contextPath(sandboxID, contextID, "restart")})
}

// ExecContext writes to a context's input, ended with a newline, and returns
// what it printed until its prompt came back. It waits as [Client.CreateContext]
// does.
func (c *Client) ExecContext(ctx context.Context, sandboxID, contextID, data string) (*ContextExecResponse, error) {
	body := ContextExecRequest{Data: data}
	return do[ContextExecResponse](ctx, c, call{method: http.MethodPost, path: contextPath(sandboxID, contextID, "exec"), body: body, header: patience(ctx)})
}

// WriteContextInput writes to a context's input, exactly as given.
func (c *Client) WriteContextInput(ctx context.Context, sandboxID, contextID, data string) error {
	body := ContextInputRequest{Data: data}
	return exec(ctx, c, call{method: http.MethodPost, path: contextPath(sandboxID, contextID, "input"), body: body})
}

// ResizeContext resizes a context's terminal.
func (c *Client) ResizeContext(ctx context.Context, sandboxID, contextID string, size PTYSize) error {
	return exec(ctx, c, call{method: http.MethodPost, path: contextPath(sandboxID, contextID, "resize"), body: size})
}

// SignalContext signals a context's process: "TERM", "SIGTERM" or "15".
func (c *Client) SignalContext(ctx context.Context, sandboxID, contextID, signal string) error {
	body := ContextSignalRequest{Signal: signal}
	return exec(ctx, c, call{method: http.MethodPost, path: contextPath(sandboxID, contextID, "signal"), body: body})
}

// ContextStats returns the resource usage of a context's process tree.
func (c *Client) ContextStats(ctx context.Context, sandboxID, contextID string) (*ContextStats, error) {
	return do[ContextStats](ctx, c, call{method: http.MethodGet, path: contextPath(sandboxID, contextID, "stats")})
}

func contextPath(sandboxID string, rest ...string) string {
	return sandboxPath(append([]string{sandboxID, "contexts"}, rest...)...)
}
