package images

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"s0.run/internal/errdefs"
)

func TestNormalize(t *testing.T) {
	t.Parallel()
	digest := "sha256:" + strings.Repeat("a", 64)
	for ref, want := range map[string]string{
		"python":                          "docker.io/library/python:latest",
		"python:3.12":                     "docker.io/library/python:3.12",
		"me/app":                          "docker.io/me/app:latest",
		"127.0.0.1:5000/s0/default:1":     "127.0.0.1:5000/s0/default:1",
		"localhost/x":                     "localhost/x:latest",
		"reg.example/a/b@" + digest:       "reg.example/a/b@" + digest,
		"reg.example/a/b:tag@" + digest:   "reg.example/a/b@" + digest,
		"":                                "",
		"http://reg.example/a":            "",
		"reg.example/a b":                 "",
		"reg.example/a@sha256:short":      "",
		"reg.example/a:" + "bad tag":      "",
		"reg.example/a:-":                 "",
		"reg.example/../../etc":           "",
		"x/" + strings.Repeat("y", 1<<10): "",
	} {
		got, err := normalize(ref)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("normalize(%q) = %q, %v; want %q", ref, got, err, want)
		}
		if err != nil && !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("normalize(%q): %v is not the caller's fault", ref, err)
		}
	}
}

func TestC02_ConfigIsBounded(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]ocispec.ImageConfig{
		"many":  {Env: make([]string, maxEntries+1)},
		"long":  {Env: []string{strings.Repeat("x", maxEntryBytes+1)}},
		"nul":   {Env: []string{"A=a\x00b"}},
		"bytes": {Env: []string{"A=\xff"}},
	} {
		if check(c) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := check(ocispec.ImageConfig{Env: []string{"A=1"}, Cmd: []string{"sh"}}); err != nil {
		t.Error(err)
	}
	if got := environment([]string{"A=1", "broken", "=x", "B="}); len(got) != 2 || got[0] != "A=1" || got[1] != "B=" {
		t.Errorf("environment %q", got)
	}
}

func TestD12_TooBigIsRefusedBeforeItsLayersAreFetched(t *testing.T) {
	t.Parallel()
	l := defaultLimits
	layers := func(n int, size int64) []ocispec.Descriptor {
		all := make([]ocispec.Descriptor, n)
		for i := range all {
			all[i] = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Size: size}
		}
		return all
	}
	for name, c := range map[string]struct {
		children []ocispec.Descriptor
		refused  bool
	}{
		"small":         {layers(3, 1<<20), false},
		"many":          {layers(l.layers+1, 1), true},
		"big":           {layers(2, l.bytes/2+1), true},
		"overflow":      {layers(3, 1<<62), true},
		"wraps around":  {append(layers(100, l.bytes), layers(1, math.MaxInt64)...), true},
		"negative size": {append(layers(1, -1<<62), layers(1, l.bytes)...), true},
		"big config":    {[]ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageConfig, Size: 1 << 40}}, false}, // refused by itself
	} {
		if err := l.manifest(c.children); (err != nil) != c.refused {
			t.Errorf("%s: %v", name, err)
		}
	}
	digest := digest.FromString("x")
	for name, c := range map[string]struct {
		desc    ocispec.Descriptor
		layer   bool
		refused bool
	}{
		"layer":            {ocispec.Descriptor{Digest: digest, Size: 1 << 30}, true, false},
		"config":           {ocispec.Descriptor{Digest: digest, Size: 1 << 10}, false, false},
		"absurd config":    {ocispec.Descriptor{Digest: digest, Size: l.metaBytes + 1}, false, true},
		"negative":         {ocispec.Descriptor{Digest: digest, Size: -1}, true, true},
		"no digest":        {ocispec.Descriptor{Size: 1}, true, true},
		"another's digest": {ocispec.Descriptor{Digest: "sha512:0", Size: 1}, true, true},
	} {
		if err := l.descriptor(c.desc, c.layer); (err != nil) != c.refused {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Who waits for a pull is told how far it is before nobody listens any more, if there is time.
func TestWaitersAreToldBeforeTheirDeadline(t *testing.T) {
	t.Parallel()
	for within, margin := range map[time.Duration]time.Duration{time.Hour: answerMargin, 2 * answerMargin: 0} {
		at := time.Now().Add(within)
		ctx, cancel := context.WithDeadline(t.Context(), at)
		defer cancel()
		waiting, cancel := untilAnswer(ctx)
		defer cancel()
		if until, ok := waiting.Deadline(); !ok || !until.Equal(at.Add(-margin)) {
			t.Errorf("with %v: waits until %v before the deadline, want %v", within, at.Sub(until), margin)
		}
	}
}

func TestClassify(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		kind errdefs.Kind
	}{
		{cerrdefs.ErrNotFound, errdefs.Unprocessable},
		{docker.ErrInvalidAuthorization, errdefs.Unprocessable},
		{hostile("it is too big"), errdefs.Unprocessable},
		{context.DeadlineExceeded, errdefs.Timeout},
		{errors.New("dial tcp 10.0.0.1: connection refused"), errdefs.Unavailable},
	} {
		err := classify("reg/x", c.err)
		if !errdefs.Is(err, c.kind) {
			t.Errorf("classify(%v) = %v", c.err, err)
		}
		if msg := errdefs.From(err).Message; strings.Contains(msg, "10.0.0.1") {
			t.Errorf("A22: the message %q tells an address", msg)
		}
	}
}
