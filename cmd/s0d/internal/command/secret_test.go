package command

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A secret comes from its file, without the line's end; what is there and says nothing is
// no secret, and takes nothing's place.
func TestSecretsComeFromFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for content, want := range map[string]string{"postgres://a\n": "postgres://a", "\n": "", strings.Repeat("x", maxSecret+1): ""} {
		file := filepath.Join(dir, fmt.Sprint(len(content)))
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		var got string
		if err := (&secretFlag{file, &got}).read(); (err == nil) != (want != "") || got != want {
			t.Errorf("read %.20q, %v, want %.20q", got, err, want)
		}
	}
	given := "from the command line"
	if err := (&secretFlag{to: &given}).read(); err != nil || given != "from the command line" {
		t.Errorf("without a file it is %q, %v", given, err)
	}
	if err := (&secretFlag{filepath.Join(dir, "none"), &given}).read(); err == nil {
		t.Error("a file that is not there was read")
	}
}
