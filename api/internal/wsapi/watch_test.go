package wsapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
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

// watcher is a client of a server whose sandbox watches as the script says.
type watcher struct {
	*websocket.Conn
	t    *testing.T
	open *atomic.Int64 // watches that procd serves
}

type lines struct {
	w   http.ResponseWriter
	ctx context.Context
}

func (l lines) send(v any) error {
	if err := json.NewEncoder(l.w).Encode(v); err != nil {
		return err
	}
	return http.NewResponseController(l.w).Flush()
}

func (l lines) raw(s string) {
	io.WriteString(l.w, s)
	http.NewResponseController(l.w).Flush()
}

func watching(t *testing.T, do func(path string, recursive bool, out lines)) *watcher {
	t.Helper()
	open := new(atomic.Int64)
	proc := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Path != "/files/watch" {
			t.Errorf("procd was asked to %s %s", r.Method, r.URL.Path)
		}
		open.Add(1)
		defer open.Add(-1)
		q := r.URL.Query()
		if q.Get("path") == "/missing" {
			w.WriteHeader(http.StatusConflict)
			json.NewEncoder(w).Encode(procapi.Error{Code: "path_not_directory", Message: "the path is no directory"})
			return
		}
		do(q.Get("path"), q.Get("recursive") == "true", lines{w, r.Context()})
	})
	s, to := watchServer(t, proc)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.Watch(w, r, to); err != nil {
			http.Error(w, errdefs.From(err).Message, errdefs.From(err).Kind.HTTPStatus())
		}
	}))
	t.Cleanup(func() {
		s.Close()
		srv.Close()
	})
	conn, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(srv.URL, "http"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	return &watcher{conn, t, open}
}

func watchServer(t *testing.T, proc http.Handler) (*Server, dataplane.Target) {
	t.Helper()
	db, err := store.Open(t.Context(), s0test.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	node := fakenode.Start(t, &fakenode.Node{Proc: proc})
	table, log := placement.New(), slog.New(slog.DiscardHandler)
	set := nodes.New(nodes.Config{
		Sockets: []string{node.Socket}, Cluster: "local", Table: table, Log: log,
		OnSync: func(string) {}, OnEnd: func(string, sandbox.ID) {},
	})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- set.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		<-done
	})
	id, err := sandbox.NewID("local")
	if err != nil {
		t.Fatal(err)
	}
	team := uuid.New()
	node.Adopt(&nodeapi.Sandbox{Id: string(id), Generation: 1, State: "running", Team: team.String()})
	fakenode.Eventually(t, "the sandbox is listed", func() bool {
		_, _, ok := table.Lookup(id)
		return ok
	})
	return New(Config{
		Plane:       dataplane.New(dataplane.Config{Store: db, Table: table, Nodes: set}),
		CheckOrigin: func(*http.Request) bool { return true }, Log: log,
	}), dataplane.Target{Team: team, ID: id}
}

func (w *watcher) say(format string, args ...any) {
	w.t.Helper()
	if err := w.WriteMessage(websocket.TextMessage, fmt.Appendf(nil, format, args...)); err != nil {
		w.t.Fatal(err)
	}
}

// next is the next message, without its watch_id, which is given beside it.
func (w *watcher) next() (message, id string) {
	w.t.Helper()
	_, b, err := w.ReadMessage()
	if err != nil {
		w.t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		w.t.Fatal(err)
	}
	id, _ = m["watch_id"].(string)
	delete(m, "watch_id")
	b, _ = json.Marshal(m)
	return string(b), id
}

func (w *watcher) want(message string) (id string) {
	w.t.Helper()
	got, id := w.next()
	if got != message {
		w.t.Errorf("the server says %s, want %s", got, message)
	}
	return id
}

// idle watches tell that they watch and then wait for their end.
func idle(path string, _ bool, out lines) {
	out.send(procapi.WatchLine{Path: path})
	<-out.ctx.Done()
}

