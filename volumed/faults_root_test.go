package volumed_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"s0.run/internal/volumeapi"
)

// needFaults is for tests that take minutes.
func needFaults(t *testing.T) {
	t.Helper()
	if os.Getenv("S0_VOLUMES") == "" {
		t.Skip("takes minutes: make test-volumes")
	}
}

// answer has the bucket answer and returns what it said.
func answer(r *http.Request, bucket http.Handler) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	bucket.ServeHTTP(rec, r)
	return rec
}

func send(w http.ResponseWriter, rec *httptest.ResponseRecorder, body []byte) {
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Length", fmt.Sprint(rec.Body.Len()))
	w.WriteHeader(rec.Code)
	_, _ = w.Write(body) // or who asked has gone
}

// faults are those of the bucket, by what a commit and a read of what is not here make of them.
// A store that damages answers takes writes.
var faults = []struct {
	name          string
	commits, read outcome
	fault         fault
}{
	{"down", fails, fails, func(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }},
	{"403", fails, fails, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { w.WriteHeader(http.StatusForbidden) }},
	{"slow", succeeds, succeeds, func(w http.ResponseWriter, r *http.Request, bucket http.Handler) {
		select {
		case <-time.After(500 * time.Millisecond):
			bucket.ServeHTTP(w, r)
		case <-r.Context().Done():
		}
	}},
	{"truncated", maybe, fails, func(w http.ResponseWriter, r *http.Request, bucket http.Handler) {
		if r.Method != http.MethodGet {
			bucket.ServeHTTP(w, r)
			return
		}
		rec := answer(r, bucket)
		send(w, rec, rec.Body.Bytes()[:rec.Body.Len()/2])
	}},
	{"wrong bytes", maybe, fails, func(w http.ResponseWriter, r *http.Request, bucket http.Handler) {
		if r.Method != http.MethodGet {
			bucket.ServeHTTP(w, r)
			return
		}
		rec := answer(r, bucket)
		body := bytes.Clone(rec.Body.Bytes())
		for i := range body {
			body[i] ^= byte(1 + i%7)
		}
		send(w, rec, body)
	}},
}

// An outcome is what a call is to end in.
type outcome int

const (
	maybe outcome = iota
	succeeds
	fails
)

func (o outcome) is(err error) bool { return o == maybe || (o == succeeds) == (err == nil) }

// X43: while the bucket fails, whoever writes goes on, a commit says that it has failed, and
// nobody reads anything but what was written; when it is well again, all of it is there.
func TestX43_TheBucketFails(t *testing.T) {
	needFaults(t)
	c := newCluster(t)
	writer, reader := c.node("writer"), c.node("reader")
	for i, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			whole := c.T
			defer func() { c.T = whole }()
			c.T = t
			id := fmt.Sprint("volume", i)
			noise := make([]byte, 24<<20) // more than is read ahead
			_, _ = rand.Read(noise)       // it never fails
			want := map[string]string{"before": string(noise)}
			writer.create(id)
			at := writer.use(id, 1)
			writer.put(at, "before", want["before"])
			c.must(writer.commit(id))
			m, err := reader.api.Use(reader.ctx(), volumeapi.Use{Volume: volume(id, 1), Use: "cold", ReadOnly: true})
			c.must(err)

			writer.fails(f.fault)
			reader.fails(f.fault)
			want["meanwhile"] = strings.Repeat("m", 200_000)
			writer.put(at, "meanwhile", want["meanwhile"])
			err = writer.commit(id)
			if !f.commits.is(err) {
				t.Errorf("a commit: %v", err)
			}
			got, err := os.ReadFile(m.Path + "/before")
			if err == nil && string(got) != want["before"] {
				t.Errorf("R7: a reader has %d bytes that were never written", len(got))
			} else if !f.read.is(err) {
				t.Errorf("a read of %d bytes: %v", len(got), err)
			}
			here, err := content(at)
			c.must(err)
			c.want("for the writer", here, want)

			writer.fails(nil)
			reader.fails(nil)
			writer.until("a commit", func() bool { return writer.commit(id) == nil })
			writer.leave(id, 1)
			c.must(reader.api.Leave(reader.ctx(), volumeapi.Leave{ID: id, Use: "cold"}))
			reader.until("the volume on the other node", func() bool {
				m, err := reader.api.Use(reader.ctx(), volumeapi.Use{Volume: volume(id, 2), Use: "warm", ReadOnly: true})
				c.must(err)
				defer func() { c.must(reader.api.Leave(reader.ctx(), volumeapi.Leave{ID: id, Use: "warm"})) }()
				got, err := content(m.Path)
				if err != nil { // the kernel may remember an error for a moment
					t.Log(err)
					return false
				}
				c.want("on the other node", got, want)
				return true
			})
		})
	}
}

// X46, X47: volumed is killed at every place of a commit. The next one has what was fsynced,
// and so has another node once it is committed; one that takes the volume instead has a version
// that is whole.
func TestX46_X47_KilledAtEveryPlace(t *testing.T) {
	needFaults(t)
	c := newCluster(t)
	a, b := c.node("a"), c.node("b")
	for i, place := range []string{"volume.after-layer", "volume.after-intent", "volume.after-link", "volume.after-version"} {
		for _, next := range []string{"goes on", "dies", "is replaced"} {
			t.Run(place+" "+next, func(t *testing.T) {
				whole := c.T
				defer func() { c.T = whole }()
				c.T = t
				id := strings.ReplaceAll(fmt.Sprint("v", i, next), " ", "-")
				a.create(id)
				at := a.use(id, 1)
				a.put(at, "before", "1")
				c.must(a.commit(id))
				a.kill()
				a.start(place + "=exit")
				a.put(a.use(id, 1), "meanwhile", "2")
				if err := a.commit(id); err == nil {
					t.Error("a commit by who was killed has succeeded")
				}
				<-a.exited
				before, after := map[string]string{"before": "1"}, map[string]string{"before": "1", "meanwhile": "2"}
				switch next {
				case "dies":
					a.die()
					fallthrough
				case "goes on":
					a.kill()
					a.start("")
					got, err := content(a.use(id, 1))
					c.must(err)
					c.want("R7: on its node", got, after)
					c.must(a.commit(id))
					a.leave(id, 1)
					c.want("elsewhere", b.read(id, 1), after)
				case "is replaced":
					got, err := content(b.use(id, 2))
					c.must(err)
					if fmt.Sprint(got) != fmt.Sprint(before) && fmt.Sprint(got) != fmt.Sprint(after) {
						t.Errorf("elsewhere there is %v", got)
					}
					a.kill()
					a.start("")
					c.wantFenced("who was killed", a.commit(id))
					b.leave(id, 2)
				}
			})
		}
	}
}
