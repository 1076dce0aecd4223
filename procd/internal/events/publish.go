package events

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"
	"unicode/utf8"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

// PublishPath is where a process in the sandbox publishes an event.
const PublishPath = "/api/v1/webhook/publish"

// published is both the contract's envelope and, for clients that read no
// envelope, the bare answer.
type published struct {
	Success bool        `json:"success"`
	Data    publishedID `json:"data"`
	publishedID
}

type publishedID struct {
	EventID string `json:"event_id"`
}

// ServePublish implements POST PublishPath: 202 means that the event is kept.
func (q *Queue) ServePublish(w http.ResponseWriter, r *http.Request) {
	id, err := q.publish(w, r)
	if err != nil {
		e := errdefs.From(err)
		if e.RetryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int(max(1, e.RetryAfter/time.Second))))
		}
		answer(w, e.Kind.HTTPStatus(), map[string]any{
			"success": false, "error": procapi.Error{Code: e.Code, Message: e.Message},
		})
		return
	}
	answer(w, http.StatusAccepted, published{true, publishedID{id}, publishedID{id}})
}

func (q *Queue) publish(w http.ResponseWriter, r *http.Request) (string, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, procapi.MaxEventBytes))
	if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
		return "", errdefs.WithCode(errdefs.TooLarge, "event_too_large", "the body is larger than %d bytes", procapi.MaxEventBytes)
	}
	if err != nil {
		return "", invalid("the body broke off")
	}
	var in struct {
		EventID string          `json:"event_id"`
		Payload json.RawMessage `json:"payload"`
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil || !utf8.Valid(body) || dec.More() {
		return "", invalid("want JSON: {\"event_id\"?, \"payload\"}")
	}
	if len(in.Payload) == 0 {
		in.Payload = json.RawMessage("null")
	}
	return q.Publish(in.EventID, in.Payload)
}

func invalid(message string) error {
	return errdefs.WithCode(errdefs.InvalidArgument, "invalid_request", "%s", message)
}

func answer(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil { // of types of ours
		panic(err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // a sender that is gone does not want it
}