func TestWatchSpeaksTheContract(t *testing.T) {
	t.Parallel()
	more := make(chan procapi.WatchLine)
	w := watching(t, func(path string, recursive bool, out lines) {
		out.send(procapi.WatchLine{Path: path + fmt.Sprint(recursive)})
		for l := range more {
			out.send(l)
		}
	})
	w.say(`{"action":"subscribe","path":"/a","recursive":true}`)
	id := w.want(`{"path":"/atrue","type":"subscribed"}`)
	if len(id) != len("watch-00000000") || !strings.HasPrefix(id, "watch-") {
		t.Errorf("watch_id %q", id)
	}
	for line, want := range map[procapi.WatchLine]string{
		{Event: "create", Path: "/a/b\n\x01"}:                 `{"event":"create","path":"/a/b\n\u0001","type":"event"}`,
		{Event: "rename", Path: "/a/c", OldPath: "/a/b"}:      `{"event":"rename","old_path":"/a/b","path":"/a/c","type":"event"}`,
		{Event: "invalidate", Path: "/a", Reason: "overflow"}: `{"event":"invalidate","path":"/a","reason":"overflow","type":"event"}`,
	} {
		more <- line
		if got := w.want(want); got != id {
			t.Errorf("the event is of watch %q", got)
		}
	}
	close(more) // the directory has gone
	if got := w.want(`{"type":"unsubscribed"}`); got != id {
		t.Errorf("unsubscribed %q", got)
	}
}

func TestUnsubscribeEndsOneWatchAlone(t *testing.T) {
	t.Parallel()
	w := watching(t, idle)
	w.say(`{"action":"subscribe","path":"/a"}`)
	a := w.want(`{"path":"/a","type":"subscribed"}`)
	w.say(`{"action":"subscribe","path":"/b"}`)
	b := w.want(`{"path":"/b","type":"subscribed"}`)
	w.say(`{"action":"unsubscribe","watch_id":%q}`, a)
	if got := w.want(`{"type":"unsubscribed"}`); got != a {
		t.Errorf("unsubscribed %q, want %q", got, a)
	}
	fakenode.Eventually(t, "one watch is left", func() bool { return w.open.Load() == 1 })
	w.say(`{"action":"unsubscribe","watch_id":%q}`, a)
	w.want(`{"code":"not_found","error":"unknown watch_id","type":"error"}`)
	w.say(`{"action":"unsubscribe","watch_id":%q}`, b)
	w.want(`{"type":"unsubscribed"}`)
	fakenode.Eventually(t, "no watch is left", func() bool { return w.open.Load() == 0 })
}

// Who unsubscribes twice is answered twice, however soon.
func TestEachUnsubscriptionHasAnAnswer(t *testing.T) {
	t.Parallel()
	w := watching(t, idle)
	for range 20 {
		w.say(`{"action":"subscribe","path":"/a"}`)
		a := w.want(`{"path":"/a","type":"subscribed"}`)
		w.say(`{"action":"unsubscribe","watch_id":%q}`, a)
		w.say(`{"action":"unsubscribe","watch_id":%q}`, a)
		first, _ := w.next()
		second, _ := w.next()
		got := []string{first, second}
		slices.Sort(got)
		if want := []string{`{"code":"not_found","error":"unknown watch_id","type":"error"}`, `{"type":"unsubscribed"}`}; !slices.Equal(got, want) {
			t.Fatalf("the server says %s, want %s", got, want)
		}
	}
}

// Who is told that a watch has ended has its place for another one.
func TestAWatchThatEndedTakesNoPlace(t *testing.T) {
	t.Parallel()
	w := watching(t, idle)
	var last string
	for range watchesPerSocket {
		w.say(`{"action":"subscribe","path":"/a"}`)
		last = w.want(`{"path":"/a","type":"subscribed"}`)
	}
	for range 200 {
		w.say(`{"action":"unsubscribe","watch_id":%q}`, last)
		w.want(`{"type":"unsubscribed"}`)
		w.say(`{"action":"subscribe","path":"/a"}`)
		last = w.want(`{"path":"/a","type":"subscribed"}`)
	}
}

func TestWatchErrors(t *testing.T) {
	t.Parallel()
	w := watching(t, idle)
	w.say(`{"action":"subscribe","path":"/missing"}`)
	w.want(`{"code":"path_not_directory","error":"the path is no directory","path":"/missing","type":"error"}`)
	for _, bad := range []string{`x`, `{}`, `{"action":"dance"}`, `[]`, `{"action":"subscribe"}`, `{"action":"subscribe","path":""}`, `{"action":"unsubscribe"}`, `{"action":1}`} {
		w.say("%s", bad)
		if got, _ := w.next(); !strings.Contains(got, `"type":"error"`) || !strings.Contains(got, `"code":"bad_request"`) {
			t.Errorf("to %s the server says %s", bad, got)
		}
	}
	w.say(`{"action":"subscribe","path":"/a"}`) // and goes on
	w.want(`{"path":"/a","type":"subscribed"}`)
}

