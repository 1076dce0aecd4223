package cli

import (
	"context"
	"errors"
	"syscall"
	"time"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

const (
	// rewatchPause is what passes before a watch that broke off is begun again, and
	// rewatchTime for how long that is tried.
	rewatchPause = time.Second
	rewatchTime  = time.Minute

	logPage = 1000 // lines or events that one question asks for
)

// stamp is a time as lines begin with it.
const stamp = "2006-01-02T15:04:05.000"

// paged asks for page after page, until limit things have come if that is not 0, or
// there are no more.
func paged(limit, page int, ask func(limit int) (got int, more bool, err error)) error {
	for left := limit; ; {
		want := page
		if limit > 0 {
			want = min(left, page)
		}
		got, more, err := ask(want)
		if err != nil || !more {
			return err
		}
		if left -= got; limit > 0 && left <= 0 {
			return nil
		}
	}
}

// printAll prints a list that has no table: its data for programs, else line by line.
func printAll[T any](a *app, data any, items []T, show func(T) error) error {
	if a.printer.Format != output.Table || len(items) == 0 {
		return a.printer.Print(data, output.Rows{})
	}
	for _, item := range items {
		if err := show(item); err != nil {
			return err
		}
	}
	return nil
}

// errEnded ends the watch of what has ended.
var errEnded = errors.New("it has ended")

// rewatch follows until it is interrupted or what is watched has ended. A watch that
// breaks off is begun again; follow remembers where, and calls alive with everything
// that comes.
func rewatch(ctx context.Context, follow func(alive func()) error) error {
	for alive := time.Now(); ; {
		err := follow(func() { alive = time.Now() })
		switch {
		case ctx.Err() != nil, errors.Is(err, errEnded):
			return nil
		case !passes(err) || time.Since(alive) > rewatchTime:
			return err
		}
		select {
		case <-time.After(rewatchPause):
		case <-ctx.Done():
			return nil
		}
	}
}

// passes tells a server that restarts from one that says no.
func passes(err error) bool {
	var answer *client.APIError
	if errors.As(err, &answer) {
		return answer.StatusCode == 502 || answer.RetryAfter > 0
	}
	return !errors.Is(err, client.ErrWatchEnded) && !errors.Is(err, syscall.EPIPE)
}
