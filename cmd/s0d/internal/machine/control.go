package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"s0.run/cmd/s0d/internal/node"
	"s0.run/internal/daemon"
	"s0.run/registry"
)

// The states of a server.
const (
	Starting = "starting"
	Ready    = "ready"
	Stopping = "stopping"
)

// Status is what a server says of itself on its control socket.
type Status struct {
	PID       int            `json:"pid"`
	Version   string         `json:"version"`
	State     string         `json:"state"`
	API       string         `json:"api,omitempty"` // base URL, once it serves
	StartedAt time.Time      `json:"started_at"`
	Children  map[string]int `json:"children"` // process ids

	Registry *registry.Usage `json:"registry,omitempty"` // what images take there
}

// control answers on the instance's unix socket, which only root may open.
type control struct {
	status func() Status
	asked  func()        // called at the first request to stop
	ended  chan struct{} // closed when the stop is as good as done

	mu   sync.Mutex
	stop *stopRequest // the first one
}

type stopRequest struct {
	keep bool
	tell progress
}

func newControl(status func() Status, asked func()) *control {
	return &control{status: status, asked: asked, ended: make(chan struct{})}
}

func (c *control) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(c.status())
	})
	mux.HandleFunc("POST /stop", c.handleStop)
	return mux
}

// handleStop stops the server and streams what it does meanwhile, as text.
func (c *control) handleStop(w http.ResponseWriter, r *http.Request) {
	t := &teller{w: w, flush: http.NewResponseController(w).Flush}
	defer t.close()
	t.flush() // the answer has begun, whatever comes
	c.request(&stopRequest{keep: r.FormValue("keep-sandboxes") == "true", tell: t.say})
	select {
	case <-c.ended:
	case <-r.Context().Done():
	}
}

// A teller writes lines to an HTTP answer from any goroutine, and nothing once
// its handler has returned.
type teller struct {
	flush func() error

	mu sync.Mutex
	w  io.Writer // nil once closed
}

func (t *teller) say(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.w != nil {
		fmt.Fprintf(t.w, format+"\n", args...)
		t.flush()
	}
}

func (t *teller) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.w = nil
}

func (c *control) request(s *stopRequest) {
	c.mu.Lock()
	first := c.stop == nil
	if first {
		c.stop = s
	}
	c.mu.Unlock()
	if first {
		c.asked()
	}
}

func (c *control) requested() *stopRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stop
}

// serve runs the control socket until ctx ends.
func (c *control) serve(ctx context.Context, socket string) error {
	l, err := daemon.ListenUnix(socket)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: c.handler(), ReadHeaderTimeout: 5 * time.Second}
	return daemon.Serve(ctx, srv, l, time.Second)
}

// Ask answers the running server's status.
func (c Config) Ask(ctx context.Context) (Status, error) {
	var s Status
	resp, err := c.controlCall(ctx, http.MethodGet, "/status")
	if err != nil {
		return s, err
	}
	defer resp.Body.Close()
	return s, json.NewDecoder(resp.Body).Decode(&s)
}

// Down stops the running server, with its sandboxes unless keep is set, and
// returns when its process is gone. What it says meanwhile goes to out.
func (c Config) Down(ctx context.Context, keep bool, out io.Writer) error {
	resp, err := c.controlCall(ctx, http.MethodPost, fmt.Sprintf("/stop?keep-sandboxes=%v", keep))
	if err != nil {
		return fmt.Errorf("asking the server to stop: %w", err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(out, resp.Body); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("following the server's stop: %w", err)
	}
	return c.awaitEnd(ctx)
}

func (c Config) controlCall(ctx context.Context, method, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://s0d"+path, nil)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", c.controlSocket())
		},
	}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return nil, fmt.Errorf("control socket: status %d", resp.StatusCode)
	}
	return resp, nil
}

// Node is the machine's noded.
func (c Config) Node() *node.Node { return node.New(c.nodeSocket()) }
