package client_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/gorilla/websocket"

	"s0.run/api/client"
)

// attach opens a stream to a server that runs serve on its end.
func attach(t *testing.T, serve func(*websocket.Conn)) *client.Stream {
	t.Helper()
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer token" || !strings.HasSuffix(r.URL.Path, "/sandboxes/sb/contexts/cx/ws") {
			http.Error(w, "wrong request", http.StatusBadRequest)
			return
		}
		conn, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer conn.Close()
		serve(conn)
	})
	s, err := c.Attach(t.Context(), "sb", "cx")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func texts(conn *websocket.Conn, messages ...string) {
	for _, m := range messages {
		conn.WriteMessage(websocket.TextMessage, []byte(m))
	}
}

func closing(conn *websocket.Conn, code int, text string) {
	conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(code, text))
	conn.ReadMessage() // the client's own goodbye
}

func TestStreamCopy(t *testing.T) {
	t.Parallel()
	s := attach(t, func(conn *websocket.Conn) {
		texts(conn,
			`{"type":"output","source":"stdout","data":"out "}`,
			`{"type":"output","source":"stderr","data":"err"}`,
			`{"type":"something newer"}`,
			`{"type":"output","source":"stdout","data":"put"}`,
			`{"type":"done","exit_code":3,"state":"stopped"}`)
		closing(conn, websocket.CloseNormalClosure, "")
	})
	var stdout, stderr strings.Builder
	exit, err := s.Copy(&stdout, &stderr)
	if err != nil || exit.Code != 3 || exit.State != client.ContextStateStopped {
		t.Errorf("exit %+v, %v", exit, err)
	}
	if stdout.String() != "out put" || stderr.String() != "err" {
		t.Errorf("stdout %q, stderr %q", &stdout, &stderr)
	}
	if _, err := s.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the exit: %v, want io.EOF", err)
	}
}

// What never arrived is told, and so is the exit code; bytes stay what they were.
func TestStreamCopyOfMuchOutput(t *testing.T) {
	t.Parallel()
	s := attach(t, func(conn *websocket.Conn) {
		texts(conn,
			`{"type":"output","source":"stdout","data":"a"}`,
			`{"type":"gap","lost_bytes":7}`,
			`{"type":"output","source":"stdout","data":"\ufffd","data_base64":"/w=="}`,
			`{"type":"gap","lost_bytes":2}`,
			`{"type":"done","exit_code":3,"state":"crashed"}`)
		closing(conn, websocket.CloseNormalClosure, "")
	})
	var stdout strings.Builder
	exit, err := s.Copy(&stdout, io.Discard)
	var lost *client.OutputLostError
	if !errors.As(err, &lost) || lost.Bytes != 9 || exit.Code != 3 {
		t.Errorf("exit %+v, %v", exit, err)
	}
	if stdout.String() != "a\xff" {
		t.Errorf("stdout %q", &stdout)
	}
}

// A stream that ends without an exit code must not look like a success.
func TestStreamCopyCutShort(t *testing.T) {
	t.Parallel()
	for name, serve := range map[string]func(*websocket.Conn){
		"closed in order":   func(c *websocket.Conn) { closing(c, websocket.CloseNormalClosure, "") },
		"context not found": func(c *websocket.Conn) { closing(c, websocket.CloseNormalClosure, "context not found") },
		"server restarts":   func(c *websocket.Conn) { closing(c, websocket.CloseServiceRestart, "") },
		"connection lost":   func(c *websocket.Conn) { c.NetConn().Close() },
		"no JSON":           func(c *websocket.Conn) { texts(c, "hello") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if exit, err := attach(t, serve).Copy(io.Discard, io.Discard); err == nil {
				t.Errorf("got %+v", exit)
			}
		})
	}
}

