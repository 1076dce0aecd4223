package cli

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"s0.run/api/client"
)

// A script is what a server does with one connection after another, and with those
// behind the last as with that.
type script []func(conn *websocket.Conn)

// says sends messages; a connection that is cut afterwards breaks, others are closed
// in order.
func says(cut bool, messages ...string) func(*websocket.Conn) {
	return func(conn *websocket.Conn) {
		for _, m := range messages {
			conn.WriteMessage(websocket.TextMessage, []byte(m))
		}
		if cut {
			conn.NetConn().Close()
			return
		}
		conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""))
		conn.ReadMessage()
	}
}

// wired is a wire to a server with a script, and how often it was connected to.
func wired(t *testing.T, s script) (w *wire, connected *atomic.Int32, offsets chan string) {
	t.Helper()
	connected, offsets = new(atomic.Int32), make(chan string, 1000)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := int(connected.Add(1))
		offsets <- r.URL.Query().Get("offset")
		do := s[min(n, len(s))-1]
		if do == nil {
			http.Error(w, `{"success":false,"error":{"code":"context_not_found","message":"gone"}}`, http.StatusNotFound)
			return
		}
		conn, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer conn.Close()
		do(conn)
	}))
	t.Cleanup(server.Close)
	c, err := client.New(client.Config{BaseURL: server.URL, Token: "token", HTTPClient: &http.Client{}})
	if err != nil {
		t.Fatal(err)
	}
	return &wire{
		attach: func(ctx context.Context, _ *client.Client, offset uint64) (*client.Stream, error) {
			return c.AttachAt(ctx, "sb", "cx", offset)
		},
		greet: func(*client.Stream) {}, broken: func() {}, mends: true,
	}, connected, offsets
}

func followed(t *testing.T, w *wire) (string, client.Exit, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := w.open(ctx, nil); err != nil {
		t.Fatal(err)
	}
	defer w.close()
	var out strings.Builder
	exit, err := w.copy(ctx, &out, io.Discard)
	return out.String(), exit, err
}

const (
	saysOne = `{"type":"output","source":"stdout","data":"one "}`
	saysTwo = `{"type":"output","source":"stdout","data":"two"}`
	saysGap = `{"type":"gap","lost_bytes":7}`
	ended   = `{"type":"done","exit_code":3,"state":"stopped"}`
)

func TestWireGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	w, _, offsets := wired(t, script{says(true, saysOne), says(true), says(false, saysTwo, ended)})
	out, exit, err := followed(t, w)
	if out != "one two" || exit.Code != 3 || err != nil {
		t.Errorf("%q, %+v, %v", out, exit, err)
	}
	for _, want := range []string{"", "4", "4"} {
		if got := <-offsets; got != want {
			t.Errorf("attached at %q, want %q", got, want)
		}
	}
}

// What was missing before a break is missing after it.
func TestWireRemembersWhatIsMissing(t *testing.T) {
	t.Parallel()
	w, _, offsets := wired(t, script{says(true, saysOne, saysGap), says(false, saysTwo, ended)})
	out, exit, err := followed(t, w)
	var lost *client.OutputLostError
	if out != "one two" || exit.Code != 3 || !errors.As(err, &lost) || lost.Bytes != 7 {
		t.Errorf("%q, %+v, %v", out, exit, err)
	}
	<-offsets
	if got := <-offsets; got != "11" {
		t.Errorf("attached at %q", got)
	}
}

func TestWireKnowsWhatIsOver(t *testing.T) {
	t.Parallel()
	w, connected, _ := wired(t, script{says(true, saysOne), nil})
	var no *client.APIError
	if _, _, err := followed(t, w); !errors.As(err, &no) || connected.Load() != 2 {
		t.Errorf("%v after %d connections", err, connected.Load())
	}
	w, connected, _ = wired(t, script{says(true, saysOne)})
	w.mends = false // input may be lost
	if _, _, err := followed(t, w); err == nil || connected.Load() != 1 {
		t.Errorf("%v after %d connections", err, connected.Load())
	}
}

// A server that takes every connection and breaks it is not asked forever, nor fast.
func TestWireGivesUp(t *testing.T) {
	t.Parallel()
	w, connected, _ := wired(t, script{says(true, saysOne), says(true)})
	w.limit = 4 * mendPause
	if out, _, err := followed(t, w); out != "one " || err == nil || connected.Load() > 6 {
		t.Errorf("%q, %v after %d connections", out, err, connected.Load())
	}
}

// Ctrl-C means something else while nothing can be told to the command.
func TestCtrlCGivesABrokenWireUp(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	w := &wire{mends: true}
	w.readFrom(strings.NewReader("typed\x03"), cancel)
	if !errors.Is(context.Cause(ctx), errBroken) {
		t.Errorf("the cause is %v", context.Cause(ctx))
	}
}

func TestAPanicGivesTheTerminalBack(t *testing.T) {
	t.Parallel()
	restored := false
	defer func() {
		if p := recover(); p != "oops" || !restored {
			t.Errorf("panicked with %v; restored: %v", p, restored)
		}
	}()
	restoring(func() { restored = true }, func() { panic("oops") })
}
