package client

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

// maxSearchLine bounds a line of a search's answer.
const maxSearchLine = 1 << 20

// ReadArchive opens a file or a directory as a tar stream; the caller closes it. An
// error may also come while reading: what was read before is not the whole of it.
func (f Files) ReadArchive(ctx context.Context, path string) (io.ReadCloser, error) {
	resp, err := f.c.send(ctx, call{method: http.MethodGet, path: f.path + "/archive", query: pathQuery(path)})
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// WriteArchive unpacks a tar archive below path, a directory that need not exist.
func (f Files) WriteArchive(ctx context.Context, path string, archive io.Reader) (*FileArchiveResult, error) {
	header := http.Header{"Content-Type": {"application/x-tar"}}
	return do[FileArchiveResult](ctx, f.c, call{method: http.MethodPut, path: f.path + "/archive", query: pathQuery(path), header: header, body: archive})
}

// ReadArchive is ReadArchive of a sandbox's files.
func (c *Client) ReadArchive(ctx context.Context, sandboxID, path string) (io.ReadCloser, error) {
	return c.Files(sandboxID).ReadArchive(ctx, path)
}

// WriteArchive is WriteArchive of a sandbox's files.
func (c *Client) WriteArchive(ctx context.Context, sandboxID, path string, archive io.Reader) (*FileArchiveResult, error) {
	return c.Files(sandboxID).WriteArchive(ctx, path, archive)
}

// SearchFiles is Search of a sandbox's files.
func (c *Client) SearchFiles(ctx context.Context, sandboxID string, req FileSearchRequest, found func(FileSearchMatch) error) (*FileSearchSummary, error) {
	return c.Files(sandboxID).Search(ctx, req, found)
}

// Search calls found for every match, as they come, until it fails. Without an error the
// search has come to its end, of which the summary tells.
func (f Files) Search(ctx context.Context, req FileSearchRequest, found func(FileSearchMatch) error) (*FileSearchSummary, error) {
	resp, err := f.c.send(ctx, call{method: http.MethodPost, path: f.path + "/search", body: req})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxSearchLine)
	for lines.Scan() {
		var line FileSearchLine
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return nil, fmt.Errorf("searching: line of the server: %w", err)
		}
		if line.Summary != nil {
			return line.Summary, nil
		}
		if line.Match == nil {
			continue // newer than this client
		}
		if err := found(*line.Match); err != nil {
			return nil, err
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("searching: %w", err)
	}
	return nil, fmt.Errorf("searching: %w", io.ErrUnexpectedEOF)
}
