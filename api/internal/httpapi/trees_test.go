package httpapi

import (
	"testing"

	"s0.run/internal/procapi"
)

// B13: lines of a search are checked before a client sees them.
func TestB13_SearchLines(t *testing.T) {
	t.Parallel()
	for line, ok := range map[string]bool{
		`{"match":{"path":"/a","type":"file","line":1,"column":2,"text":"x"}}`:                          true,
		`{"match":{"path":"/a","type":"dir"}}`:                                                          true,
		`{"summary":{"matches":1,"files":1,"bytes":1,"skipped":0}}`:                                     true,
		`{"summary":{"matches":1,"files":1,"bytes":1,"skipped":0,"stopped":"results"}}`:                 true,
		`{"summary":{"matches":1,"files":1,"bytes":1,"skipped":0,"stopped":"fear"}}`:                    false,
		`{"match":{"path":"/a","type":"device"}}`:                                                       false,
		`{"match":{"path":"/a","type":"file","line":"1"}}`:                                              false,
		`{"match":{"path":"/a","type":"file"},"summary":{"matches":1,"files":1,"bytes":1,"skipped":0}}`: false,
		`{}`: false, `[]`: false, `x`: false, ``: false,
	} {
		if _, err := matchLine([]byte(line), 0); (err == nil) != ok {
			t.Errorf("%s: %v", line, err)
		}
	}
	if _, err := matchLine([]byte(`{"match":{"path":"/a","type":"file"}}`), procapi.MaxSearchResults+1); err == nil {
		t.Error("more matches than there may be are passed on")
	}
}
