package wsapi

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/gorilla/websocket"

	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/fakenode"
	"s0.run/api/internal/nodes"
	"s0.run/api/internal/placement"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/procapi"
	"s0.run/internal/s0test"
	"s0.run/internal/sandbox"
)

// script is what the fake procd does with an attach: it may read the client's
// frames and write its own.
type script func(in io.Reader, out *procd)

type procd struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

func (p *procd) send(typ byte, parts ...[]byte) {
	p.w.Write(procapi.AppendFrame(nil, typ, parts...))
	p.rc.Flush()
}

func (p *procd) output(typ byte, data string) { p.send(typ, make([]byte, 8), []byte(data)) }

func (p *procd) exit(code int, state string) {
	b, _ := json.Marshal(procapi.Exit{ExitCode: code, State: state})
	p.send(procapi.FrameExit, b)
}

type fixture struct {
	*Server
	url  string
	node *fakenode.Node
	id   string

	offset uint64
	query  chan string // of the attach call
}

// serve runs a server whose sandbox's contexts do what the script says.
func serve(t *testing.T, do script) *fixture {
	t.Helper()
	queries := make(chan string, 1000)
	proc := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/contexts/ctx-00000001/attach" {
			w.WriteHeader(http.StatusNotFound)
			json.NewEncoder(w).Encode(procapi.Error{Code: "context_not_found", Message: "no such context"})
			return
		}
		queries <- r.URL.RawQuery
		p := &procd{w: w, rc: http.NewResponseController(w)}
		p.rc.Flush()
		do(r.Body, p)
	})
	db, err := store.Open(t.Context(), s0test.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	f := &fixture{query: queries, node: fakenode.Start(t, &fakenode.Node{Proc: proc})}
	table, log := placement.New(), slog.New(slog.DiscardHandler)
	set := nodes.New(nodes.Config{
		Sockets: []string{f.node.Socket}, Cluster: "local", Table: table, Log: log,
		OnSync: func(string) {}, OnEnd: func(string, sandbox.ID) {},
	})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- set.Run(ctx) }()
	id, err := sandbox.NewID("local")
	if err != nil {
		t.Fatal(err)
	}
	team := uuid.New()
	f.id = string(id)
	f.node.Adopt(&nodeapi.Sandbox{Id: f.id, Generation: 1, State: "running", Team: team.String()})
	fakenode.Eventually(t, "the sandbox is listed", func() bool {
		_, _, ok := table.Lookup(id)
		return ok
	})
	f.Server = New(Config{
		Plane:       dataplane.New(dataplane.Config{Store: db, Table: table, Nodes: set}),
		CheckOrigin: func(r *http.Request) bool { return r.Header.Get("Origin") == "" }, Log: log,
	})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		to := dataplane.Target{Team: team, ID: sandbox.ID(r.URL.Query().Get("sandbox"))}
		w.Header().Set("X-Request-Id", "req-1")
		if err := f.Attach(w, r, Session{To: to, ContextPath: "/contexts/" + r.URL.Query().Get("context"), Offset: f.offset}); err != nil {
			http.Error(w, errdefs.From(err).Message, errdefs.From(err).Kind.HTTPStatus())
		}
	}))
	f.url = srv.URL
	t.Cleanup(func() {
		srv.CloseClientConnections()
		f.Server.Close()
		srv.Close()
		stop()
		<-done
	})
	return f
}

func (f *fixture) address(context string) string {
	return "ws" + strings.TrimPrefix(f.url, "http") + "/?" + url.Values{"sandbox": {f.id}, "context": {context}}.Encode()
}

