package channel

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

const (
	// maxControlBytes bounds the answers that noded itself reads.
	maxControlBytes = 16 << 10
	// helloTimeout bounds one question; a sandbox that is starting is asked again.
	helloTimeout = 5 * time.Second
	// helloInterval paces the questions to a procd that does not answer yet.
	helloInterval = 50 * time.Millisecond
	maxHelloField = 128
	// maxRefusal bounds the words of procd's that a tenant is told: a path is among them.
	maxRefusal = 1024
)

// WaitHello waits until procd is connected and says what it is. How its warm
// processes are is another matter: see [Channel.FollowWarm].
func (c *Channel) WaitHello(ctx context.Context) (procapi.Hello, error) {
	for {
		hello, err := c.hello(ctx)
		if err == nil {
			return hello, nil
		}
		select {
		case <-ctx.Done():
			return procapi.Hello{}, err // says more than that the time is up
		case <-c.done:
			return procapi.Hello{}, err
		case <-time.After(helloInterval):
		}
	}
}

func (c *Channel) hello(ctx context.Context) (procapi.Hello, error) {
	if _, err := c.connection(ctx); err != nil {
		return procapi.Hello{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	var h procapi.Hello
	if err := c.call(ctx, http.MethodGet, procapi.PathHello, nil, &h); err != nil {
		return procapi.Hello{}, err
	}
	if !printable(h.Version) || !printable(h.BootID) {
		return procapi.Hello{}, fmt.Errorf("procd's hello: want short printable fields, got %.40q, %.40q", h.Version, h.BootID)
	}
	return h, nil
}

// Init tells procd which sandbox it is, before anybody claims it. It returns when
// procd has applied it.
func (c *Channel) Init(ctx context.Context, in procapi.Init) error {
	return c.call(ctx, http.MethodPost, procapi.PathInit, in, &struct{}{})
}

// SetEnv replaces the environment that Init gave, and mounts as [Channel.Mount] does.
func (c *Channel) SetEnv(ctx context.Context, env procapi.Env) error {
	return conflict(c.call(ctx, http.MethodPut, procapi.PathEnv, env, &struct{}{}))
}

// Mount shows what is in the portal at a place of the sandbox; Unmount ends that. A
// Conflict says why the place can't be used, or that it is in use.
func (c *Channel) Mount(ctx context.Context, m procapi.Mount) error {
	return conflict(c.call(ctx, http.MethodPost, procapi.PathMounts, m, &struct{}{}))
}

// Unmount: see [Channel.Mount].
func (c *Channel) Unmount(ctx context.Context, m procapi.Mount) error {
	return conflict(c.call(ctx, http.MethodDelete, procapi.PathMounts, m, &struct{}{}))
}

// conflict is what procd says against a call, for its sandbox's owner to read.
func conflict(err error) error {
	var refused *refusal
	if !errors.As(err, &refused) || refused.status != http.StatusConflict {
		return err
	}
	var said procapi.Error
	if json.Unmarshal(refused.answer, &said) != nil || len(said.Message) > maxRefusal || !utf8.ValidString(said.Message) || strings.ContainsFunc(said.Message, unicode.IsControl) {
		said.Message = "the sandbox refuses"
	}
	return errdefs.New(errdefs.Conflict, "%s", said.Message).WithCause(err)
}

// refusal is an answer that is no success.
type refusal struct {
	path   string
	status int
	answer []byte
}

func (r *refusal) Error() string {
	return fmt.Sprintf("asking procd for %s: status %d: %.200q", r.path, r.status, r.answer)
}

// KeepEvents makes procd keep events of what happens inside.
func (c *Channel) KeepEvents(ctx context.Context, cfg procapi.EventsConfig) error {
	return c.call(ctx, http.MethodPut, procapi.PathEventsConfig, cfg, &struct{}{})
}

// Kept asks for the contexts that the sandbox's next life may have again. What comes is
// for procd's eyes alone.
func (c *Channel) Kept(ctx context.Context) ([]procapi.KeptContext, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	var kept procapi.KeptContexts
	if err := c.exchange(ctx, http.MethodGet, procapi.PathKept, nil, &kept, procapi.MaxKeptBytes+maxControlBytes); err != nil {
		return nil, err
	}
	b, err := json.Marshal(kept.Contexts) // may be more than what was read
	if err == nil && (len(b) > procapi.MaxKeptBytes || len(kept.Contexts) > procapi.MaxKept) {
		err = fmt.Errorf("procd keeps %d contexts of %d bytes, more than the sandbox may have", len(kept.Contexts), len(b))
	}
	return kept.Contexts, err
}

// call exchanges JSON of the usual size.
func (c *Channel) call(ctx context.Context, method, path string, in, out any) error {
	return c.exchange(ctx, method, path, in, out, maxControlBytes)
}

// exchange exchanges JSON with procd. The answer is data: bounded, parsed, no more.
func (c *Channel) exchange(ctx context.Context, method, path string, in, out any, maxBytes int64) error {
	var body io.Reader = http.NoBody
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("asking procd for %s: %w", path, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://procd"+path, body)
	if err != nil {
		return fmt.Errorf("asking procd for %s: %w", path, err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("asking procd for %s: %w", path, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxBytes+1))
	switch {
	case err != nil:
		return fmt.Errorf("asking procd for %s: %w", path, err)
	case int64(len(answer)) > maxBytes:
		return fmt.Errorf("asking procd for %s: answer of more than %d bytes", path, maxBytes)
	case resp.StatusCode != http.StatusOK:
		return &refusal{path, resp.StatusCode, answer}
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("asking procd for %s: answer: %w", path, err)
	}
	return nil
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return len(s) <= maxHelloField
}
