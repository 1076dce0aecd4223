package ratelimit

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestABurstThenTheRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(10, 3)
		for i := range 3 {
			if v := l.Take("a"); !v.OK || v.Limit != 3 || v.Remaining != 2-i {
				t.Fatalf("event %d: %+v", i, v)
			}
		}
		v := l.Take("a")
		if v.OK || v.RetryAfter <= 0 || v.RetryAfter > 100*time.Millisecond {
			t.Fatalf("beyond the burst: %+v", v)
		}
		if v := l.Take("b"); !v.OK {
			t.Fatalf("another key: %+v", v)
		}
		time.Sleep(v.RetryAfter)
		if v := l.Take("a"); !v.OK {
			t.Fatalf("when it was told to come back: %+v", v)
		}
		if v := l.Take("a"); v.OK {
			t.Fatalf("one at a time: %+v", v)
		}
	})
}

func TestFullBucketsAreForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(10, 10)
		for i := range 1000 {
			l.Take(fmt.Sprint(i))
		}
		time.Sleep(2 * time.Second)
		l.Take("last")
		if n := len(l.buckets); n != 1 {
			t.Fatalf("%d buckets are left", n)
		}
	})
}

func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	l := New(0.001, 1)
	for i := range maxKeys + 10 {
		l.Take(fmt.Sprint(i))
	}
	if n := len(l.buckets); n > maxKeys {
		t.Fatalf("%d buckets", n)
	}
}
