package volumesync

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"regexp"
	"time"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

// verifiedBytes of a content are read and compared before anything is answered; a larger
// one is compared while it is sent, and its end is held back until it is what it shall be.
const verifiedBytes = 256 << 10

var (
	refForm = regexp.MustCompile(`^sha256:([0-9a-f]{64})$`)

	errNoContent = errdefs.New(errdefs.NotFound, "nothing in the volume has this content any more: a later entry tells of what became of it")
	errNotIt     = errors.New("the content is another one")
)

// ContentRef names a content; empty: there is none.
func ContentRef(sha256 string) string {
	if sha256 == "" {
		return ""
	}
	return "sha256:" + sha256
}

// Content is what a reference names, as long as some file of the volume has it. It never
// reads as anything else: the error of its Read says that it is not whole.
func (k *Keeper) Content(ctx context.Context, of Of, ref string) (size int64, content io.ReadCloser, err error) {
	m := refForm.FindStringSubmatch(ref)
	if m == nil {
		return 0, nil, errdefs.New(errdefs.InvalidArgument, "content_ref: want sha256: and 64 hexadecimal digits")
	}
	if _, err := k.cfg.Store.Volume(ctx, of.Team, of.Volume); err != nil {
		return 0, nil, err
	}
	paths, err := k.cfg.Store.SyncPathsWith(ctx, of.Team, of.Volume, m[1])
	if err != nil {
		return 0, nil, err
	}
	t := k.treeOf(of)
	for _, p := range paths {
		content, err := t.content(ctx, p)
		if err == nil {
			return p.Size, content, nil
		}
		if !errors.Is(err, errNotIt) && !errdefs.Is(err, errdefs.NotFound) && !errdefs.Is(err, errdefs.Conflict) && !errdefs.Is(err, errdefs.InvalidArgument) {
			return 0, nil, err
		}
	}
	return 0, nil, errNoContent
}

// content opens a path that had a content, if it still has it.
func (t tree) content(ctx context.Context, p store.SyncPath) (io.ReadCloser, error) {
	if p.Size > verifiedBytes {
		now, err := t.digests(ctx, []string{p.Path})
		if err == nil && now[p.Path].SHA256 != p.SHA256 {
			err = errNotIt
		}
		if err != nil {
			return nil, err
		}
	}
	resp, err := t.read(ctx, p.Path)
	if err != nil {
		return nil, err
	}
	in := &verified{r: resp.Body, left: p.Size, sum: sha256.New(), want: p.SHA256}
	if p.Size > verifiedBytes {
		return in, nil
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(in)
	switch {
	case errors.Is(err, errNotIt):
		return nil, err
	case err != nil:
		return nil, errdefs.New(errdefs.Unavailable, "the volume's files could not be read").WithRetryAfter(time.Second).WithCause(err)
	}
	return io.NopCloser(bytes.NewReader(all)), nil
}

// verified reads a content of a size and a sum, and answers no last byte of another one.
type verified struct {
	r    io.ReadCloser
	left int64
	sum  hash.Hash
	want string
}

func (v *verified) Close() error { return v.r.Close() }

func (v *verified) Read(p []byte) (int, error) {
	if v.left == 0 {
		return 0, v.end()
	}
	n, err := v.r.Read(p[:min(int64(len(p)), v.left)])
	v.left -= int64(n)
	v.sum.Write(p[:n])
	switch {
	case v.left == 0:
		if err := v.end(); !errors.Is(err, io.EOF) {
			return 0, err
		}
		return n, nil
	case errors.Is(err, io.EOF):
		err = errNotIt // it is shorter
	}
	return n, err
}

// end is io.EOF when all was what it shall be.
func (v *verified) end() error {
	if is := hex.EncodeToString(v.sum.Sum(nil)); is != v.want {
		return fmt.Errorf("%w: %s, not %s", errNotIt, is, v.want)
	}
	return io.EOF
}
