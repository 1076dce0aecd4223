package client

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// FileWatch is a WebSocket of file watches. One goroutine may read while others
// subscribe; the caller closes it.
type FileWatch struct {
	conn *websocket.Conn
	stop func() bool // ends the watch over the context that WatchFiles was given

	writeMu sync.Mutex // a WebSocket takes one writer at a time
}

// WatchFiles is Watch of a sandbox's files.
func (c *Client) WatchFiles(ctx context.Context, sandboxID string) (*FileWatch, error) {
	return c.Files(sandboxID).Watch(ctx)
}

// Watch opens a WebSocket that watches nothing yet. Cancelling ctx ends it.
func (f Files) Watch(ctx context.Context) (*FileWatch, error) {
	u := f.c.url(call{path: f.path + "/watch"})
	u.Scheme = strings.Replace(u.Scheme, "http", "ws", 1)
	conn, resp, err := f.c.dialer().DialContext(ctx, u.String(), f.c.header(nil))
	if err != nil {
		if resp != nil {
			defer resp.Body.Close()
			return nil, apiError(resp)
		}
		return nil, fmt.Errorf("watching files: %w", err)
	}
	conn.SetReadLimit(maxMessageBytes)
	// Closing the connection is the one way to wake a reader.
	return &FileWatch{conn: conn, stop: context.AfterFunc(ctx, func() { conn.Close() })}, nil
}

// Subscribe watches a directory, which is made if there is none. [FileWatch.Next]
// tells that it is `subscribed`, or the `error`.
func (w *FileWatch) Subscribe(path string, recursive bool) error {
	return w.send(FileWatchClientMessage{Action: FileWatchClientMessageActionSubscribe, Path: &path, Recursive: &recursive})
}

// Unsubscribe ends one watch; [FileWatch.Next] tells when it has.
func (w *FileWatch) Unsubscribe(watchID string) error {
	return w.send(FileWatchClientMessage{Action: FileWatchClientMessageActionUnsubscribe, WatchID: &watchID})
}

// Next waits for the next message. It returns io.EOF once the server has closed the
// WebSocket in order.
func (w *FileWatch) Next() (FileWatchServerMessage, error) {
	var m FileWatchServerMessage
	_, data, err := w.conn.ReadMessage()
	if err != nil {
		return m, closeError(err)
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, fmt.Errorf("message of the server: %w", err)
	}
	return m, nil
}

// Close ends all watches.
func (w *FileWatch) Close() error {
	w.stop()
	// The goodbye is a courtesy: the connection is closed either way.
	_ = w.conn.WriteControl(websocket.CloseMessage,
		websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(closeTimeout))
	return w.conn.Close()
}

func (w *FileWatch) send(m FileWatchClientMessage) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	w.writeMu.Lock()
	defer w.writeMu.Unlock()
	w.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	return w.conn.WriteMessage(websocket.TextMessage, b)
}
