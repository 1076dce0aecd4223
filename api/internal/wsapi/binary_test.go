package wsapi

import (
	"testing"

	"github.com/gorilla/websocket"

	"s0.run/internal/procapi"
)

func TestBytesAreNoCommands(t *testing.T) {
	t.Parallel()
	kill := []byte("{\"type\":\"signal\",\"signal\":\"KILL\",\"x\":\"\xff\"}")
	for kind, want := range map[int]byte{websocket.BinaryMessage: procapi.FrameInput, websocket.TextMessage: procapi.FrameSignal} {
		frame, err := toFrame(nil, kind, kill)
		if err != nil || frame[0] != want {
			t.Errorf("message of kind %d: frame of type %d, %v; want %d", kind, frame[0], err, want)
		}
	}
}
