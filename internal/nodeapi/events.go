package nodeapi

import "google.golang.org/protobuf/proto"

// What one message of a watch carries at most: several small events, or one large one
// beside some small ones.
const (
	maxEvents     = 256
	maxEventBytes = 256 << 10
)

// Gather is an event and those that wait behind it.
func Gather(first *Event, queue <-chan *Event) []*Event {
	list := []*Event{first}
	for len(list) < maxEvents {
		select {
		case e, open := <-queue:
			if !open {
				return list
			}
			list = append(list, e)
		default:
			return list
		}
	}
	return list
}

// SendEvents sends events to a watcher, several in one message if it takes them so: a
// message costs more than what is in it. Of several that can't be sent together each
// is sent by itself.
func SendEvents(list []*Event, req *WatchRequest, send func(*Event) error) error {
	for len(list) > 0 {
		n := 1
		if req.GetMany() {
			n = fitting(list)
		}
		if n == 1 || send(&Event{Event: &Event_Many{Many: &Events{Events: list[:n]}}}) != nil {
			for _, e := range list[:n] {
				if err := send(e); err != nil {
					return err
				}
			}
		}
		list = list[n:]
	}
	return nil
}

// fitting is how many of the events, from the first on, one message carries.
func fitting(list []*Event) int {
	size := 0
	for i, e := range list[:min(len(list), maxEvents)] {
		if size += proto.Size(e); size > maxEventBytes {
			return max(1, i)
		}
	}
	return min(len(list), maxEvents)
}

// All is the events of one message.
func (x *Event) All() []*Event {
	if many := x.GetMany(); many != nil {
		return many.GetEvents()
	}
	return []*Event{x}
}
