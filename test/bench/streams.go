package bench

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"s0.run/internal/s0test"
)

const (
	streamBytes = 256 << 20 // of lines of text, in a file of the sandbox
	streamFile  = "/workspace/stream.txt"
	streamRuns  = 5

	// readers of one context, each of which gets sharedBytes.
	readers     = 1000
	sharedBytes = 1 << 20
)

// makeLines writes streamFile.
var makeLines = fmt.Sprintf("yes '%s' | head -c %d > %s", strings.Repeat("0123456789", 7)+"012345678", streamBytes, streamFile)

// streams measures what a process prints on its way to WebSockets on loopback, in
// a sandbox of two processors.
func (c *client) streams(ctx context.Context, stack *s0test.Stack, template string, n int) ([]row, error) {
	var sb struct {
		ID string `json:"sandbox_id"`
	}
	body := map[string]any{"template": template, "config": map[string]any{"resources": map[string]any{"memory": "8Gi"}}}
	if _, err := c.must(ctx, http.MethodPost, sandboxes, body, &sb); err != nil {
		return nil, err
	}
	defer func() { _ = c.remove(context.WithoutCancel(ctx), sb.ID) }()
	if _, err := c.command(ctx, sb.ID, true, "sh", "-c", makeLines); err != nil {
		return nil, err
	}
	one, err := c.oneReader(ctx, sb.ID)
	if err != nil {
		return nil, err
	}
	beside, err := runscCat(ctx, stack, sb.ID)
	if err != nil {
		return nil, err
	}
	many, err := c.manyReaders(ctx, stack.RunDir, sb.ID)
	if err != nil {
		return nil, err
	}
	overhead, err := c.overhead(ctx, stack, sb.ID, n)
	return append(append([]row{one, beside}, many...), overhead...), err
}

// command starts a command and returns its context.
func (c *client) command(ctx context.Context, sandbox string, wait bool, argv ...string) (out struct{ ID, Stdout string }, err error) {
	_, err = c.must(ctx, http.MethodPost, sandboxes+"/"+sandbox+"/contexts", map[string]any{
		"type": "cmd", "cmd": map[string]any{"command": argv}, "wait_until_done": wait}, &out)
	return out, err
}

// oneReader streams the file to one client that takes every byte.
func (c *client) oneReader(ctx context.Context, sandbox string) (row, error) {
	r := row{name: "output of a process, by WebSocket", load: "1 reader", unit: "MB/s", budget: budget{p50: 200, least: true}}
	for range streamRuns {
		begin := time.Now()
		started, err := c.command(ctx, sandbox, false, "cat", streamFile)
		if err != nil {
			return r, err
		}
		conn, err := c.attach(ctx, sandbox, started.ID)
		if err != nil {
			return r, err
		}
		if err := drain(conn, streamBytes); err != nil {
			return r, err
		}
		r.samples = append(r.samples, streamBytes/1e6/time.Since(begin).Seconds())
	}
	return r, nil
}

func (c *client) attach(ctx context.Context, sandbox, id string) (*websocket.Conn, error) {
	address := strings.Replace(c.base, "http", "ws", 1) + sandboxes + "/" + sandbox + "/contexts/" + id + "/ws"
	conn, _, err := websocket.DefaultDialer.DialContext(ctx, address, http.Header{"Authorization": {"Bearer " + c.token}})
	return conn, err
}

// drain reads a stream of lines to its end and fails unless it was whole.
func drain(conn *websocket.Conn, want int) error {
	defer conn.Close()
	got := 0
	var buf bytes.Buffer
	for {
		_, r, err := conn.NextReader()
		if websocket.IsCloseError(err, websocket.CloseNormalClosure) && got == want {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%d of %d bytes arrived: %w", got, want, err)
		}
		buf.Reset()
		if _, err := buf.ReadFrom(r); err != nil {
			return err
		}
		_, data, _ := bytes.Cut(buf.Bytes(), []byte(`"data":"`))
		data = bytes.TrimSuffix(data, []byte(`"}`))
		got += len(data) - bytes.Count(data, []byte(`\`)) // a line's end is the one escape
	}
}

// runscCat streams the same file through `runsc exec`.
func runscCat(ctx context.Context, stack *s0test.Stack, sandbox string) (row, error) {
	r := row{name: "beside: the same bytes through `runsc exec cat`", load: "1 reader", unit: "MB/s"}
	for range streamRuns {
		cmd := exec.CommandContext(ctx, filepath.Join(stack.Bin(), "runsc"), "--root="+filepath.Join(stack.RunDir, "noded", "runsc"), "exec", sandbox, "cat", streamFile)
		out, err := cmd.StdoutPipe()
		if err != nil {
			return r, err
		}
		begin := time.Now()
		if err := cmd.Start(); err != nil {
			return r, err
		}
		n, err := io.Copy(io.Discard, out)
		if e := cmd.Wait(); err != nil || e != nil || n != streamBytes {
			return r, fmt.Errorf("runsc exec cat: %d bytes, %v, %w", n, err, e)
		}
		r.samples = append(r.samples, streamBytes/1e6/time.Since(begin).Seconds())
	}
	return r, nil
}

// manyReaders attaches readers to one context, which then prints.
func (c *client) manyReaders(ctx context.Context, runDir, sandbox string) ([]row, error) {
	started, err := c.command(ctx, sandbox, false, "sh", "-c", fmt.Sprintf("read go; head -c %d %s", sharedBytes, streamFile))
	if err != nil {
		return nil, err
	}
	before, err := instancePSS(runDir)
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	conns, err := c.attachAll(ctx, sandbox, started.ID)
	if err != nil {
		return nil, err
	}
	attached := time.Since(begin)
	after, err := instancePSS(runDir)
	if err != nil {
		return nil, err
	}
	begin = time.Now()
	if _, err := c.must(ctx, http.MethodPost, sandboxes+"/"+sandbox+"/contexts/"+started.ID+"/input", map[string]string{"data": "go\n"}, nil); err != nil {
		return nil, err
	}
	if err := drainAll(conns, sharedBytes); err != nil {
		return nil, err
	}
	load := fmt.Sprintf("%d readers of one context", readers)
	value := func(name, unit string, v float64) row {
		return row{name: name, load: load, unit: unit, samples: []float64{v}}
	}
	return []row{
		value("attaching all of them", "s", attached.Seconds()),
		value("each gets 1 MiB, until the last has it", "s", time.Since(begin).Seconds()),
		value("the daemon's memory for an idle reader", "KiB", 1024*(after.daemon-before.daemon)/readers),
	}, nil
}

// attachAll attaches with several dials at a time, as clients of their own would.
func (c *client) attachAll(ctx context.Context, sandbox, id string) ([]*websocket.Conn, error) {
	const atOnce = 16
	conns, errs := make([]*websocket.Conn, readers), make([]error, atOnce)
	var dials sync.WaitGroup
	for w := range atOnce {
		dials.Go(func() {
			for i := w; i < readers && errs[w] == nil; i += atOnce {
				conns[i], errs[w] = c.attach(ctx, sandbox, id)
			}
		})
	}
	dials.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return conns, nil
}

func drainAll(conns []*websocket.Conn, want int) error {
	errs := make(chan error, len(conns))
	for _, conn := range conns {
		go func() { errs <- drain(conn, want) }()
	}
	var first error
	for range conns {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}
