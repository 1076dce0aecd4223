package client_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/gorilla/websocket"

	"s0.run/api/client"
)

func TestWatchFiles(t *testing.T) {
	t.Parallel()
	c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/sandboxes/sb/files/watch") {
			http.Error(w, "wrong request", http.StatusBadRequest)
			return
		}
		conn, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer conn.Close()
		for range 2 {
			_, msg, err := conn.ReadMessage()
			if err != nil {
				t.Error(err)
			}
			conn.WriteMessage(websocket.TextMessage, []byte(`{"type":"error","error":"`+strings.ReplaceAll(string(msg), `"`, `'`)+`"}`))
		}
		texts(conn, `{"type":"event","watch_id":"w","event":"rename","path":"/b","old_path":"/a","newer":1}`)
		closing(conn, websocket.CloseNormalClosure, "")
	})
	watch, err := c.WatchFiles(t.Context(), "sb")
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Close()
	if err := errors.Join(watch.Subscribe("/d", true), watch.Unsubscribe("w")); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"{'action':'subscribe','path':'/d','recursive':true}", "{'action':'unsubscribe','watch_id':'w'}"} {
		if m, err := watch.Next(); err != nil || *m.Error != want {
			t.Errorf("the client sent %v (%v), want %s", m.Error, err, want)
		}
	}
	if m, err := watch.Next(); err != nil || *m.Event != client.FileWatchServerMessageEventRename || *m.Path != "/b" || *m.OldPath != "/a" {
		t.Errorf("event %+v, %v", m, err)
	}
	if _, err := watch.Next(); err != io.EOF {
		t.Errorf("the end: %v", err)
	}
}

func TestSearchFiles(t *testing.T) {
	t.Parallel()
	answer := `{"match":{"path":"/a","type":"file","line":3}}` + "\n" + `{"newer":{}}` + "\n"
	summary := `{"summary":{"matches":1,"files":2,"bytes":3,"skipped":0}}` + "\n"
	for name, whole := range map[string]bool{"whole": true, "broken off": false} {
		c := newClient(t, func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, answer)
			if whole {
				io.WriteString(w, summary)
			}
		})
		var found []string
		got, err := c.SearchFiles(t.Context(), "sb", client.FileSearchRequest{}, func(m client.FileSearchMatch) error {
			found = append(found, m.Path)
			return nil
		})
		if len(found) != 1 || found[0] != "/a" {
			t.Errorf("%s: found %q", name, found)
		}
		if whole && (err != nil || got.Files != 2) || !whole && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}
