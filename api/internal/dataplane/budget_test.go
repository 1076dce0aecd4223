package dataplane

import (
	"context"
	"runtime"
	"strings"
	"testing"

	"github.com/google/uuid"

	"s0.run/api/internal/openapi"
	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

// B13: an answer that is small on the wire and large in memory is refused before
// it is decoded.
func TestB13_AnAnswerThatGrows(t *testing.T) {
	for name, body := range map[string]string{
		"empty contexts": `{"contexts":[` + strings.Repeat("{},", 5_000_000) + `{}]}`,
		"empty strings":  `{"contexts":[{"command":[` + strings.Repeat(`"",`, 5_000_000) + `""]}]}`,
	} {
		p := New(Config{})
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		var out openapi.ContextList
		err := p.decode(context.Background(), uuid.New(), strings.NewReader(body), &out, nil)
		runtime.ReadMemStats(&after)
		if !errdefs.Is(err, errdefs.BadGateway) {
			t.Errorf("%s: %v", name, err)
		}
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 8*procapi.MaxJSONBytes {
			t.Errorf("%s: allocated %d MiB", name, grown>>20)
		}
		if p.budget.total != 0 || len(p.budget.teams) != 0 {
			t.Errorf("%s: the budget keeps %d bytes of %d teams", name, p.budget.total, len(p.budget.teams))
		}
	}
}

func TestAFullListIsNotTooDear(t *testing.T) {
	t.Parallel()
	entry := `{"name":"a-file-of-an-ordinary-length.txt","path":"/workspace/some/where/a-file-of-an-ordinary-length.txt","type":"file","size":1,"mode":"0644","mod_time":"2026-01-01T00:00:00Z","is_link":false},`
	body := `{"entries":[` + strings.Repeat(entry, 49_999) + strings.TrimSuffix(entry, ",") + `]}`
	var out openapi.FileList
	if err := New(Config{}).decode(context.Background(), uuid.New(), strings.NewReader(body), &out, nil); err != nil || len(out.Entries) != 50_000 {
		t.Fatalf("%d entries: %v", len(out.Entries), err)
	}
}

func TestATeamDoesNotTakeTheOthersBudget(t *testing.T) {
	t.Parallel()
	b := budget{teams: map[uuid.UUID]int64{}}
	greedy, other := uuid.New(), uuid.New()
	if err := b.take(greedy, teamBudget); err != nil {
		t.Fatal(err)
	}
	if err := b.take(greedy, 1); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("beyond its budget: %v", err)
	}
	if err := b.take(other, 1<<20); err != nil {
		t.Errorf("another team: %v", err)
	}
	b.give(greedy, teamBudget)
	b.give(other, 1<<20)
	if b.total != 0 || len(b.teams) != 0 {
		t.Errorf("left: %d, %v", b.total, b.teams)
	}
}
