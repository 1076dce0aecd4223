package runtimes

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"s0.run/api/internal/openapi"
	"s0.run/internal/procapi"
)

// function is a runner with its process.
type function struct {
	t      *testing.T
	socket string
	client *http.Client
	ended  chan struct{}
	output *buffer
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

var functions atomic.Int32

// run runs code as a sandbox would.
func run(t *testing.T, code string, change ...func(*openapi.ServiceFunction)) *function {
	t.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Fatal("python3 is needed: apt-get install python3-minimal")
	}
	f := &openapi.ServiceFunction{Handler: new("handler"), Source: &openapi.ServiceFunctionSource{Code: &code}}
	for _, c := range change {
		c(f)
	}
	name := "test-" + strings.ToLower(time.Now().Format("150405-000000000")) + "-" + string(rune('a'+functions.Add(1)%26))
	p := newPlan(openapi.SandboxAppService{
		ID: name, Port: new(int32(49983)), Runtime: &openapi.ServiceRuntime{Type: openapi.ServiceRuntimeTypeFunction, Function: f},
	})
	cmd := exec.Command(python, p.create.CMD.Command[1:]...)
	fn := &function{t: t, socket: procapi.FunctionSocket(name), ended: make(chan struct{}), output: &buffer{}}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(p.input), fn.output, fn.output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		cmd.Wait()
		close(fn.ended)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-fn.ended
		if t.Failed() {
			t.Logf("the function printed:\n%s", fn.output)
		}
	})
	fn.client = &http.Client{Transport: &http.Transport{DialContext: fn.dial}, Timeout: time.Minute}
	t.Cleanup(fn.client.CloseIdleConnections)
	fn.await()
	return fn
}

func (f *function) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", f.socket)
}

func (f *function) await() {
	f.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		c, err := f.dial(context.Background(), "", "")
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-f.ended:
			f.t.Fatalf("the runner ended: %s", f.output)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("the runner does not listen: %v", err)
		}
	}
}

// do sends a request as the proxy does.
func (f *function) do(method, target, body string, header ...string) (*http.Response, string) {
	f.t.Helper()
	req, err := http.NewRequest(method, "http://f"+target, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header.Set("S0-Route", "r")
	req.Header.Set("S0-Timeout", "60")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := f.client.Do(req)
	if err != nil {
		f.t.Fatalf("%s %s: %v", method, target, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		b = append(b, " broken off"...)
	}
	return resp, string(b)
}

func (f *function) refused(code, target string, header ...string) {
	f.t.Helper()
	resp, body := f.do("GET", target, "", header...)
	if got := resp.Header.Get("S0-Function-Error"); got != code || body != "" {
		f.t.Errorf("%s: error %q, body %q; want %q", target, got, body, code)
	}
}

func TestRunnerRequests(t *testing.T) {
	t.Parallel()
	f := run(t, "def handler(request):\n    request['again'] = request['headers']['X-KEY']\n    return request\n")
	_, body := f.do("POST", "/a%20b/c?x=%2F&y", "h\xc3\xa9", "X-Key", "v", "Content-Type", "text/plain")
	var got map[string]any
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	headers, _ := got["headers"].(map[string]any)
	if headers["x-key"] != "v" || headers["content-type"] != "text/plain" || headers["s0-route"] != nil || headers["s0-timeout"] != nil {
		t.Errorf("headers %v", headers)
	}
	delete(got, "headers")
	delete(got, "service_id")
	want := map[string]any{"route_id": "r", "method": "POST", "path": "/a b/c", "raw_query": "x=%2F&y", "body_base64": "aMOp", "again": "v"}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s is %v, want %v", k, got[k], v)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%v", got)
	}
	// Without a length, and one after the other over one connection.
	req, _ := http.NewRequest("POST", "http://f/", io.MultiReader(strings.NewReader("ab"), strings.NewReader("c")))
	req.Header.Set("X-Key", "v")
	resp, err := f.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); !strings.Contains(string(b), `"body_base64": "YWJj"`) {
		t.Errorf("chunked: %s", b)
	}
}