func (f *fixture) dial(t *testing.T, context string) *websocket.Conn {
	t.Helper()
	conn, resp, err := websocket.DefaultDialer.Dial(f.address(context), nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Header.Get("X-Request-Id") != "req-1" {
		t.Error("the upgrade's answer must carry the request id")
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetReadDeadline(time.Now().Add(2 * time.Minute))
	return conn
}

// rest reads all messages and answers them and how the socket was closed.
func rest(conn *websocket.Conn) (messages []string, code int, text string) {
	for {
		_, b, err := conn.ReadMessage()
		if err != nil {
			if ce, ok := err.(*websocket.CloseError); ok {
				return messages, ce.Code, ce.Text
			}
			return messages, -1, err.Error()
		}
		messages = append(messages, string(b))
	}
}

func expect(t *testing.T, conn *websocket.Conn, code int, text string, want ...string) {
	t.Helper()
	got, gotCode, gotText := rest(conn)
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("messages:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if gotCode != code || gotText != text {
		t.Errorf("closed with %d %q, want %d %q", gotCode, gotText, code, text)
	}
}

func TestAFinishedContextIsReplayed(t *testing.T) {
	t.Parallel()
	f := serve(t, func(_ io.Reader, p *procd) {
		p.output(procapi.FrameStdout, "out\n")
		p.output(procapi.FrameStderr, "err\n")
		p.exit(3, "stopped")
	})
	took := 2 * closeWait
	for try := 0; try < 5 && took > closeWait; try++ { // a slow machine may take as long once
		began := time.Now()
		expect(t, f.dial(t, "ctx-00000001"), 1000, "",
			`{"type":"output","source":"stdout","data":"out\n"}`,
			`{"type":"output","source":"stderr","data":"err\n"}`,
			`{"exit_code":3,"state":"stopped","type":"done"}`)
		took = time.Since(began)
	}
	if took > closeWait {
		t.Errorf("the closing handshake took %v", took)
	}
}

// Input for a process that has ended is dropped. The session lives on: what the
// process printed may still be on its way.
func TestInputForAnEndedProcessEndsNoSession(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer conn.Close()
		ended, input := io.Pipe()
		ended.Close()
		(&session{conn: conn, cancel: func() {}, input: input}).readClient()
	}))
	defer srv.Close()
	conn, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(srv.URL, "http"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	pong := make(chan struct{})
	conn.SetPongHandler(func(string) error { close(pong); return nil })
	for range 2 {
		conn.WriteMessage(websocket.TextMessage, []byte(`{"type":"input","data":"x"}`))
	}
	conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(10*time.Second))
	read := make(chan error, 1)
	go func() { _, _, err := conn.ReadMessage(); read <- err }()
	select {
	case <-pong:
	case err := <-read:
		t.Fatalf("the session ended: %v", err)
	}
	conn.Close()
	<-read
}

func TestAnUnknownContextIsToldOnTheSocket(t *testing.T) {
	t.Parallel()
	f := serve(t, func(io.Reader, *procd) {})
	expect(t, f.dial(t, "ctx-0000000f"), 1000, "context not found")
}

func TestAnUnknownSandboxIsAnHTTPAnswer(t *testing.T) {
	t.Parallel()
	f := serve(t, func(io.Reader, *procd) {})
	id, _ := sandbox.NewID("local")
	f.id = string(id)
	_, resp, err := websocket.DefaultDialer.Dial(f.address("ctx-00000001"), nil)
	if err == nil || resp == nil || resp.StatusCode != http.StatusNotFound {
		t.Fatalf("%v %v", resp, err)
	}
	plain, err := http.Get(f.url + "/?sandbox=" + f.id)
	if err != nil {
		t.Fatal(err)
	}
	plain.Body.Close()
	if plain.StatusCode != http.StatusBadRequest {
		t.Errorf("without an upgrade: %s", plain.Status)
	}
}

