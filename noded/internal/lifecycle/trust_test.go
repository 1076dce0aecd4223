package lifecycle_test

import (
	"os"
	"path/filepath"
	"testing"

	"s0.run/internal/procapi"
	"s0.run/noded/internal/journal"
	"s0.run/noded/internal/lifecycle"
	"s0.run/noded/internal/noop"
)

// Who is claimed with a policy that has TLS opened, or gets one later, is told whom to
// believe; what its owner says of that himself goes before.
func TestF08_AProcessIsToldWhomToBelieve(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	n := m.boot()
	ids := n.warm(2)
	rt := noop.Runtime{Node: m.node}
	const variable = "SSL_CERT_FILE"
	for _, id := range ids {
		if env := rt.Env(id); env[variable] != "" {
			t.Errorf("a slot is told to believe %s", env[variable])
		}
		info, err := os.Stat(filepath.Join(m.dir, "run", string(id), filepath.Base(procapi.CABundle)))
		if err != nil || info.Mode().Perm() != 0o444 {
			t.Errorf("a slot's bundle: %v, %v", info, err)
		}
	}
	opens := &journal.Network{Policy: []byte(`{"mode":"allow-all","egress":{"protocolRules":[{"protocol":"http","http":{}}]}}`)}
	if _, _, err := n.Claim(n.ctx(), lifecycle.ClaimRequest{ClaimID: "c", Slot: ids[0], Team: "t", Network: opens}); err != nil {
		t.Fatal(err)
	}
	if got := rt.Env(ids[0])[variable]; got != procapi.CABundle {
		t.Errorf("a claim's processes are told to believe %q", got)
	}
	n.claim(ids[1])
	for _, step := range []struct {
		up   lifecycle.UpdateRequest
		want string
	}{
		{lifecycle.UpdateRequest{Network: opens}, procapi.CABundle},
		{lifecycle.UpdateRequest{ReplaceEnv: true, Env: map[string]string{variable: "/own.pem"}}, "/own.pem"},
		{lifecycle.UpdateRequest{ReplaceEnv: true}, procapi.CABundle},
		{lifecycle.UpdateRequest{Network: &journal.Network{Policy: []byte(`{"mode":"block-all"}`)}}, ""},
	} {
		step.up.ID = ids[1]
		if _, err := n.Update(n.ctx(), step.up); err != nil {
			t.Fatal(err)
		}
		if got := rt.Env(ids[1])[variable]; got != step.want {
			t.Errorf("after %+v: %q, want %q", step.up, got, step.want)
		}
	}
	for _, id := range ids {
		if err := n.Delete(n.ctx(), id, 0, "test"); err != nil {
			t.Error(err)
		}
	}
	n.nothingLeft()
}