func TestRunnerAnswers(t *testing.T) {
	t.Parallel()
	f := run(t, `
import asyncio, datetime
class Api:
    @staticmethod
    def entry(request):
        return answers[request["path"][1:]]()
async def later():
    await asyncio.sleep(0)
    return "later"
def generator():
    yield 1
    yield "two"
answers = {
    "json": lambda: {"a": [1, None, "é"]}, "list": lambda: [1, 2], "text": lambda: "é", "bytes": lambda: b"\x00\xff", "none": lambda: None, "number": lambda: 7,
    "form": lambda: {"status": 201, "headers": {"X-Own": "v", "Set-Cookie": ["a=1", "b=2"], "Content-Type": "text/html", "S0-Function-Error": "x", "Connection": "close"}, "body": "<p>"},
    "empty": lambda: {"status": 204}, "body": lambda: {"body": {"x": 1}}, "plain": lambda: {"status": "ok", "body": 1}, "headers": lambda: {"headers": {}},
    "async": later, "generator": generator, "most": lambda: "x" * (4 << 20),
    "toomuch": lambda: "x" * ((4 << 20) + 1), "status": lambda: {"status": 99}, "object": lambda: datetime, "nan": lambda: float("nan"),
    "inject": lambda: {"status": 200, "headers": {"X": "a\r\nSet-Cookie: b"}}, "name": lambda: {"status": 200, "headers": {"X Y": "a"}},
    "raise": lambda: 1 / 0, "exit": lambda: exit(3), "stop": lambda: next(iter([])), "connection": lambda: (_ for _ in ()).throw(ConnectionResetError("theirs")),
}
`, func(f *openapi.ServiceFunction) { f.Handler = new("Api.entry") })
	for path, want := range map[string]string{
		"json": `200 application/json {"a": [1, null, "\u00e9"]}`, "list": "200 application/json [1, 2]", "text": "200 text/plain; charset=utf-8 é",
		"bytes": "200 application/octet-stream \x00\xff", "none": "200  ", "number": "200 application/json 7", "form": "201 text/html <p>", "empty": "204  ",
		"body": `200 application/json {"x": 1}`, "plain": `200 application/json {"status": "ok", "body": 1}`, "headers": `200 application/json {"headers": {}}`,
		"async": "200 text/plain; charset=utf-8 later", "generator": `200 application/json [1, "two"]`,
	} {
		resp, body := f.do("GET", "/"+path, "")
		if got := strings.Join([]string{resp.Status[:3], resp.Header.Get("Content-Type"), body}, " "); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
		if path == "form" && (resp.Header.Get("X-Own") != "v" || len(resp.Header["Set-Cookie"]) != 2 || resp.Header.Get("S0-Function-Error") != "") {
			t.Errorf("headers %v", resp.Header)
		}
	}
	if _, body := f.do("GET", "/most", ""); len(body) != 4<<20 {
		t.Errorf("4 MiB came as %d bytes", len(body))
	}
	if resp, body := f.do("HEAD", "/text", ""); resp.ContentLength != 2 || body != "" {
		t.Errorf("HEAD: length %d, %q", resp.ContentLength, body)
	}
	for _, path := range []string{"toomuch", "status", "object", "nan", "inject", "name", "raise", "exit", "stop", "connection", "unknown"} {
		f.refused("function_failed", "/"+path)
	}
	if !strings.Contains(f.output.String(), "ZeroDivisionError") || !strings.Contains(f.output.String(), `File "function.py", line`) {
		t.Error("the owner can't see what went wrong")
	}
}

func TestRunnerCodeThatDoesNotLoad(t *testing.T) {
	t.Parallel()
	for name, code := range map[string]string{"syntax": "def", "no handler": "x = 1", "not callable": "handler = 1", "raises": "raise SystemExit(1)"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, code).refused("function_failed", "/")
		})
	}
}

