package nodeapi

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
)

func taken(id string) *Event { return &Event{Event: &Event_SlotTaken{SlotTaken: id}} }

// messages are the ids that each message of a watcher carries.
func messages(t *testing.T, list []*Event, many bool, refuse func(*Event) error) (told [][]string) {
	t.Helper()
	err := SendEvents(list, &WatchRequest{Many: many}, func(e *Event) error {
		if err := refuse(e); err != nil {
			return err
		}
		var ids []string
		for _, one := range e.All() {
			ids = append(ids, one.GetSlotTaken())
		}
		told = append(told, ids)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return told
}

func anything(*Event) error { return nil }

func TestEventsGoTogether(t *testing.T) {
	t.Parallel()
	var list []*Event
	for i := range 2*maxEvents + 1 {
		list = append(list, taken(fmt.Sprint(i)))
	}
	told := messages(t, list, true, anything)
	if len(told) != 3 || len(told[0]) != maxEvents || len(told[2]) != 1 {
		t.Errorf("%d messages", len(told))
	}
	for i, id := range slices.Concat(told...) {
		if id != fmt.Sprint(i) {
			t.Fatalf("%q at %d", id, i)
		}
	}
	if told := messages(t, list, false, anything); len(told) != len(list) {
		t.Errorf("%d messages for who takes one event in each", len(told))
	}
}

func TestMessagesOfEventsAreBounded(t *testing.T) {
	t.Parallel()
	large := strings.Repeat("x", maxEventBytes)
	told := messages(t, []*Event{taken("1"), taken(large), taken(large), taken("2")}, true, func(e *Event) error {
		if proto.Size(e) > 2*maxEventBytes {
			return errors.New("too large")
		}
		return nil
	})
	if all := slices.Concat(told...); len(all) != 4 || all[3] != "2" {
		t.Errorf("%d events were told", len(all))
	}
}

// Of several that can't be sent together, each is.
func TestEventsThatCanNotGoTogether(t *testing.T) {
	t.Parallel()
	told := messages(t, []*Event{taken("1"), taken("2")}, true, func(e *Event) error {
		if e.GetMany() != nil {
			return errors.New("one of them can't be encoded")
		}
		return nil
	})
	if len(told) != 2 || told[0][0] != "1" || told[1][0] != "2" {
		t.Errorf("told %v", told)
	}
	failed := errors.New("the watcher is gone")
	if err := SendEvents([]*Event{taken("1")}, &WatchRequest{Many: true}, func(*Event) error { return failed }); err != failed {
		t.Errorf("a watcher that is gone: %v", err)
	}
}

func TestGather(t *testing.T) {
	t.Parallel()
	queue := make(chan *Event, 2*maxEvents)
	if list := Gather(taken("1"), queue); len(list) != 1 {
		t.Errorf("%d of one", len(list))
	}
	for range cap(queue) {
		queue <- taken("x")
	}
	if list := Gather(<-queue, queue); len(list) != maxEvents {
		t.Errorf("%d at once", len(list))
	}
	close(queue)
	if list := Gather(<-queue, queue); len(list) != maxEvents {
		t.Errorf("%d that were left", len(list))
	}
	if list := Gather(taken("1"), queue); len(list) != 1 {
		t.Errorf("%d behind the end", len(list))
	}
}
