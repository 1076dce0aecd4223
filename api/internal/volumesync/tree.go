package volumesync

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"s0.run/api/internal/dataplane"
	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

// headTime is for a call's answer to begin: what serves the files may have to be started.
const headTime = 30 * time.Second

// tree is the files of a volume, as its node has them.
type tree struct {
	plane *dataplane.Plane
	to    dataplane.Target
}

var (
	errTooMany = errdefs.New(errdefs.TooLarge, "the volume has more than %d files and directories, or deeper ones, than can be kept alike", procapi.MaxMirrorEntries)
	errNoSense = errdefs.New(errdefs.BadGateway, "the volume's answer makes no sense")
)

// walk is everything in the tree, a directory before what is in it, and a sum of all.
func (t tree) walk(ctx context.Context) (all []procapi.TreeEntry, sum []byte, err error) {
	hash := sha256.New()
	summary, err := t.lines(ctx, "/tree", struct{}{}, procapi.MaxMirrorEntries, func(line []byte, e procapi.TreeEntry) error {
		hash.Write(line)
		all = append(all, e)
		return nil
	})
	if err == nil && summary.Stopped != "" {
		err = errTooMany
	}
	return all, hash.Sum(nil), err
}

// digests reads files; what is none any more is not among them.
func (t tree) digests(ctx context.Context, paths []string) (map[string]procapi.TreeEntry, error) {
	all := make(map[string]procapi.TreeEntry, len(paths))
	_, err := t.lines(ctx, "/digests", procapi.DigestRequest{Paths: paths}, len(paths), func(_ []byte, e procapi.TreeEntry) error {
		all[e.Path] = e
		return nil
	})
	return all, err
}

// lines reads a stream of at most most entries.
func (t tree) lines(ctx context.Context, call string, in any, most int, each func(line []byte, e procapi.TreeEntry) error) (sum procapi.TreeSummary, err error) {
	body, err := json.Marshal(in)
	if err != nil {
		return sum, err
	}
	resp, err := t.plane.Stream(ctx, t.to, dataplane.Request{
		Method: http.MethodPost, Path: procapi.PathFiles + call, Timeout: headTime,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: bytes.NewReader(body), Length: int64(len(body)),
	})
	if err != nil {
		return sum, err
	}
	defer resp.Body.Close()
	lines := bufio.NewReaderSize(resp.Body, procapi.MaxTreeLine)
	for n := 0; ; n++ {
		b, err := lines.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return sum, errdefs.New(errdefs.Unavailable, "the volume's files could not be read").WithRetryAfter(time.Second).WithCause(err)
		}
		var line procapi.TreeLine
		if err := json.Unmarshal(b, &line); err != nil {
			return sum, errNoSense.WithCause(err)
		}
		switch {
		case line.Summary != nil:
			return *line.Summary, nil
		case line.Entry == nil || n == most:
			return sum, errNoSense.WithCause(fmt.Errorf("line %d", n))
		}
		if err := sane(*line.Entry); err != nil {
			return sum, errNoSense.WithCause(err)
		}
		if err := each(b, *line.Entry); err != nil {
			return sum, err
		}
	}
}

var digestForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// sane checks what a node says of a path.
func sane(e procapi.TreeEntry) error {
	_, err := cleanPath("path", e.Path)
	switch {
	case err != nil || path.IsAbs(e.Path):
		return fmt.Errorf("path %.200q: %w", e.Path, err)
	case e.Type != procapi.TreeFile && e.Type != procapi.TreeDir && e.Type != procapi.TreeOther, e.Mode > 0o777, e.Size < 0,
		len(e.Stamp) > 128 || strings.ContainsRune(e.Stamp, 0), e.SHA256 != "" && !digestForm.MatchString(e.SHA256):
		return fmt.Errorf("path %.200q makes no sense", e.Path)
	}
	return nil
}

// errMoved says that a path is not what the latest look has seen.
type errMoved struct{ cause error }

func (e *errMoved) Error() string {
	return "the volume has changed since it was looked at: " + e.cause.Error()
}
func (e *errMoved) Unwrap() error { return e.cause }

// movedCodes are what the files' calls say of a path that is not what it was. A volume that
// is gone, or in use, has other ones.
var movedCodes = []string{"path_exists", "path_not_directory", "path_not_file", "file_not_found", "directory_not_found"}

func moved(err error) error {
	if typed, is := errors.AsType[*errdefs.Error](err); is && slices.Contains(movedCodes, typed.Code) {
		return &errMoved{err}
	}
	return err
}

// put writes a file where what is expected is.
func (t tree) put(ctx context.Context, name string, mode int32, expect string, content []byte) (procapi.TreeEntry, error) {
	var e procapi.TreeEntry
	err := t.plane.Call(ctx, t.to, dataplane.Request{
		Method: http.MethodPost, Path: procapi.PathFiles + "/put", Timeout: workTime,
		Query: url.Values{"path": {name}, "mode": {strconv.FormatUint(uint64(mode), 8)}, "expect": {expect}},
		Body:  bytes.NewReader(content), Length: int64(len(content)),
	}, nil, &e, func() error { return sane(e) })
	return e, moved(err)
}

// alter makes alterations in order; when it fails, nobody knows how many.
func (t tree) alter(ctx context.Context, all []procapi.Alteration) (entries []*procapi.TreeEntry, err error) {
	for part := range slices.Chunk(all, procapi.MaxAlterations) {
		var made procapi.AlterResult
		err := t.plane.Call(ctx, t.to, dataplane.Request{Method: http.MethodPost, Path: procapi.PathFiles + "/alter", Timeout: workTime},
			procapi.AlterRequest{Alterations: part}, &made, func() error { return saneAll(made, len(part)) })
		if err != nil {
			return nil, moved(err)
		}
		entries = append(entries, made.Entries...)
	}
	return entries, nil
}

func saneAll(made procapi.AlterResult, want int) error {
	if len(made.Entries) != want {
		return fmt.Errorf("%d entries of %d alterations", len(made.Entries), want)
	}
	for _, e := range made.Entries {
		if e == nil {
			continue
		}
		if err := sane(*e); err != nil {
			return err
		}
	}
	return nil
}

// read opens a file.
func (t tree) read(ctx context.Context, name string) (*http.Response, error) {
	return t.plane.Stream(ctx, t.to, dataplane.Request{
		Method: http.MethodGet, Path: procapi.PathFiles, Query: url.Values{"path": {name}}, Timeout: headTime,
	})
}
