// Package daemon is what every s0 daemon does alike: a logger, configuration
// from flags and a YAML file of the same names, and the admin endpoints.
//
// It starts nothing by itself and owns no state; callers own the servers and
// the goroutines that they make from it.
package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// NewLogger makes the JSON logger of a daemon. level is debug, info, warn or error.
func NewLogger(w io.Writer, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log level %q: want debug, info, warn or error", level)
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: l})), nil
}

// LoadFile sets every flag that the command line left alone from a YAML file
// whose keys are the flags' names. An unknown key is an error that names it.
func LoadFile(flags *pflag.FlagSet, path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading configuration: %w", err)
	}
	values := map[string]any{}
	if err := yaml.Unmarshal(b, &values); err != nil {
		return fmt.Errorf("configuration %s: %w", path, err)
	}
	for name, v := range values {
		f := flags.Lookup(name)
		if f == nil {
			return fmt.Errorf("configuration %s: unknown key %q; `--help` lists the flags, which are the keys", path, name)
		}
		if f.Changed {
			continue
		}
		if err := flags.Set(name, scalar(v)); err != nil {
			return fmt.Errorf("configuration %s: %s: %w", path, name, err)
		}
	}
	return nil
}

// LoadYAML decodes a YAML file. A key that into has no field for is an error that
// names it.
func LoadYAML(path string, into any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading configuration: %w", err)
	}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("configuration %s: %w", path, err)
	}
	return nil
}

func scalar(v any) string {
	list, ok := v.([]any)
	if !ok {
		return fmt.Sprint(v)
	}
	parts := make([]string, len(list))
	for i, e := range list {
		parts[i] = fmt.Sprint(e)
	}
	return strings.Join(parts, ",")
}

// ListenUnix listens on a unix socket that only this user may open. A socket
// file that an earlier process left behind is replaced; one that still answers
// is an error, for two daemons must not share a state directory.
func ListenUnix(path string) (net.Listener, error) { return listenUnix("unix", path) }

// ListenUnixPacket is the same for packets, which may carry descriptors.
func ListenUnixPacket(path string) (*net.UnixListener, error) { return listenUnix("unixpacket", path) }

func listenUnix(network, path string) (*net.UnixListener, error) {
	if c, err := net.DialTimeout(network, path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("listening on %s: another process answers there", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	l, err := net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// AdminMux serves pprof, for a unix socket alone (H05).
func AdminMux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// Serve runs srv on l until ctx ends, then gives running requests grace to
// finish. It returns nil after a stop that ctx asked for.
func Serve(ctx context.Context, srv *http.Server, l net.Listener, grace time.Duration) error {
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	if srv.Shutdown(stop) != nil {
		srv.Close()
	}
	<-failed
	return nil
}
