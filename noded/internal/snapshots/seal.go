package snapshots

import (
	"errors"
	"os"
	"path/filepath"
)

// Seal makes the files in a part of an image durable and then adds one that says so: what is
// not on the disk is never complete. If it fails the part is not.
func Seal(part, complete string) error {
	files, err := os.ReadDir(part)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := syncDir(filepath.Join(part, f.Name())); err != nil {
			return err
		}
	}
	complete = filepath.Join(part, complete)
	if err := writeSynced(complete, nil); err != nil {
		return errors.Join(err, os.RemoveAll(complete))
	}
	return syncDir(part)
}
