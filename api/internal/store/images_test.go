package store

import (
	"encoding/json"
	"fmt"
	"sync"
	"testing"

	"github.com/google/uuid"

	"s0.run/internal/regauth"
	"s0.run/internal/s0test"
)

// A04: a prefix is one team's, for good, also where two teams' hashes begin alike.
func TestA04_RegistryPrefixesAreTheirTeams(t *testing.T) {
	t.Parallel()
	s, err := Open(t.Context(), s0test.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	team := uuid.New()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if prefix, err := s.RegistryPrefix(t.Context(), team); err != nil || prefix != regauth.TeamPrefix(team.String()) {
				t.Errorf("%s, %v", prefix, err)
			}
		})
	}
	wg.Wait()
	unlucky := uuid.New()
	if _, err := s.pool.Exec(t.Context(), "INSERT INTO registry_prefixes (team_id, prefix) VALUES ($1, $2)", uuid.New(), regauth.TeamPrefix(unlucky.String())); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if prefix, err := s.RegistryPrefix(t.Context(), unlucky); err != nil || prefix != regauth.LongTeamPrefix(unlucky.String(), 16) {
			t.Errorf("its prefix is another team's, and it has %s, %v", prefix, err)
		}
	}
}

func TestPins(t *testing.T) {
	t.Parallel()
	s, err := Open(t.Context(), s0test.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	spec := func(image string) json.RawMessage {
		return json.RawMessage(fmt.Sprintf(`{"mainContainer":{"image":%q}}`, image))
	}
	put := func(image string) {
		t.Helper()
		if err := s.PutPublicTemplate(t.Context(), "x", spec(image), ""); err != nil {
			t.Fatal(err)
		}
	}
	read := func() Template {
		t.Helper()
		row, err := s.Template(t.Context(), uuid.New(), "x")
		if err != nil {
			t.Fatal(err)
		}
		return row
	}
	pin := func(team *uuid.UUID, image, digest string) {
		t.Helper()
		if err := s.PinTemplate(t.Context(), team, read().ID, image, digest); err != nil {
			t.Fatal(err)
		}
	}
	put("a:1")
	if d := read().Digest; d != "" {
		t.Errorf("a template that nobody pinned means %s", d)
	}
	other := uuid.New()
	pin(&other, "a:1", "d0")
	if d := read().Digest; d != "" {
		t.Errorf("another team pinned it to %s", d)
	}
	pin(nil, "a:1", "d1")
	pin(nil, "a:1", "d2")
	put("b:1") // what an update has resolved counts once it is stored
	if d := read().Digest; d != "" {
		t.Errorf("another image means %s", d)
	}
	put("a:1")
	if d := read().Digest; d != "d2" {
		t.Errorf("it means %q", d)
	}
	used, err := s.UsedImages(t.Context())
	if err != nil || len(used) != 1 || used[0] != (ImageRef{"a:1", "d2"}) {
		t.Errorf("in use %v, %v", used, err)
	}
	put("b:1")
	pin(nil, "b:1", "d3")
	var pins int
	if err := s.pool.QueryRow(t.Context(), "SELECT count(*) FROM template_pins").Scan(&pins); err != nil || pins != 1 || read().Digest != "d3" {
		t.Errorf("%d pins are kept, and it means %s: %v", pins, read().Digest, err)
	}
}
