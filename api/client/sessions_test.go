package client_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"s0.run/api/client"
)

func TestFollowSessionEvents(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/v1/sandboxes/sb/sessions/se/events/stream" || r.URL.RawQuery != "after=4" || r.Header.Get("Accept") != "text/event-stream" {
			http.Error(w, "{}", http.StatusBadRequest)
			return
		}
		fmt.Fprint(w, ": nothing yet\n\nid: 5\ndata: {\"seq\":5,\"type\":\"output\",\"data_base64\":\"aGk=\"}\n\nid: 6\ndata: {\"seq\":6,\"type\":\"x\"}\n\n")
	}))
	defer server.Close()
	c, err := client.New(client.Config{BaseURL: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	var seen []client.ExecutionSessionEvent
	err = c.FollowSessionEvents(t.Context(), "sb", "se", 4, func(e client.ExecutionSessionEvent) error {
		seen = append(seen, e)
		return nil
	})
	if err != nil || len(seen) != 2 || seen[1].Seq != 6 || string(seen[0].DataBase64) != "hi" {
		t.Fatalf("%+v, %v", seen, err)
	}
	if err := c.FollowSessionEvents(t.Context(), "sb", "se", 4, func(client.ExecutionSessionEvent) error { return io.EOF }); err != io.EOF {
		t.Errorf("an error of the caller's: %v", err)
	}
}
