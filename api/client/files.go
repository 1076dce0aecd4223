package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
)

// Files are those of a sandbox or of a volume.
type Files struct {
	c    *Client
	path string
}

// Files are a sandbox's. Relative paths are below /workspace.
func (c *Client) Files(sandboxID string) Files { return Files{c, sandboxPath(sandboxID, "files")} }

// VolumeFiles are a volume's, whether or not a sandbox has it. Paths begin at its root.
func (c *Client) VolumeFiles(volumeID string) Files { return Files{c, volumePath(volumeID, "files")} }

// Read opens a file for reading; the caller closes it. The content is streamed: an
// error may also come while reading.
func (f Files) Read(ctx context.Context, path string) (io.ReadCloser, error) {
	resp, err := f.c.send(ctx, call{method: http.MethodGet, path: f.path, query: pathQuery(path)})
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// Write makes everything that content yields the file's content, at most 100 MiB.
// Parents are created.
func (f Files) Write(ctx context.Context, path string, content io.Reader) error {
	return exec(ctx, f.c, call{method: http.MethodPost, path: f.path, query: pathQuery(path), body: content})
}

// Mkdir makes a directory; with parents also those above it, and an existing one is
// no error.
func (f Files) Mkdir(ctx context.Context, path string, parents bool) error {
	q := pathQuery(path)
	q.Set("mkdir", "true")
	if parents {
		q.Set("recursive", "true")
	}
	return exec(ctx, f.c, call{method: http.MethodPost, path: f.path, query: q})
}

// Delete deletes a file, or a directory with all below it. What does not exist is
// deleted already.
func (f Files) Delete(ctx context.Context, path string) error {
	return exec(ctx, f.c, call{method: http.MethodDelete, path: f.path, query: pathQuery(path)})
}

// Stat describes a file.
func (f Files) Stat(ctx context.Context, path string) (*FileInfo, error) {
	return do[FileInfo](ctx, f.c, call{method: http.MethodGet, path: f.path + "/stat", query: pathQuery(path)})
}

// List lists a directory.
func (f Files) List(ctx context.Context, path string) (*FileList, error) {
	return do[FileList](ctx, f.c, call{method: http.MethodGet, path: f.path + "/list", query: pathQuery(path)})
}

// Move moves a file or a directory.
func (f Files) Move(ctx context.Context, source, destination string) error {
	body := MoveFileRequest{Source: source, Destination: destination}
	return exec(ctx, f.c, call{method: http.MethodPost, path: f.path + "/move", body: body})
}

// ReadFile is Read of a sandbox's files.
func (c *Client) ReadFile(ctx context.Context, sandboxID, path string) (io.ReadCloser, error) {
	return c.Files(sandboxID).Read(ctx, path)
}

// WriteFile is Write of a sandbox's files.
func (c *Client) WriteFile(ctx context.Context, sandboxID, path string, content io.Reader) error {
	return c.Files(sandboxID).Write(ctx, path, content)
}

// Mkdir is Mkdir of a sandbox's files.
func (c *Client) Mkdir(ctx context.Context, sandboxID, path string, parents bool) error {
	return c.Files(sandboxID).Mkdir(ctx, path, parents)
}

// DeleteFile is Delete of a sandbox's files.
func (c *Client) DeleteFile(ctx context.Context, sandboxID, path string) error {
	return c.Files(sandboxID).Delete(ctx, path)
}

// StatFile is Stat of a sandbox's files.
func (c *Client) StatFile(ctx context.Context, sandboxID, path string) (*FileInfo, error) {
	return c.Files(sandboxID).Stat(ctx, path)
}

// ListFiles is List of a sandbox's files.
func (c *Client) ListFiles(ctx context.Context, sandboxID, path string) (*FileList, error) {
	return c.Files(sandboxID).List(ctx, path)
}

// MoveFile is Move of a sandbox's files.
func (c *Client) MoveFile(ctx context.Context, sandboxID, source, destination string) error {
	return c.Files(sandboxID).Move(ctx, source, destination)
}

func pathQuery(path string) url.Values { return url.Values{"path": {path}} }