func TestRunnerBounds(t *testing.T) {
	t.Parallel()
	gate := filepath.Join(t.TempDir(), "open")
	f := run(t, `
import os, time
def handler(request):
    print("called")
    while not os.path.exists(request["raw_query"]):
        time.sleep(0.01)
    return "ok"
`, func(f *openapi.ServiceFunction) { f.MaxConcurrency = new(int32(2)) })
	first := make(chan string)
	go func() {
		_, body := f.do("GET", "/?"+gate, "", "S0-Timeout", "60")
		first <- body
	}()
	for deadline := time.Now().Add(time.Minute); !strings.Contains(f.output.String(), "called"); {
		if time.Now().After(deadline) {
			t.Fatal("the first call does not arrive")
		}
	}
	busy := func() string {
		resp, _ := f.do("GET", "/?"+gate, "", "S0-Timeout", "0.2")
		return resp.Header.Get("S0-Function-Error")
	}
	// One waits. A second runs out of time, and keeps its place for as long as it runs.
	if got := busy(); got != "function_timeout" {
		t.Errorf("out of time: %q", got)
	}
	if got := busy(); got != "function_concurrency_exceeded" {
		t.Errorf("a third: %q", got)
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := <-first; got != "ok" {
		t.Errorf("the first: %q", got)
	}
	for deadline := time.Now().Add(time.Minute); busy() != ""; {
		if time.Now().After(deadline) {
			t.Fatal("places are not free again")
		}
	}
}

func TestRunnerThatIsStuckEnds(t *testing.T) {
	t.Parallel()
	f := run(t, "import time\ndef handler(request):\n    time.sleep(600)\n", func(f *openapi.ServiceFunction) { f.MaxConcurrency = new(int32(1)) })
	f.refused("function_timeout", "/", "S0-Timeout", "0.1")
	select {
	case <-f.ended:
	case <-time.After(time.Minute):
		t.Error("a runner that can serve nothing more stays")
	}
}

func TestRunnerAsyncTimeoutsFreeTheirPlace(t *testing.T) {
	t.Parallel()
	f := run(t, "import asyncio\nasync def handler(request):\n    await asyncio.sleep(0 if request['path'] == '/quick' else 600)\n    return 'ok'\n",
		func(f *openapi.ServiceFunction) { f.MaxConcurrency = new(int32(1)) })
	for range 3 {
		f.refused("function_timeout", "/", "S0-Timeout", "0.1")
	}
	if _, body := f.do("GET", "/quick", ""); body != "ok" {
		t.Errorf("afterwards: %q", body)
	}
}

func TestRunnerEvents(t *testing.T) {
	t.Parallel()
	f := run(t, `
import asyncio, time
def sync():
    yield "a\nb"
    yield {"event": "e", "id": 1, "data": {"x": 1}}
    yield {"other": 1}
    yield b"raw: 1\n\n"
async def a():
    for i in range(2):
        await asyncio.sleep(0)
        yield i
def breaks():
    yield 1
    raise ValueError
def hangs():
    yield 1
    time.sleep(600)
def handler(request):
    return {"sync": sync, "async": a, "breaks": breaks, "hangs": hangs, "list": lambda: [1, "x"], "text": lambda: "text",
            "form": lambda: {"status": 202, "headers": {"X-Own": "v"}, "body": a()}}[request["path"][1:]]()
`)
	for path, want := range map[string]string{
		"sync": "data: a\ndata: b\n\nevent: e\nid: 1\ndata: {\"x\": 1}\n\ndata: {\"other\": 1}\n\nraw: 1\n\n", "async": "data: 0\n\ndata: 1\n\n",
		"list": "data: 1\n\ndata: x\n\n", "text": "text", "form": "data: 0\n\ndata: 1\n\n", "breaks": "data: 1\n\n broken off",
	} {
		resp, body := f.do("GET", "/"+path, "", "Accept", "text/event-stream, */*")
		if body != want {
			t.Errorf("%s: %q, want %q", path, body, want)
		}
		if path == "form" && (resp.StatusCode != 202 || resp.Header.Get("X-Own") != "v" || resp.Header.Get("Content-Type") != "text/event-stream") {
			t.Errorf("%s: %d %v", path, resp.StatusCode, resp.Header)
		}
	}
	if _, body := f.do("GET", "/hangs", "", "Accept", "text/event-stream", "S0-Timeout", "3"); body != "data: 1\n\n broken off" {
		t.Errorf("a stream that stops: %q", body)
	}
}

// Whoever saw the end of a stream may ask again: its place is free.
func TestRunnerAStreamEndsAfterItsCall(t *testing.T) {
	t.Parallel()
	f := run(t, `
import time
class Rows:
    def __init__(self):
        self.rows = iter([1])
    def __iter__(self):
        return self
    def __next__(self):
        return next(self.rows)
    def close(self):
        time.sleep(0.1)
def handler(request):
    return Rows()
`, func(f *openapi.ServiceFunction) { f.MaxConcurrency = new(int32(1)) })
	for range 3 {
		if resp, body := f.do("GET", "/", "", "Accept", "text/event-stream"); body != "data: 1\n\n" {
			t.Errorf("%q, error %q", body, resp.Header.Get("S0-Function-Error"))
		}
	}
}

func TestRunnerWebSockets(t *testing.T) {
	t.Parallel()
	f := run(t, `
async def handler(request, ws):
    if ws is None:
        return "plain"
    if request["path"] == "/raise":
        raise ValueError
    if request["path"] == "/connection":
        raise ConnectionResetError
    await ws.send({"route": request["route_id"]})
    async for message in ws:
        if message == "bye":
            await ws.close(4001, "as you say")
        else:
            await ws.send(message)
    print("the socket has ended")
`)
	if _, body := f.do("GET", "/", ""); body != "plain" {
		t.Errorf("without a WebSocket: %q", body)
	}
	open := func(path string) *websocket.Conn {
		d := websocket.Dialer{NetDialContext: f.dial}
		c, resp, err := d.Dial("ws://f"+path, http.Header{"S0-Route": {"r"}})
		if err != nil {
			t.Fatalf("%s: %v, %v", path, err, resp)
		}
		t.Cleanup(func() { c.Close() })
		c.SetReadDeadline(time.Now().Add(time.Minute))
		return c
	}
	c := open("/")
	read := func(want string) {
		t.Helper()
		if _, b, err := c.ReadMessage(); err != nil || string(b) != want {
			t.Fatalf("%.80q, %v; want %.80q", b, err, want)
		}
	}
	read(`{"route": "r"}`)
	for _, text := range []string{"é", "", strings.Repeat("x", 200), strings.Repeat("y", 1<<20)} {
		if err := c.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
			t.Fatal(err)
		}
		read(text)
	}
	w, _ := c.NextWriter(websocket.BinaryMessage) // gorilla flushes what is larger than its buffer as fragments
	for range 3 {
		w.Write(bytes.Repeat([]byte{1}, 5000))
	}
	w.Close()
	read(strings.Repeat("\x01", 15000))
	pong := make(chan string, 1)
	c.SetPongHandler(func(s string) error { pong <- s; return nil })
	c.WriteControl(websocket.PingMessage, []byte("p"), time.Now().Add(time.Minute))
	c.WriteMessage(websocket.TextMessage, []byte("bye"))
	if _, _, err := c.ReadMessage(); !websocket.IsCloseError(err, 4001) {
		t.Errorf("closed with %v", err)
	}
	if got := <-pong; got != "p" {
		t.Errorf("pong %q", got)
	}
	for _, path := range []string{"/raise", "/connection"} {
		if _, _, err := open(path).ReadMessage(); !websocket.IsCloseError(err, 1011) {
			t.Errorf("%s: %v", path, err)
		}
	}
	for name, frame := range map[string]string{
		"unmasked": "\x81\x01a", "reserved bit": "\xc1\x81\x00\x00\x00\x00a", "long ping": "\x89\xfe\x00\x7e\x00\x00\x00\x00", "no start": "\x80\x81\x00\x00\x00\x00a",
		"too long": "\x82\xff\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00", "bad UTF-8": "\x81\x81\x00\x00\x00\x00\xff",
	} {
		c := open("/")
		c.ReadMessage()
		c.NetConn().Write([]byte(frame))
		want := map[string]int{"too long": 1009, "bad UTF-8": 1007}[name]
		if want == 0 {
			want = 1002
		}
		if _, _, err := c.ReadMessage(); !websocket.IsCloseError(err, want) {
			t.Errorf("%s: %v, want %d", name, err, want)
		}
	}
	run(t, "def handler(request):\n    return 1\n").refused("function_no_websocket", "/",
		"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version", "13")
}

func TestRunnerLeavesTheInputAlone(t *testing.T) {
	t.Parallel()
	f := run(t, "import sys\ndef handler(request):\n    print('printed'); return sys.stdin.read()\n")
	if _, body := f.do("GET", "/", ""); body != "" {
		t.Errorf("the function's stdin holds %q", body)
	}
	for deadline := time.Now().Add(time.Minute); f.output.String() != "printed\n"; {
		if time.Now().After(deadline) {
			t.Fatalf("printed %q", f.output)
		}
	}
}
