package daemon

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"s0.run/internal/s0test/freeport"
)

func TestLoadFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s0.yaml")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	flags := pflag.NewFlagSet("x", pflag.ContinueOnError)
	listen := flags.String("listen", "default", "")
	hosts := flags.StringSlice("allowed-hosts", nil, "")
	pool := flags.Int("pool-min", 1, "")
	if err := flags.Parse([]string{"--listen", "from-flag"}); err != nil {
		t.Fatal(err)
	}
	write("listen: from-file\npool-min: 7\nallowed-hosts: [a, b]\n")
	if err := LoadFile(flags, path); err != nil {
		t.Fatal(err)
	}
	if *listen != "from-flag" || *pool != 7 || len(*hosts) != 2 {
		t.Errorf("listen %q, pool-min %d, allowed-hosts %v", *listen, *pool, *hosts)
	}
	for text, want := range map[string]string{"lisen: x\n": `unknown key "lisen"`, "pool-min: many\n": "pool-min", "[": "s0.yaml"} {
		write(text)
		flags := pflag.NewFlagSet("x", pflag.ContinueOnError)
		flags.Int("pool-min", 1, "")
		if err := LoadFile(flags, path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q in it", text, err, want)
		}
	}
}

func TestC07_ListenUnixIsPrivateAndExclusive(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	l, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the socket: %v, %v", info.Mode(), err)
	}
	if _, err := ListenUnix(path); err == nil {
		t.Error("a second listener replaced a living one")
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as after a kill -9
	l.Close()
	l, err = ListenUnix(path)
	if err != nil {
		t.Fatalf("a dead process's socket was not replaced: %v", err)
	}
	l.Close()
}

func TestServeStopsWithItsContext(t *testing.T) {
	t.Parallel()
	port, err := freeport.Find() // which is nobody else's once it is free again
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })}
	go func() { done <- Serve(ctx, srv, l, time.Minute) }()
	resp, err := http.Get("http://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("the port still answers")
	}
}

func TestNewLogger(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	log, err := NewLogger(&b, "info")
	if err != nil {
		t.Fatal(err)
	}
	log.Debug("hidden")
	log.Info("shown", "sandbox", "id")
	if s := b.String(); strings.Contains(s, "hidden") || !strings.Contains(s, `"sandbox":"id"`) {
		t.Errorf("logged %q", s)
	}
	if _, err := NewLogger(&b, "loud"); err == nil {
		t.Error("level loud was accepted")
	}
}
