package child

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

const (
	maxLog   = 64 << 20    // bytes of a log that is moved aside
	trimPoll = time.Minute // a log grows for as long at most
)

// OpenLog opens a log for appending: only then may it be cut under its writer.
func OpenLog(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
}

// TrimLogs keeps the logs in a directory from growing without bound until ctx
// ends. A writer holds its file open, so a log is copied aside and cut, not
// renamed: the lines of an instant may be lost.
func TrimLogs(ctx context.Context, dir string, log *slog.Logger) {
	tick := time.NewTicker(trimPoll)
	defer tick.Stop()
	for {
		if err := trimAll(dir, maxLog); err != nil {
			log.Warn("a log can't be trimmed", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func trimAll(dir string, limit int64) error {
	logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
	for _, path := range logs {
		err = errors.Join(err, trim(path, limit))
	}
	return err
}

func trim(path string, limit int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() <= limit {
		return err
	}
	return errors.Join(copyTo(path+".1", f), f.Truncate(0)) // cut also when the disk is full: then above all
}

func copyTo(path string, r io.Reader) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}
