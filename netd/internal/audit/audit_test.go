package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"s0.run/internal/netdapi"
)

// queue has a clock of its own.
func queue() (q *Queue, pass func(time.Duration)) {
	q = NewQueue()
	now := time.Now()
	q.now = func() time.Time { return now }
	return q, func(d time.Duration) { now = now.Add(d) }
}

func of(sandbox, flow string) Record {
	return Record{SandboxID: sandbox, FlowID: flow, Timestamp: time.Now(), Action: Allow, Outcome: Completed, EgressBytes: 1}
}

// atOnce takes what there is.
func atOnce(q *Queue, through uint64, most int) ([]Record, uint64) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return q.Take(ctx, through, most)
}

func flows(records []Record) string {
	var ids []string
	for _, r := range records {
		ids = append(ids, r.FlowID)
	}
	return strings.Join(ids, " ")
}

func TestRecordsStayUntilTheyAreStored(t *testing.T) {
	t.Parallel()
	q, _ := queue()
	for _, flow := range []string{"1", "2", "3"} {
		q.Add(of("a", flow))
		q.Add(of("b", flow+"b"))
	}
	first, mark := atOnce(q, 0, 4)
	again, _ := atOnce(q, 0, 4) // the one who took them has ended
	rest, last := atOnce(q, mark, 4)
	if flows(first) != "1 1b 2 2b" || flows(again) != flows(first) || flows(rest) != "3 3b" {
		t.Errorf("took %s, again %s, then %s", flows(first), flows(again), flows(rest))
	}
	if none, same := atOnce(q, last, 4); len(none) != 0 || same != last || q.held != 0 {
		t.Errorf("%s is left, %d are held", flows(none), q.held)
	}
}

func TestTakeWaits(t *testing.T) {
	t.Parallel()
	q := NewQueue()
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			for range 10 {
				q.Add(of(fmt.Sprint(i), ""))
			}
		})
	}
	var mark uint64
	for n := 0; n < 100; {
		var got []Record
		if got, mark = q.Take(t.Context(), mark, 7); len(got) == 0 || len(got) > 7 {
			t.Fatalf("took %d", len(got))
		}
		n += len(got)
	}
	wg.Wait()
}

// Who makes noise is told of with so many records a minute, and one more for the rest.
func TestE24_MoreThanIsToldIsCounted(t *testing.T) {
	t.Parallel()
	q, pass := queue()
	for i := range perWindow + 7 {
		r := of("a", fmt.Sprint(i))
		if i%2 == 1 {
			r.Action, r.Outcome = Deny, Denied
		}
		q.Add(r)
	}
	got, mark := atOnce(q, 0, 1000)
	if len(got) != perWindow {
		t.Fatalf("told %d", len(got))
	}
	pass(window)
	more, mark := atOnce(q, mark, 1000)
	if len(more) != 1 || more[0].More == nil || *more[0].More != (netdapi.More{Flows: 7, Denied: 3}) || more[0].EgressBytes != 7 || more[0].FlowID == "" || more[0].SandboxID != "a" {
		t.Fatalf("of the rest: %+v", more)
	}
	q.Add(of("a", "next"))
	got, mark = atOnce(q, mark, 10)
	if flows(got) != "next" {
		t.Errorf("in the next minute: %s", flows(got))
	}
	pass(window)
	atOnce(q, mark, 10)
	if len(q.boxes) != 0 {
		t.Error("a box is left of somebody who is silent")
	}
}

// D08, E24: nobody reads, and those that make noise cost the others nothing.
func TestE24_NoiseCostsNobodyElseARecord(t *testing.T) {
	t.Parallel()
	q, pass := queue()
	q.inAll = 2 * perSandbox
	q.Add(of("quiet", "mine"))
	const minutes, each = 10, 3 * perWindow
	for range minutes {
		for i := range each {
			for _, loud := range []string{"loud", "louder", "loudest"} {
				q.Add(of(loud, fmt.Sprint(i)))
			}
		}
		pass(window)
	}
	if q.held > q.inAll {
		t.Errorf("%d are held", q.held)
	}
	told, mark := map[string]uint64{}, uint64(0)
	for range 100 {
		var got []Record
		got, mark = atOnce(q, mark, 100)
		for _, r := range got {
			if r.More != nil {
				told[r.SandboxID] += r.More.Flows
			} else {
				told[r.SandboxID]++
			}
		}
		pass(window)
	}
	for _, loud := range []string{"loud", "louder", "loudest"} {
		if told[loud] != minutes*each {
			t.Errorf("%s: %d of %d flows are told or counted", loud, told[loud], minutes*each)
		}
	}
	if told["quiet"] != 1 {
		t.Error("the quiet one's record is lost")
	}
}