// What is over is told from what was cut short.
func TestCanReattach(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		serve func(*websocket.Conn)
		want  bool
	}{
		"context not found": {func(c *websocket.Conn) { closing(c, websocket.CloseNormalClosure, "context not found") }, false},
		"nonsense":          {func(c *websocket.Conn) { closing(c, websocket.CloseInternalServerErr, "") }, false},
		"server restarts":   {func(c *websocket.Conn) { closing(c, websocket.CloseServiceRestart, "") }, true},
		"connection lost":   {func(c *websocket.Conn) { c.NetConn().Close() }, true},
		"no JSON":           {func(c *websocket.Conn) { texts(c, "hello") }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := attach(t, c.serve).Copy(io.Discard, io.Discard)
			if got := client.CanReattach(err); got != c.want {
				t.Errorf("%v: %v", err, got)
			}
		})
	}
	for status, want := range map[int]bool{http.StatusNotFound: false, http.StatusBadGateway: true} {
		c := newClient(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
		if _, err := c.Attach(t.Context(), "sb", "cx"); client.CanReattach(err) != want {
			t.Errorf("%d: %v", status, err)
		}
	}
}

func TestStreamInput(t *testing.T) {
	t.Parallel()
	type frame struct {
		kind int
		data string
	}
	frames := make(chan frame, 8)
	s := attach(t, func(conn *websocket.Conn) {
		for {
			kind, data, err := conn.ReadMessage()
			if err != nil {
				return
			}
			frames <- frame{kind, string(data)}
		}
	})
	var errs []error
	errs = append(errs, s.Input("x = 1\n", "req-1"))
	_, err := io.WriteString(s, "größe\x04")
	errs = append(errs, err)
	_, err = s.Write([]byte{0xff, 0x00})
	errs = append(errs, err, s.Resize(client.PTYSize{Rows: 24, Cols: 80}), s.Signal("INT"), s.CloseInput())
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for _, want := range []frame{
		{websocket.TextMessage, `{"data":"x = 1\n","request_id":"req-1","type":"input"}`},
		{websocket.TextMessage, `{"data":"größe\u0004","type":"input"}`},
		{websocket.BinaryMessage, "\xff\x00"},
		{websocket.TextMessage, `{"cols":80,"rows":24,"type":"resize"}`},
		{websocket.TextMessage, `{"signal":"INT","type":"signal"}`},
		{websocket.TextMessage, `{"type":"eof"}`},
	} {
		if got := <-frames; got != want {
			t.Errorf("sent %+v, want %+v", got, want)
		}
	}
}

func TestStreamPrompt(t *testing.T) {
	t.Parallel()
	s := attach(t, func(conn *websocket.Conn) {
		texts(conn, `{"type":"output","source":"pty","data":"42\r\n"}`, `{"type":"done","request_id":"req-1"}`)
		conn.ReadMessage()
	})
	for _, want := range []client.Event{
		client.Output{Source: client.ContextServerMessageSourcePTY, Data: "42\r\n"},
		client.Prompt{RequestID: "req-1"},
	} {
		if got, err := s.Next(); err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
}

func TestStreamEndsWithContext(t *testing.T) {
	t.Parallel()
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		conn, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer conn.Close()
		conn.ReadMessage()
	})
	ctx, cancel := context.WithCancel(t.Context())
	s, err := c.Attach(ctx, "sb", "cx")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	cancel()
	if _, err := s.Next(); err == nil {
		t.Error("the stream outlived its context")
	}
}

func TestAttachRefused(t *testing.T) {
	t.Parallel()
	c := newClient(t, answer(http.StatusForbidden, nil, `{"success":false,"error":{"code":"forbidden","message":"insufficient permissions"}}`))
	_, err := c.Attach(t.Context(), "sb", "cx")
	var e *client.APIError
	if !errors.As(err, &e) || e.Code != "forbidden" {
		t.Errorf("got %v, want the server's error", err)
	}
}

// A reader whose connection broke goes on where it was, gaps and bytes that are
// no text included.
func TestAttachAt(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 2)
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.RawQuery
		conn, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer conn.Close()
		texts(conn, `{"type":"output","source":"stdout","data":"é"}`, `{"type":"gap","lost_bytes":10}`,
			`{"type":"output","source":"stdout","data":"\ufffd","data_base64":"/w=="}`)
		closing(conn, websocket.CloseServiceRestart, "attach again")
	})
	offset := uint64(0)
	for _, want := range []struct {
		query  string
		offset uint64
	}{{"", 13}, {"offset=13", 26}} {
		s, err := c.AttachAt(t.Context(), "sb", "cx", offset)
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = s.Next()
		}
		s.Close()
		offset = s.Offset()
		if got := <-asked; got != want.query || offset != want.offset {
			t.Errorf("attached with %q and came to %d, want %q and %d", got, offset, want.query, want.offset)
		}
	}
}
