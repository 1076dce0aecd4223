package regauth

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func newKey(t *testing.T, fill byte) Key {
	t.Helper()
	k, err := NewKey([]byte(strings.Repeat(string(rune(fill)), keyBytes)))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestA04_GrantsAreWhatWasSigned(t *testing.T) {
	t.Parallel()
	k, now := newKey(t, 'k'), time.Now()
	password := k.Sign(Team("t-00000000", now.Add(time.Minute)))
	g, err := k.Open("t-00000000", password, now)
	if err != nil || !g.MayPush("t-00000000/a") || !g.MayPull("t-00000000/a/b") || !g.MayPull("s0/default") {
		t.Fatalf("%+v, %v", g, err)
	}
	for _, repository := range []string{"t-00000000", "t-000000001/a", "t-11111111/a", "s0/default", "x", ""} {
		if g.MayPush(repository) {
			t.Errorf("a team may push %q", repository)
		}
	}
	if g.MayPull("t-11111111/a") || g.Admin {
		t.Errorf("%+v", g)
	}
	body, mac, _ := strings.Cut(password, ".")
	forged, _, _ := strings.Cut(newKey(t, 'x').Sign(Team("t-11111111", now.Add(time.Minute))), ".")
	for name, c := range map[string]struct{ user, password string }{
		"another user": {"t-11111111", password}, "another body": {"t-11111111", forged + "." + mac},
		"another key": {"t-00000000", newKey(t, 'x').Sign(Team("t-00000000", now.Add(time.Minute)))},
		"no mac":      {"t-00000000", body}, "empty mac": {"t-00000000", body + "."}, "nothing": {"", ""}, "long": {"t-00000000", password + strings.Repeat("x", maxPasswordBytes)},
	} {
		if g, err := k.Open(c.user, c.password, now); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %+v, %v", name, g, err)
		}
	}
	if _, err := k.Open("t-00000000", password, now.Add(2*time.Minute)); !errors.Is(err, ErrExpired) {
		t.Errorf("an old one: %v", err)
	}
	if g, err := k.Open("node", k.Sign(Node()), now.AddDate(5, 0, 0)); err != nil || !g.MayPull("t-00000000/a") || g.MayPush("t-00000000/a") {
		t.Errorf("a node's: %+v, %v", g, err)
	}
	if s := fmt.Sprintf("%v %+v %#v %s", k, k, k, k); strings.Contains(s, "kkk") || strings.Contains(s, "107") {
		t.Errorf("the key is printed: %s", s)
	}
}

func TestTeamPrefix(t *testing.T) {
	t.Parallel()
	// sha1("00000000-0000-0000-0000-000000000000") = b602d594…
	if got := TeamPrefix("00000000-0000-0000-0000-000000000000"); got != "t-b602d594" {
		t.Errorf("prefix %s", got)
	}
}

func TestLoadKey(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "registry.key")
	var keys [8]Key
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			k, err := LoadKey(path)
			if err != nil {
				t.Error(err)
			}
			keys[i] = k
		})
	}
	wg.Wait()
	for _, k := range keys {
		if k != keys[0] || k == (Key{}) {
			t.Error("servers that start at once have different keys")
		}
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKey(path); err == nil {
		t.Error("a key that others may read was taken")
	}
}
