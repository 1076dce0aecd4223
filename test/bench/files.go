package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

const (
	fileBytes  = 64 << 20
	fileRounds = 10
)

// files measures the way of a large file into a sandbox and out of it, beside a
// plain file server on loopback.
func (c *client) files(ctx context.Context, template string) ([]row, error) {
	id, _, err := c.claim(ctx, template)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.remove(context.WithoutCancel(ctx), id) }()
	file := c.base + sandboxes + "/" + id + "/files?" + url.Values{"path": {"large"}}.Encode()
	ours, err := c.throughput(ctx, http.MethodPost, file, "")
	if err != nil {
		return nil, err
	}
	plain, stop, err := plainFileServer()
	if err != nil {
		return nil, err
	}
	beside, err := c.throughput(ctx, http.MethodPut, plain, "beside: plain HTTP server, ")
	return append(ours, beside...), errors.Join(err, stop())
}

// throughput writes and reads one file by turns.
func (c *client) throughput(ctx context.Context, method, file, prefix string) ([]row, error) {
	content := make([]byte, fileBytes)
	rand.Read(content) // never fails
	var writes, reads []float64
	for range fileRounds {
		w, err := c.transfer(ctx, method, file, content)
		if err != nil {
			return nil, err
		}
		r, err := c.transfer(ctx, http.MethodGet, file, nil)
		if err != nil {
			return nil, err
		}
		writes, reads = append(writes, w), append(reads, r)
	}
	load := fmt.Sprintf("1 client, %d MiB", fileBytes>>20)
	return []row{
		{name: prefix + "file write", load: load, unit: "MB/s", samples: writes},
		{name: prefix + "file read", load: load, unit: "MB/s", samples: reads},
	}, nil
}

// transfer is one request with or for the whole file, and its MB/s.
func (c *client) transfer(ctx context.Context, method, file string, content []byte) (float64, error) {
	var body io.Reader
	if content != nil {
		body = bytes.NewReader(content)
	}
	req, err := http.NewRequestWithContext(ctx, method, file, body)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	begin := time.Now()
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	took := time.Since(begin)
	if err != nil {
		return 0, err
	}
	if resp.StatusCode != http.StatusOK || content == nil && n != fileBytes {
		return 0, fmt.Errorf("%s %s: status %d, %d bytes", method, file, resp.StatusCode, n)
	}
	return fileBytes / 1e6 / took.Seconds(), nil
}

// plainFileServer serves one file from a directory of this machine: written aside
// and renamed, as ours is.
func plainFileServer() (file string, stop func() error, err error) {
	dir, err := os.MkdirTemp("", "s0bench-")
	if err != nil {
		return "", nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /", http.FileServer(http.Dir(dir)))
	mux.HandleFunc("PUT /large", func(w http.ResponseWriter, r *http.Request) {
		if err := store(filepath.Join(dir, "large"), r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	srv := &http.Server{Handler: mux}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	return "http://" + l.Addr().String() + "/large", func() error {
		err := srv.Close()
		<-done
		return errors.Join(err, os.RemoveAll(dir))
	}, nil
}

func store(path string, content io.Reader) error {
	f, err := os.Create(path + ".tmp")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}
