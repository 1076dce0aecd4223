package cli

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"s0.run/api/client"
)

// answers is a server that gives one answer after another, and remembers when.
type answers struct {
	list  []string // status, space, body
	retry string   // Retry-After of errors
	at    []time.Time
}

func (a *answers) RoundTrip(r *http.Request) (*http.Response, error) {
	a.at = append(a.at, time.Now())
	next := a.list[0]
	a.list = a.list[1:]
	status, body, _ := strings.Cut(next, " ")
	code := map[string]int{"200": 200, "403": 403, "404": 404, "503": 503}[status]
	header := http.Header{"Content-Type": {"application/json"}}
	if code == 503 {
		header.Set("Retry-After", a.retry)
	}
	return &http.Response{StatusCode: code, Header: header, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

func (a *answers) wait(t *testing.T, ctx context.Context) (*client.Login, error) {
	t.Helper()
	c, err := client.New(client.Config{BaseURL: "http://server", HTTPClient: &http.Client{Transport: a}})
	if err != nil {
		t.Fatal(err)
	}
	return awaitDevice(ctx, c, "corp", &client.DeviceLogin{DeviceLoginID: "d", IntervalSeconds: 5})
}

const (
	pending   = `200 {"success":true,"data":{"status":"pending","interval_seconds":5}}`
	slowDown  = `200 {"success":true,"data":{"status":"slow_down","interval_seconds":10}}`
	stillSlow = `200 {"success":true,"data":{"status":"pending","interval_seconds":10}}`
	completed = `200 {"success":true,"data":{"status":"completed","login":{"access_token":"t","refresh_token":"r","expires_at":1,
		"user":{"id":"u","email":"e","name":"n","email_verified":true,"is_admin":false,"created_at":"2026-01-01T00:00:00Z","updated_at":"2026-01-01T00:00:00Z"}}}}`
	away   = `503 {"success":false,"error":{"code":"unavailable","message":"the provider corp does not answer"}}`
	denied = `403 {"success":false,"error":{"code":"forbidden","message":"the sign-in was refused at the provider"}}`
	gone   = `404 {"success":false,"error":{"code":"not_found","message":"there is no such device login"}}`
)

// The server says how often it wants to be asked, and may change its mind.
func TestADeviceLoginKeepsTheServersPace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		a := &answers{list: []string{pending, slowDown, stillSlow, away, completed}, retry: "30"}
		login, err := a.wait(t, t.Context())
		if err != nil || login.AccessToken != "t" {
			t.Fatalf("%+v, %v", login, err)
		}
		var after []time.Duration
		for _, at := range a.at {
			after = append(after, at.Sub(began).Round(time.Second))
		}
		want := []time.Duration{5 * time.Second, 10 * time.Second, 20 * time.Second, 30 * time.Second, 60 * time.Second}
		if !slices.Equal(after, want) {
			t.Errorf("asked after %v, want %v", after, want)
		}
	})
}

func TestADeviceLoginEnds(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]string{denied: "refused at the provider", gone: "nobody has confirmed in time"} {
		synctest.Test(t, func(t *testing.T) {
			a := &answers{list: []string{pending, answer}}
			_, err := a.wait(t, t.Context())
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Fatalf("%v, want %s", err, want)
			}
			if hint := explain(err, nil); strings.Contains(hint, "team") || strings.Contains(hint, "password") {
				t.Errorf("bad advice: %s", hint)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		a := &answers{list: slices.Repeat([]string{pending}, 20)}
		if _, err := a.wait(t, ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("given up: %v", err)
		}
	})
}

func TestWhichProvider(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		ids          []string
		wanted, want string
	}{
		{[]string{"a"}, "", "a"}, {[]string{"a", "b"}, "a", "a"}, {[]string{"a", "b"}, "b", "b"},
		{[]string{"a", "b"}, "", ""}, {[]string{"a"}, "b", ""}, {nil, "", ""}, {nil, "a", ""},
	} {
		if got, err := oneProvider(c.ids, c.wanted); got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("of %v, wanted %q: %q, %v", c.ids, c.wanted, got, err)
		}
	}
}
