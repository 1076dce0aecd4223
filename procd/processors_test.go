package procd

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestProcessorsComeWithBulkAndGoAfterIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var set []int
		p := &processors{began: time.Now(), most: 3, set: func(n int) {
			mu.Lock()
			defer mu.Unlock()
			set = append(set, n)
		}}
		want := func(all ...int) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(set, all) {
				t.Errorf("set to %v, want %v", set, all)
			}
		}
		for range 1000 {
			p.moved(bulkBytes - 1)
		}
		want()
		for range 10 {
			p.moved(bulkBytes)
			time.Sleep(lull / 2)
		}
		want(3)
		time.Sleep(lull)
		want(3, 1)
		p.moved(1 << 20)
		want(3, 1, 3)
		time.Sleep(2 * lull)
		want(3, 1, 3, 1)
	})
}
