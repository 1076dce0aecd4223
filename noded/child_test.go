package noded_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"s0.run/internal/failpoint"
	"s0.run/noded"
)

// childEnv holds the configuration of a noded that this test binary becomes: one
// that can be killed without killing the test.
const childEnv = "S0_TEST_NODED"

const readyLine = "noded is ready"

func TestMain(m *testing.M) {
	if cfg := os.Getenv(childEnv); cfg != "" {
		if err := child(cfg); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(raw string) error {
	var c childConfig
	if err := json.Unmarshal([]byte(raw), &c); err != nil {
		return err
	}
	if err := failpoint.Arm(os.Getenv(failpoint.EnvVar)); err != nil {
		return err
	}
	cfg := c.config()
	cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	cfg.Ready = func() { fmt.Println(readyLine) }
	return noded.Run(context.Background(), cfg)
}

// childConfig is the part of a noded.Config that is text.
type childConfig struct {
	DataDir, RunDir, Socket, ContainerdSocket, Namespace, Runsc, ProcdDir, CgroupParent string
	Registries                                                                          []string
}

func childOf(c noded.Config) childConfig {
	return childConfig{c.DataDir, c.RunDir, c.Socket, c.ContainerdSocket, c.ContainerdNamespace, c.Runsc, c.ProcdDir, c.CgroupParent, c.PlainHTTPRegistries}
}

func (c childConfig) config() noded.Config {
	return noded.Config{
		Node: "n1", Cluster: "test", DataDir: c.DataDir, RunDir: c.RunDir, Socket: c.Socket, ContainerdSocket: c.ContainerdSocket,
		ContainerdNamespace: c.Namespace, Runsc: c.Runsc, ProcdDir: c.ProcdDir, CgroupParent: c.CgroupParent, PlainHTTPRegistries: c.Registries,
	}
}

// spawn starts a noded as a process of its own, with failpoints armed. Its stop
// is a kill -9; died waits for it to die by itself.
func (m *machine) spawn(failpoints string) (d *daemon, died func()) {
	m.Helper()
	raw, err := json.Marshal(childOf(m.cfg))
	if err != nil {
		m.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(raw), failpoint.EnvVar+"="+failpoints)
	cmd.Stderr = testLog{m}
	out, err := cmd.StdoutPipe()
	if err != nil {
		m.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		m.Fatal(err)
	}
	ready, ended := make(chan struct{}), make(chan struct{})
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if strings.TrimSpace(lines.Text()) == readyLine {
				close(ready)
			}
		}
		_ = cmd.Wait() // it is killed, one way or the other
		close(ended)
	}()
	d = &daemon{t: m, cfg: m.cfg}
	d.connect()
	d.stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		<-ended
		d.http.CloseIdleConnections()
	})
	m.Cleanup(d.stop)
	select {
	case <-ready:
	case <-ended:
		m.Fatal("the child ended before it was ready")
	case <-time.After(patience):
		m.Fatal("the child is not ready")
	}
	return d, func() {
		m.Helper()
		select {
		case <-ended:
		case <-time.After(patience):
			m.Fatalf("the child lives on past %s", failpoints)
		}
	}
}
