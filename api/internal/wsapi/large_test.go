package wsapi

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/gorilla/websocket"

	"s0.run/internal/procapi"
)

// counting tells how much input each frame brings.
func counting(in io.Reader, p *procd) {
	for {
		typ, payload, err := procapi.ReadFrame(in, nil)
		if err != nil {
			return
		}
		if typ == procapi.FrameInput {
			_, data, _ := procapi.Input(payload)
			p.output(procapi.FramePTY, fmt.Sprint(len(data)))
		}
	}
}

// controlInput is an input of which every byte takes six in JSON.
func controlInput(t *testing.T, n int) []byte {
	t.Helper()
	b, err := json.Marshal(map[string]string{"type": "input", "data": strings.Repeat("\x01", n)})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// An input may have as many bytes as procd takes, however long it is as JSON.
func TestLargeInputOfControlCharacters(t *testing.T) {
	t.Parallel()
	f := serve(t, counting)
	conn := f.dial(t, "ctx-00000001")
	const most = procapi.MaxInputBytes - 300
	for range largeMessagesPerTeam + 1 { // each gives its room back
		if err := conn.WriteMessage(websocket.TextMessage, controlInput(t, most)); err != nil {
			t.Fatal(err)
		}
		if _, b, err := conn.ReadMessage(); err != nil || !strings.Contains(string(b), fmt.Sprint(most)) {
			t.Fatalf("%s: %v", b, err)
		}
	}
	conn.WriteMessage(websocket.TextMessage, controlInput(t, procapi.MaxInputBytes+1))
	if _, code, text := rest(conn); code != websocket.ClosePolicyViolation {
		t.Errorf("closed with %d %q", code, text)
	}
}

// A11: a team has few large messages under way at once; others are not held up.
func TestA11_LargeMessagesAreFew(t *testing.T) {
	t.Parallel()
	f := serve(t, counting)
	conn := f.dial(t, "ctx-00000001")
	var team uuid.UUID
	for _, sb := range f.node.Sandboxes() {
		team = uuid.MustParse(sb.GetTeam())
	}
	var leave []func()
	for range largeMessagesPerTeam {
		l, ok := f.large.Enter(team)
		if !ok {
			t.Fatal("there is no room")
		}
		leave = append(leave, l)
	}
	conn.WriteMessage(websocket.TextMessage, []byte(`{"type":"input","data":"x"}`))
	if _, b, err := conn.ReadMessage(); err != nil || !strings.Contains(string(b), `"1"`) {
		t.Fatalf("%s: %v", b, err)
	}
	conn.WriteMessage(websocket.TextMessage, controlInput(t, procapi.MaxInputBytes/2))
	if _, code, text := rest(conn); code != websocket.CloseTryAgainLater {
		t.Errorf("closed with %d %q", code, text)
	}
	for _, l := range leave {
		l()
	}
}
