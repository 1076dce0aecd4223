package events

import (
	"fmt"
	"sync"
	"testing"

	"s0.run/internal/nodeapi"
)

func slot(id string) *nodeapi.Event {
	return &nodeapi.Event{Event: &nodeapi.Event_SlotFree{SlotFree: &nodeapi.Slot{Id: id}}}
}

func taken(id string) *nodeapi.Event {
	return &nodeapi.Event{Event: &nodeapi.Event_SlotTaken{SlotTaken: id}}
}

func TestLateSubscriberSeesWhatStands(t *testing.T) {
	t.Parallel()
	h := NewHub()
	h.Set("a", slot("a"))
	h.Set("b", slot("b"))
	h.Clear("a", taken("a"))
	initial, sub := h.Subscribe()
	if len(initial) != 1 || initial[0].GetSlotFree().GetId() != "b" {
		t.Fatalf("initial %v, want b alone", initial)
	}
	h.Clear("nothing", taken("nothing")) // nobody was ever told of it
	h.Clear("b", taken("b"))
	if e := <-sub.C(); e.GetSlotTaken() != "b" {
		t.Fatalf("first change %v, want b taken", e)
	}
	sub.Cancel()
	h.Set("c", slot("c"))
	if n := len(sub.C()); n != 0 {
		t.Errorf("%d events after cancel", n)
	}
}

func TestSlowSubscriberIsCutOff(t *testing.T) {
	t.Parallel()
	h := NewHub()
	_, slow := h.Subscribe()
	_, quick := h.Subscribe()
	for i := range queueLength + 1 {
		h.Set("k", slot(fmt.Sprint(i)))
		<-quick.C()
	}
	n := 0
	for range slow.C() { // ends: the channel was closed
		n++
	}
	if n != queueLength {
		t.Errorf("the slow subscriber got %d events, want its queue of %d", n, queueLength)
	}
	slow.Cancel()
	h.Set("k", slot("after"))
	if e := <-quick.C(); e.GetSlotFree().GetId() != "after" {
		t.Errorf("the quick subscriber got %v", e)
	}
}

// Whoever subscribes in the middle of changes ends up with the same picture.
func TestPictureIsConsistent(t *testing.T) {
	t.Parallel()
	h := NewHub()
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 500 {
				id := fmt.Sprint(w, "-", i%20)
				if i%3 == 2 {
					h.Clear(id, taken(id))
				} else {
					h.Set(id, slot(id))
				}
			}
		})
	}
	var subs []*Subscription
	var pictures []map[string]bool
	for range 8 {
		initial, sub := h.Subscribe()
		p := map[string]bool{}
		for _, e := range initial {
			p[e.GetSlotFree().GetId()] = true
		}
		subs, pictures = append(subs, sub), append(pictures, p)
	}
	wg.Wait()
	final, _ := h.Subscribe()
	for i, sub := range subs {
		for len(sub.C()) > 0 {
			if e := <-sub.C(); e.GetSlotTaken() != "" {
				delete(pictures[i], e.GetSlotTaken())
			} else {
				pictures[i][e.GetSlotFree().GetId()] = true
			}
		}
		if len(pictures[i]) != len(final) {
			t.Errorf("subscriber %d sees %d slots, %d stand", i, len(pictures[i]), len(final))
		}
	}
}