// Nobody ever reads, and one sandbox comes after the other: what is remembered of them
// is bounded, the last ones are, and of the others it is known how many flows they had.
func TestD08_WhoIsRememberedIsBounded(t *testing.T) {
	t.Parallel()
	q, pass := queue()
	q.owners, q.inAll = 10, 20
	const sandboxes, each = 200, 3
	for i := range sandboxes {
		for range each {
			q.Add(of(fmt.Sprint(i), ""))
		}
		pass(time.Second)
	}
	if len(q.boxes) > q.owners || q.held > q.inAll {
		t.Errorf("%d sandboxes are remembered, %d records held", len(q.boxes), q.held)
	}
	pass(window)
	told := map[string]int{}
	sum, mark := q.Lost(), uint64(0)
	for range sandboxes {
		var got []Record
		got, mark = atOnce(q, mark, 7)
		for _, r := range got {
			n := uint64(1)
			if r.More != nil {
				n = r.More.Flows
			}
			sum += n
			told[r.SandboxID] += int(n)
		}
		pass(window)
	}
	if sum != sandboxes*each || told[fmt.Sprint(sandboxes-1)] != each {
		t.Errorf("%d flows are told, counted or lost, of %d; of the last sandbox %d", sum, sandboxes*each, told[fmt.Sprint(sandboxes-1)])
	}
	if len(q.boxes) != 0 || q.held != 0 {
		t.Errorf("%d boxes and %d records are left", len(q.boxes), q.held)
	}
}

// A flow is told or counted, and never both: what a reader has, and will store in a
// moment, is not given up meanwhile; nor is what he is just being given.
func TestE24_NoFlowIsToldAndCounted(t *testing.T) {
	t.Parallel()
	q, pass := queue()
	q.inAll = 6
	want := uint64(0)
	add := func(sandbox string, n int) {
		for range n {
			want++
			q.Add(of(sandbox, fmt.Sprint(want)))
		}
	}
	stored := map[string]bool{}
	sum := uint64(0)
	store := func(list []Record) {
		for _, r := range list {
			switch {
			case stored[r.FlowID]:
				t.Errorf("flow %s is told twice", r.FlowID)
			case r.More != nil:
				sum += r.More.Flows
			default:
				sum++
			}
			stored[r.FlowID] = true
		}
	}
	var mark uint64
	for range 50 {
		add("a", 9)
		got, next := atOnce(q, mark, 4)
		add("b", 9) // while the reader stores them
		add("a", 2)
		if again, _ := atOnce(q, mark, 4); !strings.HasPrefix(flows(again), flows(got)) {
			t.Fatalf("given %s, and again %s", flows(got), flows(again))
		}
		store(got)
		mark = next
		pass(window)
	}
	for range 50 {
		var got []Record
		got, mark = atOnce(q, mark, 4)
		store(got)
		pass(window)
	}
	if sum += q.Lost(); sum != want {
		t.Errorf("%d flows are told or counted, of %d", sum, want)
	}
}

// Every field that the contract lists, by its name.
func TestFieldsAreTheContracts(t *testing.T) {
	t.Parallel()
	r := Record{Host: "h", ClassifierResult: "c", Reason: "r", Adapter: "a", AuthRuleName: "n", AuthRef: "r", AuthFailurePolicy: "p", AuthResolveError: "e", ProtocolOperations: []string{"o"}, Error: "e"}
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	const fields = "timestamp,flow_id,sandbox_id,team_id,src_ip,dest_ip,dest_port,transport,protocol,host,classifier_result,action,reason,outcome,duration_ms,egress_bytes,ingress_bytes,adapter,auth_rule_name,auth_ref,auth_failure_policy,auth_bypassed,auth_resolved,auth_cache_hit,auth_resolve_error,protocol_operations,error"
	for _, name := range strings.Split(fields, ",") {
		if _, ok := got[name]; !ok {
			t.Errorf("no %s", name)
		}
	}
}
