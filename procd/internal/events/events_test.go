package events

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

func queue(t *testing.T) *Queue {
	t.Helper()
	q := NewQueue(func() time.Time { return time.Unix(1700000000, 0) })
	q.Enable()
	return q
}

// told decodes everything that a reader gets from the beginning.
func told(t *testing.T, q *Queue, after uint64) (all []procapi.Event) {
	t.Helper()
	for {
		lines, last, _ := q.After(after)
		if len(lines) == 0 {
			return all
		}
		for _, l := range lines {
			var e procapi.Event
			if err := json.Unmarshal(l, &e); err != nil || l[len(l)-1] != '\n' {
				t.Fatalf("line %q: %v", l, err)
			}
			all = append(all, e)
		}
		after = last
	}
}

func TestEventsAreKeptUntilTheyAreAcknowledged(t *testing.T) {
	t.Parallel()
	q := queue(t)
	_, _, changed := q.After(0)
	for i := range 40 {
		q.Add(procapi.EventProcessStarted, procapi.ProcessStarted{PID: i})
	}
	select {
	case <-changed:
	default:
		t.Error("a waiting reader was not woken")
	}
	if all := told(t, q, 0); len(all) != 40 || all[0].Seq != 1 || all[39].Seq != 40 {
		t.Fatalf("told %d events", len(all))
	}
	if again := told(t, q, 0); len(again) != 40 {
		t.Errorf("a second reader got %d of 40", len(again))
	}
	q.Ack(30)
	if rest := told(t, q, 0); len(rest) != 10 || rest[0].Seq != 31 {
		t.Errorf("after the acknowledgement: %+v", rest)
	}
	q.Ack(1000)
	q.Add(procapi.EventAgent, 1)
	if rest := told(t, q, 0); len(rest) != 1 || rest[0].Seq != 41 {
		t.Errorf("after all were acknowledged: %+v", rest)
	}
}

func TestNothingIsKeptUntilSomebodyWantsIt(t *testing.T) {
	t.Parallel()
	q := NewQueue(time.Now)
	q.Add(procapi.EventProcessStarted, 1)
	if id, err := q.Publish("", json.RawMessage("1")); err != nil || id == "" {
		t.Errorf("publishing: %q, %v", id, err)
	}
	if len(told(t, q, 0)) != 0 {
		t.Error("events were kept")
	}
}

// A full queue counts what it can't hold and tells it when there is room; a
// publisher learns at once.
func TestB07_OverflowIsCountedAndTold(t *testing.T) {
	t.Parallel()
	q := queue(t)
	for range procapi.MaxEvents + 7 {
		q.Add(procapi.EventProcessStarted, procapi.ProcessStarted{PID: 1})
	}
	if _, err := q.Publish("mine", json.RawMessage("{}")); !errdefs.Is(err, errdefs.Exhausted) {
		t.Errorf("publishing into a full queue: %v", err)
	}
	if n := len(told(t, q, 0)); n != procapi.MaxEvents {
		t.Fatalf("kept %d", n)
	}
	q.Ack(procapi.MaxEvents)
	rest := told(t, q, 0)
	if len(rest) != 1 || rest[0].Type != procapi.EventsDropped || fmt.Sprint(rest[0].Payload) != "map[count:7]" {
		t.Errorf("what got lost is told as %+v", rest)
	}
	if _, err := q.Publish("mine", json.RawMessage("{}")); err != nil {
		t.Errorf("publishing with room: %v", err)
	}
}

func TestB08_EventsTakeBoundedMemory(t *testing.T) {
	t.Parallel()
	q := queue(t)
	big := strings.Repeat("x", procapi.MaxEventBytes-1024)
	for range procapi.MaxEvents {
		q.Add(procapi.EventAgent, big)
	}
	if q.bytes > procapi.MaxEventsBytes || q.dropped == 0 {
		t.Errorf("%d bytes kept, %d events dropped", q.bytes, q.dropped)
	}
	q.Ack(q.seq)
	q.Add(procapi.EventAgent, strings.Repeat("x", procapi.MaxEventBytes))
	if all := told(t, q, 0); len(all) != 1 || all[0].Type != procapi.EventsDropped {
		t.Errorf("after an event that is too large: %d events", len(all))
	}
}

func publish(q *Queue, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	q.ServePublish(w, httptest.NewRequest(http.MethodPost, PublishPath, strings.NewReader(body)))
	return w
}

func TestPublish(t *testing.T) {
	t.Parallel()
	q := queue(t)
	w := publish(q, `{"event_id":"step-1","payload":{"progress":0.5}}`)
	if w.Code != http.StatusAccepted || strings.TrimSpace(w.Body.String()) != `{"success":true,"data":{"event_id":"step-1"},"event_id":"step-1"}` {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := publish(q, `{"payload":[1,2]}`); w.Code != http.StatusAccepted || !strings.Contains(w.Body.String(), `"event_id":"evt_`) {
		t.Errorf("without an id: %d %s", w.Code, w.Body)
	}
	all := told(t, q, 0)
	if len(all) != 2 || all[0].ID != "step-1" || all[0].Type != procapi.EventAgent || fmt.Sprint(all[0].Payload) != "map[progress:0.5]" {
		t.Errorf("kept %+v", all)
	}
	for body, want := range map[string]int{
		``: 400, `{`: 400, `[]`: 400, `{"payload":1} 2`: 400, `{"payload":1,"type":"sandbox.deleted"}`: 400,
		`{"event_id":"a b","payload":1}`:                                   400,
		`{"event_id":"evt_sandbox_deleted_x","payload":1}`:                 400,
		`{"event_id":"` + strings.Repeat("a", 129) + `","payload":1}`:      400,
		"{\"payload\":\"\xff\"}":                                           400,
		`{"payload":"` + strings.Repeat("a", procapi.MaxEventBytes) + `"}`: 413,
	} {
		w := publish(q, body)
		if w.Code != want || !strings.HasPrefix(w.Body.String(), `{"error":{"code":"`) {
			t.Errorf("%.60q: %d %s, want %d", body, w.Code, w.Body, want)
		}
	}
	if n := len(told(t, q, 0)); n != 2 {
		t.Errorf("refused events were kept: %d", n)
	}
}

// Changes of files leave room for what matters more.
func TestB07_FilesDoNotCrowdOutTheRest(t *testing.T) {
	t.Parallel()
	q := queue(t)
	for range procapi.MaxEvents {
		q.Add(procapi.EventFileModified, procapi.FileModified{Path: "/x"})
	}
	q.Add(procapi.EventProcessExited, procapi.ProcessEnded{})
	all := told(t, q, 0)
	last := all[len(all)-1]
	if last.Type != procapi.EventProcessExited {
		t.Errorf("%d events, the last one is %s", len(all), last.Type)
	}
	q.Ack(uint64(len(all)))
	if rest := told(t, q, 0); len(rest) != 1 || fmt.Sprint(rest[0].Payload) != "map[count:64]" {
		t.Errorf("told of the lost ones: %+v", rest)
	}
}
