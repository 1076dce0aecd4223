package ndjson

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"s0.run/internal/errdefs"
)

var team = uuid.MustParse("11111111-1111-1111-1111-111111111111")

// watch starts a server with one watch and reads its lines.
func watch(t *testing.T, s *Server, first []Line, next Source) (lines <-chan Line, status int) {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.Serve(w, r, team, first, next); err != nil {
			w.WriteHeader(errdefs.From(err).Kind.HTTPStatus())
		}
	}))
	t.Cleanup(srv.Close)
	t.Cleanup(s.Close) // before the server, which waits for its handlers
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	out := make(chan Line)
	go func() {
		defer close(out)
		defer resp.Body.Close()
		for scan := bufio.NewScanner(resp.Body); scan.Scan(); {
			var l Line
			if err := json.Unmarshal(scan.Bytes(), &l); err != nil {
				t.Errorf("%q: %v", scan.Bytes(), err)
			}
			select {
			case out <- l:
			case <-t.Context().Done():
			}
		}
	}()
	return out, resp.StatusCode
}

// batches is a source of what is put into it.
func batches(c <-chan []Line) Source {
	return func(ctx context.Context) ([]Line, error) {
		select {
		case b := <-c:
			return b, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func take(t *testing.T, lines <-chan Line) Line {
	t.Helper()
	select {
	case l, ok := <-lines:
		if !ok {
			t.Fatal("the watch has ended")
		}
		return l
	case <-time.After(20 * time.Second):
		t.Fatal("no line")
	}
	return Line{}
}

func ended(t *testing.T, lines <-chan Line) {
	t.Helper()
	select {
	case l, ok := <-lines:
		if ok {
			t.Errorf("after the end: %+v", l)
		}
	case <-time.After(20 * time.Second):
		t.Error("the watch does not end")
	}
}

func TestLinesAsTheyCome(t *testing.T) {
	t.Parallel()
	c := make(chan []Line)
	lines, status := watch(t, New(), []Line{{Type: "log", Data: "a\n<b>"}}, batches(c))
	if l := take(t, lines); status != 200 || l.Type != "log" || l.Data != "a\n<b>" {
		t.Errorf("%d, %+v", status, l)
	}
	c <- []Line{{Type: "log", Data: "b"}, Watermark("7")}
	if l := take(t, lines); l.Data != "b" {
		t.Errorf("%+v", l)
	}
	if l := take(t, lines); l.Type != "watermark" || l.Cursor != "7" || l.Watermark != "7" {
		t.Errorf("%+v", l)
	}
	c <- nil
	if l := take(t, lines); l.Type != "heartbeat" || l.Time == nil || time.Since(*l.Time) > time.Minute {
		t.Errorf("%+v", l)
	}
}

// The header goes out at once, even when there is nothing to say yet.
func TestAWatchBeginsWithAHeartbeat(t *testing.T) {
	t.Parallel()
	lines, status := watch(t, New(), nil, batches(nil))
	if l := take(t, lines); status != 200 || l.Type != "heartbeat" {
		t.Errorf("%d, %+v", status, l)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	away := errdefs.New(errdefs.Unavailable, "away").WithRetryAfter(time.Second)
	answers := make(chan error, 4)
	answers <- away
	answers <- errdefs.New(errdefs.GatewayTimeout, "slow")
	answers <- nil
	answers <- errdefs.New(errdefs.NotFound, "sandbox not found").WithCause(errors.New("secret"))
	s := New()
	s.pause = time.Millisecond
	lines, _ := watch(t, s, []Line{Watermark("0")}, func(context.Context) ([]Line, error) {
		if err := <-answers; err != nil {
			return nil, err
		}
		return []Line{Watermark("1")}, nil
	})
	var got []string
	for range 5 {
		got = append(got, take(t, lines).Type)
	}
	if want := "watermark heartbeat heartbeat watermark error"; strings.Join(got, " ") != want {
		t.Errorf("%v, want %s", got, want)
	}
	ended(t, lines)
	if m := shown(errors.New("secret")); strings.Contains(m, "secret") {
		t.Errorf("%q is shown", m)
	}
}

func TestCloseEndsWatches(t *testing.T) {
	t.Parallel()
	s := New()
	lines, _ := watch(t, s, []Line{Watermark("0")}, batches(nil))
	take(t, lines)
	s.Close()
	ended(t, lines)
	s.Close()
	if _, status := watch(t, s, nil, batches(nil)); status != 503 {
		t.Errorf("a watch of a closed server: %d", status)
	}
}

// A23: a team can't hold all of the server's connections.
func TestA23_WatchesOfATeam(t *testing.T) {
	t.Parallel()
	s := New()
	var leaves []func()
	for range watchesPerTeam {
		leave, err := s.enter(team)
		if err != nil {
			t.Fatal(err)
		}
		leaves = append(leaves, leave)
	}
	if _, err := s.enter(team); !errdefs.Is(err, errdefs.Exhausted) {
		t.Errorf("one too many: %v", err)
	}
	other, err := s.enter(uuid.New())
	if err != nil {
		t.Errorf("another team: %v", err)
	}
	other()
	leaves[0]()
	again, err := s.enter(team)
	if err != nil {
		t.Errorf("after one has gone: %v", err)
	}
	leaves[0] = again
	for _, leave := range leaves {
		leave()
	}
	if len(s.byTeam) != 0 {
		t.Errorf("%v is remembered", s.byTeam)
	}
}

// A09: a client that stops reading is dropped.
func TestA09_AClientThatStopsReading(t *testing.T) {
	t.Parallel()
	s := New()
	s.timeout = 50 * time.Millisecond
	gone := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(gone)
		_ = s.Serve(w, r, team, nil, func(context.Context) ([]Line, error) {
			return []Line{{Type: "log", Data: strings.Repeat("x", 8<<20)}}, nil
		})
	}))
	defer srv.Close()
	resp, err := http.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	select {
	case <-gone:
	case <-time.After(20 * time.Second):
		t.Error("the watch goes on")
	}
}
