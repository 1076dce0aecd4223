package journal

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"

	"s0.run/internal/sandbox"
)

const page = 4096

// X50: power fails. Of what was written since the last fdatasync any part may be on the
// disk, in any order: all that was acknowledged before it is there, and nothing that was
// not is there by halves.
func TestX50_PowerFails(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.db")
	j, stop := open(t, path)
	if j.db.NoSync || j.db.NoGrowSync {
		t.Fatal("the journal does not wait for the disk")
	}
	chance := rand.New(rand.NewPCG(50, 50))
	acked := map[sandbox.ID]bool{}
	before := read(t, path)
	for round := range 6 {
		r := record(t)
		if err := j.Put(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		after := read(t, path)
		for i := range 2 {
			wantRecords(t, fmt.Sprint(round, ".", i), crashed(before, after, chance), acked, "")
		}
		wantRecords(t, fmt.Sprint(round, " torn"), torn(before, after, chance), acked, r.ID)
		acked[r.ID] = true
		before = after
	}
	stop()
	wantRecords(t, "at the end", read(t, path), acked, "")
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// crashed is the file when power fails before the first fdatasync of a transaction: some
// of its pages are there. The two first, which say which pages count, are written behind
// that.
func crashed(before, after []byte, chance *rand.Rand) []byte {
	image := bytes.Clone(before)
	if chance.IntN(2) == 0 && len(after) > len(before) {
		image = append(image, make([]byte, len(after)-len(before))...)
	}
	for at := 2 * page; at+page <= len(image); at += page {
		if chance.IntN(2) == 0 {
			copy(image[at:at+page], after[at:at+page])
		}
	}
	return image
}

// torn is the file when power fails before the second one: all pages are there, and a
// part of the one that makes them count.
func torn(before, after []byte, chance *rand.Rand) []byte {
	image := bytes.Clone(after)
	for at := 0; at < 2*page; at += page {
		cut := at + chance.IntN(page)
		copy(image[cut:at+page], before[cut:at+page])
	}
	return image
}

// wantRecords opens an image of a journal: it has what was acknowledged, and nothing else
// but perhaps one that was on its way.
func wantRecords(t *testing.T, when string, image []byte, acked map[sandbox.ID]bool, perhaps sandbox.ID) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal.db")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	j, stop := open(t, path)
	defer stop()
	all, err := j.All()
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	found := 0
	for _, r := range all {
		if acked[r.ID] {
			found++
		} else if r.ID != perhaps {
			t.Errorf("%s: %s was never acknowledged", when, r.ID)
		}
	}
	if found != len(acked) {
		t.Errorf("%s: %d of %d acknowledged records", when, found, len(acked))
	}
}

// The first version's records, as it wrote them, and one of a version to come.
const (
	firstRecord = `{"id":%q,"generation":1,"state":"claimed","pool_key":"k","spec":{"image":"i","memory_bytes":268435456,"cpu_millis":500,"runtime_class":"gvisor"},"net_index":3,"ip":"10.77.0.3","created":"2026-01-02T03:04:05Z","claim":{"claim_id":"c","team":"t","memory_bytes":268435456,"cpu_millis":500,"time":"2026-01-02T03:04:05Z"}}`
	laterRecord = `{"id":%q,"generation":9,"state":"paused","image":9,"pool_key":"k","spec":{"image":"i","memory_bytes":1,"colour":"blue"},"net_index":0,"ip":"10.77.0.4","created":"2026-01-02T03:04:05Z","mood":{"of":["the","day"]},"claim":{"claim_id":"c2","team":"t","memory_bytes":1,"cpu_millis":1,"time":"2026-01-02T03:04:05Z","weight":7}}`
)

// X27: the versions before and after this one read each other's journals.
func TestX27_BothWays(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal.db")
	j, stop := open(t, path)
	old, later := record(t), record(t)
	put := func(id sandbox.ID, raw string) {
		if err := j.db.Update(func(tx *bbolt.Tx) error {
			return tx.Bucket(sandboxesBucket).Put([]byte(id), fmt.Appendf(nil, raw, id))
		}); err != nil {
			t.Fatal(err)
		}
	}
	put(old.ID, firstRecord)
	put(later.ID, laterRecord)
	stop()
	j, stop = open(t, path)
	defer stop()
	all, err := j.All()
	if err != nil || len(all) != 2 {
		t.Fatalf("%+v (%v)", all, err)
	}
	for _, r := range all {
		switch {
		case r.ID == old.ID && r.State == Claimed && r.Claim.ClaimID == "c" && r.Image == 0 && r.NetIndex == 3:
		case r.ID == later.ID && r.State == Paused && r.Generation == 9 && r.Image == 9 && r.Claim.Team == "t":
		default:
			t.Errorf("read %+v", r)
		}
	}
	// What the first version needs of a record is where that looks for it.
	full := record(t)
	full.State, full.Image, full.Frozen, full.Stored = Claimed, 1, true, 1
	full.Claim = &Claim{ClaimID: "c3", Team: "t", MemoryBytes: 5, CPUMillis: 6, EnvReplaced: true, Network: &Network{Policy: json.RawMessage(`{}`)}}
	raw, err := json.Marshal(full)
	if err != nil {
		t.Fatal(err)
	}
	var first struct {
		ID         string
		Generation uint64
		State      string
		PoolKey    string `json:"pool_key"`
		NetIndex   uint32 `json:"net_index"`
		IP         string
		Claim      struct {
			ClaimID     string `json:"claim_id"`
			Team        string
			MemoryBytes int64 `json:"memory_bytes"`
		}
	}
	if err := json.Unmarshal(raw, &first); err != nil {
		t.Fatal(err)
	}
	if first.ID != string(full.ID) || first.State != "claimed" || first.PoolKey != full.PoolKey || first.Claim.ClaimID != "c3" || first.Claim.MemoryBytes != 5 || first.NetIndex != full.NetIndex {
		t.Errorf("the first version reads %+v of %s", first, raw)
	}
}
