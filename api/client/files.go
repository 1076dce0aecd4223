package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
)

// ReadFile opens a file for reading; the caller closes it. The content is
// streamed: an error may also come while reading.
func (c *Client) ReadFile(ctx context.Context, sandboxID, path string) (io.ReadCloser, error) {
	resp, err := c.send(ctx, call{method: http.MethodGet, path: filePath(sandboxID), query: pathQuery(path)})
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// WriteFile makes everything that content yields the file's content, at most
// 100 MiB. Parents are created.
func (c *Client) WriteFile(ctx context.Context, sandboxID, path string, content io.Reader) error {
	return exec(ctx, c, call{method: http.MethodPost, path: filePath(sandboxID), query: pathQuery(path), body: content})
}

// Mkdir makes a directory; with parents also those above it, and an existing
// one is no error.
func (c *Client) Mkdir(ctx context.Context, sandboxID, path string, parents bool) error {
	q := pathQuery(path)
	q.Set("mkdir", "true")
	if parents {
		q.Set("recursive", "true")
	}
	return exec(ctx, c, call{method: http.MethodPost, path: filePath(sandboxID), query: q})
}

// DeleteFile deletes a file, or a directory with all below it. What does not
// exist is deleted already.
func (c *Client) DeleteFile(ctx context.Context, sandboxID, path string) error {
	return exec(ctx, c, call{method: http.MethodDelete, path: filePath(sandboxID), query: pathQuery(path)})
}

// StatFile describes a file.
func (c *Client) StatFile(ctx context.Context, sandboxID, path string) (*FileInfo, error) {
	return do[FileInfo](ctx, c, call{method: http.MethodGet, path: filePath(sandboxID, "stat"), query: pathQuery(path)})
}

// ListFiles lists a directory.
func (c *Client) ListFiles(ctx context.Context, sandboxID, path string) (*FileList, error) {
	return do[FileList](ctx, c, call{method: http.MethodGet, path: filePath(sandboxID, "list"), query: pathQuery(path)})
}

// MoveFile moves a file or a directory.
func (c *Client) MoveFile(ctx context.Context, sandboxID, source, destination string) error {
	body := MoveFileRequest{Source: source, Destination: destination}
	return exec(ctx, c, call{method: http.MethodPost, path: filePath(sandboxID, "move"), body: body})
}

func filePath(sandboxID string, rest ...string) string {
	return sandboxPath(append([]string{sandboxID, "files"}, rest...)...)
}

func pathQuery(path string) url.Values { return url.Values{"path": {path}} }