func TestA11_A23_WatchesAreBounded(t *testing.T) {
	t.Parallel()
	w := watching(t, idle)
	for range watchesPerSocket {
		w.say(`{"action":"subscribe","path":"/a"}`)
		w.want(`{"path":"/a","type":"subscribed"}`)
	}
	w.say(`{"action":"subscribe","path":"/a"}`)
	if got, _ := w.next(); !strings.Contains(got, "too many watches") {
		t.Errorf("one more: %s", got)
	}
	w.say(`{"action":"subscribe","path":"/%s"}`, strings.Repeat("x", maxWatchMessageBytes))
	if _, code, _ := rest(w.Conn); code != websocket.CloseMessageTooBig {
		t.Errorf("a message above the limit: close code %d", code)
	}
	fakenode.Eventually(t, "all watches end with their socket", func() bool { return w.open.Load() == 0 })
}

// B13: what is no line of a watch ends the session, and costs no memory.
func TestB13_WatchLinesAreChecked(t *testing.T) {
	t.Parallel()
	for name, line := range map[string]string{
		"no JSON": "x\n", "no path": `{"event":"create"}` + "\n", "an unknown event": `{"event":"explode","path":"/x"}` + "\n",
		"an unknown reason": `{"event":"invalidate","path":"/x","reason":"x"}` + "\n", "subscribed twice": `{"path":"/x"}` + "\n",
		"an endless line": `{"event":"create","path":"/` + strings.Repeat("x", procapi.MaxWatchLine),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := watching(t, func(path string, _ bool, out lines) {
				out.send(procapi.WatchLine{Path: path})
				out.raw(line)
				<-out.ctx.Done()
			})
			w.say(`{"action":"subscribe","path":"/a"}`)
			w.want(`{"path":"/a","type":"subscribed"}`)
			if _, code, text := rest(w.Conn); code != websocket.CloseInternalServerErr {
				t.Errorf("close code %d %q", code, text)
			}
		})
	}
}

func TestALostSandboxAsksToSubscribeAgain(t *testing.T) {
	t.Parallel()
	w := watching(t, func(path string, _ bool, out lines) {
		out.send(procapi.WatchLine{Path: path})
		panic(http.ErrAbortHandler)
	})
	w.say(`{"action":"subscribe","path":"/a"}`)
	w.want(`{"path":"/a","type":"subscribed"}`)
	if _, code, text := rest(w.Conn); code != websocket.CloseServiceRestart {
		t.Errorf("close code %d %q", code, text)
	}
}

// A line that is cut by the loss of the sandbox is no nonsense of the sandbox's.
func TestACutLineIsALostSandbox(t *testing.T) {
	t.Parallel()
	w := watching(t, func(path string, _ bool, out lines) {
		out.send(procapi.WatchLine{Path: path})
		out.raw(`{"event":"cre`)
		panic(http.ErrAbortHandler)
	})
	w.say(`{"action":"subscribe","path":"/a"}`)
	w.want(`{"path":"/a","type":"subscribed"}`)
	_, _, err := w.ReadMessage()
	if !websocket.IsCloseError(err, websocket.CloseServiceRestart) {
		t.Errorf("the socket ends with %v", err)
	}
}

// B07: while a client does not read, its watch stands still, and others go on.
func TestB07_ASlowClientStopsItsOwnWatch(t *testing.T) {
	t.Parallel()
	var sent atomic.Int64
	w := watching(t, func(path string, _ bool, out lines) {
		out.send(procapi.WatchLine{Path: path})
		for out.send(procapi.WatchLine{Event: "create", Path: strings.Repeat("x", 4000)}) == nil {
			sent.Add(4000)
		}
	})
	w.say(`{"action":"subscribe","path":"/a"}`)
	last, still := int64(0), 0
	fakenode.Eventually(t, "the watch stands still", func() bool { // half a second, at 2 ms a look
		now := sent.Load()
		if still++; now == 0 || now != last {
			still = 0
		}
		last = now
		return still > 250
	})
	if last > 64<<20 {
		t.Errorf("%d bytes are on their way to a client that does not read", last)
	}
}
