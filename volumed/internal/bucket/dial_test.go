package bucket

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// told tells of each line of a log.
type told chan struct{}

func (c told) Write(p []byte) (int, error) {
	select {
	case c <- struct{}{}:
	default:
	}
	return len(p), nil
}

// A process gets connections again when accepting has failed for a while.
func TestConnectionsGoOn(t *testing.T) {
	t.Parallel()
	store, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	socket := filepath.Join(t.TempDir(), "dial")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	failed := make(told, 1)
	d := &dials{to: store.Addr().String(), listener: l, log: slog.New(slog.NewTextHandler(failed, nil))}
	d.ctx, d.cancel = context.WithCancel(t.Context())
	if err := l.SetDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	d.running.Go(d.accept)
	defer d.close()
	<-failed
	if err := l.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	conn, err := ask(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

// A mount that is being made is no obstacle to who ends, and ends with that.
func TestCloseWhileMounting(t *testing.T) {
	t.Parallel()
	m, one := New(Config{}), &mounted{}
	if err := m.reserve("one", one); err != nil {
		t.Fatal(err)
	}
	m.Close()
	if m.connect("one", one, &dials{}) {
		t.Error("it goes on")
	}
}