func TestAREPLTalksBothWays(t *testing.T) {
	t.Parallel()
	f := serve(t, func(in io.Reader, p *procd) {
		for {
			typ, payload, err := procapi.ReadFrame(in, nil)
			if err != nil {
				return
			}
			switch typ {
			case procapi.FrameInput:
				id, data, _ := procapi.Input(payload)
				p.output(procapi.FramePTY, fmt.Sprintf("%s|%s", id, data))
				p.send(procapi.FramePrompt, []byte(id))
				if string(data) == "bye" {
					p.exit(0, "stopped")
					return
				}
			default:
				p.output(procapi.FramePTY, fmt.Sprintf("%d %s", typ, payload))
			}
		}
	})
	conn := f.dial(t, "ctx-00000001")
	for _, m := range []string{
		`{"type":"input","data":"1+1\n","request_id":"r1"}`,
		`{"type":"resize","rows":24,"cols":80}`,
		`{"type":"signal","signal":"INT"}`,
		`{"type":"eof"}`,
		`{"type":"other"}`,
		`plain text`,
		`{"type":"input","data":"bye"}`,
	} {
		if err := conn.WriteMessage(websocket.TextMessage, []byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, conn, 1000, "",
		`{"type":"output","source":"pty","data":"r1|1+1\n"}`,
		`{"request_id":"r1","type":"done"}`,
		`{"type":"output","source":"pty","data":"17 {\"rows\":24,\"cols\":80}"}`,
		`{"type":"output","source":"pty","data":"18 {\"signal\":\"INT\"}"}`,
		`{"type":"output","source":"pty","data":"19 "}`,
		`{"type":"output","source":"pty","data":"|{\"type\":\"other\"}"}`,
		`{"type":"done"}`,
		`{"type":"output","source":"pty","data":"|plain text"}`,
		`{"type":"done"}`,
		`{"type":"output","source":"pty","data":"|bye"}`,
		`{"type":"done"}`,
		`{"exit_code":0,"state":"stopped","type":"done"}`)
}

func TestOutputIsCutBetweenCharacters(t *testing.T) {
	t.Parallel()
	const text = "aé€😀z"
	f := serve(t, func(_ io.Reader, p *procd) {
		for i := range len(text) { // byte by byte
			p.output(procapi.FrameStdout, text[i:i+1])
			p.output(procapi.FrameStderr, ".")
		}
		p.output(procapi.FrameStdout, "\xff\xe2\x82")
		p.exit(0, "stopped")
	})
	messages, code, _ := rest(f.dial(t, "ctx-00000001"))
	var out, exact strings.Builder
	for _, m := range messages {
		var v struct {
			Source, Data string
			Bytes        []byte `json:"data_base64"`
		}
		if err := json.Unmarshal([]byte(m), &v); err != nil {
			t.Fatal(err)
		}
		switch {
		case v.Source != "stdout":
		case v.Bytes != nil:
			exact.Write(v.Bytes)
			out.WriteString(v.Data)
		default:
			exact.WriteString(v.Data)
			out.WriteString(v.Data)
		}
	}
	if exact.String() != text+"\xff\xe2\x82" {
		t.Errorf("bytes %q", exact.String())
	}
	if got := out.String(); got != text+"\ufffd\ufffd\ufffd" && got != text+"\ufffd\ufffd" || code != 1000 {
		t.Errorf("%q, closed with %d", got, code)
	}
}

func TestAGapIsTold(t *testing.T) {
	t.Parallel()
	f := serve(t, func(_ io.Reader, p *procd) {
		p.send(procapi.FrameGap, []byte{0, 0, 0, 0, 0, 0, 1, 0})
		p.exit(0, "stopped")
	})
	expect(t, f.dial(t, "ctx-00000001"), 1000, "", `{"type":"gap","lost_bytes":256}`, `{"exit_code":0,"state":"stopped","type":"done"}`)
}

func TestB13_ALyingProcdEndsTheSession(t *testing.T) {
	t.Parallel()
	for name, lie := range map[string]func(p *procd){
		"garbage":       func(p *procd) { p.w.Write([]byte("HTTP/1.1 200 OK\r\n\r\nhello")); p.rc.Flush() },
		"short output":  func(p *procd) { p.send(procapi.FrameStdout, []byte{1}) },
		"strange state": func(p *procd) { p.exit(0, "<script>") },
		"exit garbage":  func(p *procd) { p.send(procapi.FrameExit, []byte("{")) },
		"gap garbage":   func(p *procd) { p.send(procapi.FrameGap, []byte{1}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := serve(t, func(in io.Reader, p *procd) {
				lie(p)
				io.Copy(io.Discard, in)
			})
			expect(t, f.dial(t, "ctx-00000001"), 1011, "the sandbox's answer makes no sense")
		})
	}
}

func TestALostSandboxAsksToAttachAgain(t *testing.T) {
	t.Parallel()
	f := serve(t, func(_ io.Reader, p *procd) {
		p.output(procapi.FrameStdout, "x")
		panic(http.ErrAbortHandler)
	})
	expect(t, f.dial(t, "ctx-00000001"), 1012, "the connection to the sandbox was lost; attach again",
		`{"type":"output","source":"stdout","data":"x"}`)
}

func TestX39_AStoppingServerAsksToAttachAgain(t *testing.T) {
	t.Parallel()
	attached := make(chan struct{})
	f := serve(t, func(in io.Reader, p *procd) {
		close(attached)
		io.Copy(io.Discard, in)
	})
	conn := f.dial(t, "ctx-00000001")
	<-attached
	closed := make(chan struct{})
	go func() {
		f.Server.Close()
		close(closed)
	}()
	expect(t, conn, 1012, "the server restarts; attach again")
	conn.Close()
	<-closed
	if _, resp, err := websocket.DefaultDialer.Dial(f.address("ctx-00000001"), nil); err == nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a session while the server stops: %v", err)
	}
}

func silent(in io.Reader, _ *procd) { io.Copy(io.Discard, in) }

