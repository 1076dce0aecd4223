package noded

import (
	"context"
	"io"
	"net/http"
	"net/url"

	"s0.run/internal/procapi"
)

func at(path string) url.Values { return url.Values{"path": {path}} }

// MakeDir makes a directory inside a sandbox, with those above it.
func (c *Client) MakeDir(ctx context.Context, sb Sandbox, path string) error {
	query := url.Values{"path": {path}, "mkdir": {"true"}, "recursive": {"true"}}
	return c.Call(ctx, sb, Request{Method: http.MethodPost, Path: procapi.PathFiles, Query: query}, nil)
}

// Stat describes a path inside a sandbox; a link is not followed.
func (c *Client) Stat(ctx context.Context, sb Sandbox, path string) (procapi.FileInfo, error) {
	var info procapi.FileInfo
	err := c.Call(ctx, sb, Request{Method: http.MethodGet, Path: procapi.PathFiles + "/stat", Query: at(path)}, &info)
	return info, err
}

// List describes what is in a directory inside a sandbox.
func (c *Client) List(ctx context.Context, sb Sandbox, path string) ([]procapi.FileInfo, error) {
	var list procapi.FileList
	err := c.Call(ctx, sb, Request{Method: http.MethodGet, Path: procapi.PathFiles + "/list", Query: at(path)}, &list)
	return list.Entries, err
}

// Remove removes a path inside a sandbox and all below it. What is not there is removed.
func (c *Client) Remove(ctx context.Context, sb Sandbox, path string) error {
	return c.Call(ctx, sb, Request{Method: http.MethodDelete, Path: procapi.PathFiles, Query: at(path)}, nil)
}

// Unpack unpacks a tar archive into a directory inside a sandbox, which is made if there
// is none. Each of its files and links replaces what had its name at one moment.
func (c *Client) Unpack(ctx context.Context, sb Sandbox, path string, archive io.Reader) error {
	return c.Call(ctx, sb, Request{
		Method: http.MethodPut, Path: procapi.PathFiles + "/archive", Query: at(path), Header: map[string]string{"Content-Type": procapi.ArchiveType}, Body: archive,
	}, nil)
}
