package client

import (
	"context"
	"net/http"
)

// ListContexts lists a sandbox's contexts.
func (c *Client) ListContexts(ctx context.Context, sandboxID string) (*ContextList, error) {
	return do[ContextList](ctx, c, call{method: http.MethodGet, path: contextPath(sandboxID)})
}

// CreateContext starts a REPL or a command. With WaitUntilDone the answer holds
// the command's output; a command that outlives the server's patience (30 s)
// fails with "exec_timeout": follow longer ones with [Client.Attach].
func (c *Client) CreateContext(ctx context.Context, sandboxID string, req CreateContextRequest) (*ContextResponse, error) {
	return do[ContextResponse](ctx, c, call{method: http.MethodPost, path: contextPath(sandboxID), body: req})
}

// GetContext returns a context with what it printed so far.
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
// what it printed until its prompt came back.
func (c *Client) ExecContext(ctx context.Context, sandboxID, contextID, data string) (*ContextExecResponse, error) {
	body := ContextExecRequest{Data: data}
	return do[ContextExecResponse](ctx, c, call{method: http.MethodPost, path: contextPath(sandboxID, contextID, "exec"), body: body})
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
