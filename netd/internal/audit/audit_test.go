package audit

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"
)

func TestRecordsAreTakenOrCounted(t *testing.T) {
	t.Parallel()
	q := NewQueue(2)
	for range 5 {
		q.Add(Record{FlowID: "f"})
	}
	got, dropped, err := q.Take(t.Context())
	if err != nil || len(got) != 2 || dropped != 3 {
		t.Errorf("%d records, %d dropped, %v", len(got), dropped, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := q.Take(ctx); err == nil {
		t.Error("nothing is there, and it returned")
	}
}

func TestTakeWaits(t *testing.T) {
	t.Parallel()
	q := NewQueue(100)
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			for range 10 {
				q.Add(Record{})
			}
		})
	}
	for n := 0; n < 100; {
		got, _, err := q.Take(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		n += len(got)
	}
	wg.Wait()
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
