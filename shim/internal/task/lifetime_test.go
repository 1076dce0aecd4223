package task

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"

	"s0.run/shim/internal/group"
	"s0.run/shim/internal/reap"
)

// running is a Service whose Run runs until the test's bubble ends.
func running(t *testing.T) (s *Service, exited func() bool) {
	t.Helper()
	exit := make(chan struct{}, 2)
	s = New(Config{
		Reaper:  reap.New(),
		Publish: func(context.Context, string, any) error { return nil },
		Exit:    func() { exit <- struct{}{} },
		Log:     slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return s, func() bool {
		synctest.Wait()
		return len(exit) > 0
	}
}

func TestShimThatNobodyJoinsEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, exited := running(t)
		time.Sleep(idleGrace - time.Second)
		if exited() {
			t.Error("ended before the first container could come")
		}
		time.Sleep(2 * time.Second)
		if !exited() {
			t.Error("waits for ever")
		}
	})
}

func TestShimWaitsForWhomItExpects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, exited := running(t)
		if _, err := s.Connect(t.Context(), group.Announce("a")); err != nil {
			t.Fatal(err)
		}
		// Another container's shutdown does not end it.
		if _, err := s.Shutdown(t.Context(), &taskapi.ShutdownRequest{ID: "b"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(expectGrace - time.Second)
		if exited() {
			t.Error("ended while it expected a container")
		}
		time.Sleep(2 * expectGrace)
		if !exited() {
			t.Error("expects for ever")
		}
		if _, err := s.Connect(t.Context(), group.Announce("c")); !errdefs.IsUnavailable(errgrpc.ToNative(err)) {
			t.Errorf("joining one that ends: %v", err)
		}
		if _, err := s.Create(t.Context(), &taskapi.CreateTaskRequest{ID: "c"}); !errdefs.IsUnavailable(errgrpc.ToNative(err)) {
			t.Errorf("creating in one that ends: %v", err)
		}
	})
}

func TestShutdownOfTheLastEndsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, exited := running(t)
		for _, id := range []string{"a", "b"} {
			if _, err := s.Connect(t.Context(), group.Announce(id)); err != nil {
				t.Fatal(err)
			}
		}
		for _, id := range []string{"a", "b"} {
			if exited() {
				t.Error("ended while it expected a container")
			}
			if _, err := s.Shutdown(t.Context(), &taskapi.ShutdownRequest{ID: id}); err != nil {
				t.Fatal(err)
			}
		}
		if !exited() {
			t.Error("did not end")
		}
	})
}

// containerd asks for a pid in its Wait, which may come when another call has deleted the
// container: that is no container to wait for.
func TestWhoAsksForAPidAnnouncesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, exited := running(t)
		if _, err := s.Connect(t.Context(), group.Announce("a")); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Connect(t.Context(), &taskapi.ConnectRequest{ID: "a"}); err != nil {
			t.Errorf("the pid of one that is expected: %v", err)
		}
		if _, err := s.Connect(t.Context(), &taskapi.ConnectRequest{ID: "gone"}); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
			t.Errorf("the pid of one that nobody knows: %v", err)
		}
		if _, err := s.Shutdown(t.Context(), &taskapi.ShutdownRequest{ID: "a"}); err != nil {
			t.Fatal(err)
		}
		if !exited() {
			t.Error("did not end")
		}
	})
}

func TestFailedCreateIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, exited := running(t)
		_, err := s.Create(t.Context(), &taskapi.CreateTaskRequest{ID: "a", Bundle: "/no/such"})
		if err == nil || !strings.Contains(err.Error(), "creating a") {
			t.Errorf("create without a bundle: %v", err)
		}
		for _, do := range []func() error{
			func() error { _, err := s.State(t.Context(), &taskapi.StateRequest{ID: "a"}); return err },
			func() error { _, err := s.Pids(t.Context(), &taskapi.PidsRequest{ID: "a"}); return err },
			func() error { _, err := s.Delete(t.Context(), &taskapi.DeleteRequest{ID: "a"}); return err },
			func() error { _, err := s.Kill(t.Context(), &taskapi.KillRequest{ID: "a"}); return err },
		} {
			if err := do(); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
				t.Errorf("asking for it: %v, want not found", err)
			}
		}
		time.Sleep(idleGrace + time.Second)
		if !exited() {
			t.Error("did not end")
		}
	})
}
