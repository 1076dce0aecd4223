package task

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"s0.run/internal/shimapi"
)

// R7, X41: an image that the disk did not take does not say that it is complete, whichever
// of its syncs failed.
func TestR7_AnImageThatIsNotDurableIsNotComplete(t *testing.T) {
	t.Parallel()
	full := errors.New("no space left on device")
	for failing, want := range map[string]error{"file": full, "dir": full, "": nil} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "pages.img"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		var synced []string
		err := seal(dir, func(path string) error {
			synced = append(synced, path)
			if failing == "file" && path != dir || failing == "dir" && path == dir {
				return full
			}
			return syncPath(path)
		})
		_, marked := os.Stat(filepath.Join(dir, shimapi.ImageComplete))
		if !errors.Is(err, want) || errors.Is(marked, fs.ErrNotExist) != (want != nil) {
			t.Errorf("when the sync of a %q fails: %v, and its mark: %v", failing, err, marked)
		}
		if want == nil && !slices.Equal(synced, []string{filepath.Join(dir, "pages.img"), dir}) {
			t.Errorf("synced are %q", synced)
		}
	}
}