func TestA11_WhatClientsMustNotSend(t *testing.T) {
	t.Parallel()
	f := serve(t, silent)
	for name, c := range map[string]struct {
		kind int
		msg  []byte
		code int
	}{
		"too long":        {websocket.TextMessage, make([]byte, maxMessageBytes+1), 1009},
		"invalid UTF-8":   {websocket.TextMessage, []byte("\xff\xfe"), 1007},
		"long request id": {websocket.TextMessage, []byte(`{"type":"input","request_id":"` + strings.Repeat("x", 256) + `"}`), 1008},
		"resize to 0":     {websocket.TextMessage, []byte(`{"type":"resize","rows":0,"cols":80}`), 1008},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := f.dial(t, "ctx-00000001")
			conn.WriteMessage(c.kind, c.msg)
			if _, code, text := rest(conn); code != c.code {
				t.Errorf("closed with %d %q, want %d", code, text, c.code)
			}
		})
	}
	t.Run("unmasked frame", func(t *testing.T) {
		t.Parallel()
		conn := f.dial(t, "ctx-00000001")
		conn.NetConn().Write([]byte{0x81, 2, 'h', 'i'})
		if _, code, text := rest(conn); code != 1002 {
			t.Errorf("closed with %d %q", code, text)
		}
	})
	t.Run("foreign origin", func(t *testing.T) {
		t.Parallel()
		_, resp, err := websocket.DefaultDialer.Dial(f.address("ctx-00000001"), http.Header{"Origin": {"http://evil.example"}})
		if err == nil || resp.StatusCode != http.StatusForbidden {
			t.Errorf("A12: %v %v", resp, err)
		}
	})
}

func TestA11_AClientThatStopsReadingIsDropped(t *testing.T) {
	t.Parallel()
	ended := make(chan struct{})
	f := serve(t, func(_ io.Reader, p *procd) {
		defer close(ended)
		chunk := strings.Repeat("x", 32<<10)
		for {
			if _, err := p.w.Write(procapi.AppendFrame(nil, procapi.FrameStdout, make([]byte, 8), []byte(chunk))); err != nil {
				return
			}
		}
	})
	f.writeTimeout = 100 * time.Millisecond
	f.dial(t, "ctx-00000001")
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the sandbox's side goes on for a client that does not read")
	}
}

func TestA23_SessionsAreBounded(t *testing.T) {
	t.Parallel()
	s := New(Config{})
	to := dataplane.Target{Team: uuid.New(), ID: "s0-a"}
	var leaves []func()
	enter := func(to dataplane.Target) error {
		leave, err := s.enter(to)
		if err == nil {
			leaves = append(leaves, leave)
		}
		return err
	}
	for range sessionsPerSandbox {
		if err := enter(to); err != nil {
			t.Fatal(err)
		}
	}
	if err := enter(to); !errdefs.Is(err, errdefs.Exhausted) || errdefs.From(err).RetryAfter == 0 {
		t.Errorf("one too many of a sandbox: %v", err)
	}
	for i := range sessionsPerTeam - sessionsPerSandbox {
		if err := enter(dataplane.Target{Team: to.Team, ID: sandbox.ID(fmt.Sprint("s0-b", i))}); err != nil {
			t.Fatal(err)
		}
	}
	if err := enter(dataplane.Target{Team: to.Team, ID: "s0-c"}); !errdefs.Is(err, errdefs.Exhausted) {
		t.Errorf("one too many of a team: %v", err)
	}
	if err := enter(dataplane.Target{Team: uuid.New(), ID: "s0-d"}); err != nil {
		t.Errorf("another team: %v", err)
	}
	for _, leave := range leaves {
		leave()
	}
	if err := enter(to); err != nil {
		t.Errorf("after all have left: %v", err)
	}
}

func TestAttachFromAnOffset(t *testing.T) {
	t.Parallel()
	f := serve(t, func(_ io.Reader, p *procd) { p.exit(0, "stopped") })
	for offset, want := range map[uint64]string{0: "", 5 << 30: "offset=5368709120"} {
		f.offset = offset
		rest(f.dial(t, "ctx-00000001"))
		if got := <-f.query; got != want {
			t.Errorf("offset %d: procd was asked with %q, want %q", offset, got, want)
		}
	}
}

// Some clients copy all their HTTP headers into the upgrade, Connection twice
// included.
func TestSeveralConnectionHeaders(t *testing.T) {
	t.Parallel()
	f := serve(t, func(_ io.Reader, p *procd) { p.exit(0, "stopped") })
	u, err := url.Parse(f.address("ctx-00000001"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: keep-alive\r\nAccept: */*\r\nUser-Agent: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", u.RequestURI(), u.Host)
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.Contains(line, " 101 ") {
		t.Fatalf("%q: %v", line, err)
	}
}
