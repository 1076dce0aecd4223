package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"
	"unicode/utf8"

	"s0.run/internal/errdefs"
)

// Bounds of what a layer may hold beside its bytes.
const (
	maxEntries    = 1_000_000
	maxPathBytes  = 4 << 10
	maxXattrBytes = 64 << 10 // of one file
)

// What the names of an image's layers say of those below.
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// ours is what belongs to whoever runs the sandbox, not to its files.
var ours = []string{"proc", "sys", "dev", "run/s0", "tmp/.s0"}

const xattrPrefix = "SCHILY.xattr."

// convert turns the upper layer of a sandbox's root filesystem, as gVisor writes
// it, into a layer of an image. Nothing in it is believed: names are made plain
// ones that stay below the root, what is no file, directory or link is left out,
// and so is every attribute that is not listed here. Of an overlay it means what it
// means there: a character device 0:0 hides the name, an opaque directory hides
// what is below it.
func convert(from io.Reader, to io.Writer) error {
	in, out := tar.NewReader(from), tar.NewWriter(to)
	for range maxEntries {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return out.Close()
		}
		if err != nil {
			return fmt.Errorf("reading the upper layer: %w", err)
		}
		if err := entry(h, in, out); err != nil {
			return err
		}
	}
	return errdefs.New(errdefs.TooLarge, "the sandbox has changed more than %d files", maxEntries)
}

func entry(h *tar.Header, content io.Reader, out *tar.Writer) error {
	name, err := plain(h.Name)
	if err != nil || skipped(name) {
		return err
	}
	kept := &tar.Header{
		Typeflag: h.Typeflag, Name: name, Mode: h.Mode & 0o7777, Uid: max(h.Uid, 0), Gid: max(h.Gid, 0),
		ModTime: h.ModTime.Truncate(time.Second), Format: tar.FormatPAX, PAXRecords: attributes(h.PAXRecords),
	}
	switch h.Typeflag {
	case tar.TypeReg:
		kept.Size = h.Size
	case tar.TypeDir:
		kept.Name += "/"
	case tar.TypeSymlink:
		kept.Linkname = h.Linkname
	case tar.TypeLink:
		if kept.Linkname, err = plain(h.Linkname); err != nil {
			return err
		}
	case tar.TypeChar:
		if h.Devmajor != 0 || h.Devminor != 0 {
			return nil
		}
		kept = marker(path.Join(path.Dir(name), whiteout+path.Base(name)))
	default:
		return nil
	}
	if err := write(out, kept, content); err != nil {
		return fmt.Errorf("writing %.200q: %w", name, err)
	}
	if h.Typeflag == tar.TypeDir && isOpaque(h.PAXRecords) {
		return out.WriteHeader(marker(path.Join(name, opaque)))
	}
	return nil
}

func write(out *tar.Writer, h *tar.Header, content io.Reader) error {
	if err := out.WriteHeader(h); err != nil || h.Size == 0 {
		return err
	}
	_, err := io.Copy(out, content)
	return err
}

func marker(name string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Format: tar.FormatPAX}
}

// plain is a name below the root in its one form; the root itself is ".". A file
// whose name means something in a layer can't be part of one.
func plain(name string) (string, error) {
	if len(name) > maxPathBytes || strings.ContainsRune(name, 0) || !utf8.ValidString(name) {
		return "", errdefs.New(errdefs.Unprocessable, "the sandbox has a file whose name no image can hold")
	}
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if name == "" {
		return ".", nil
	}
	for part := range strings.SplitSeq(name, "/") {
		if strings.HasPrefix(part, whiteout) {
			return "", errdefs.New(errdefs.Unprocessable, "the sandbox has a file whose name begins with %s, which no image can hold", whiteout)
		}
	}
	return name, nil
}

func skipped(name string) bool {
	if name == "." {
		return true
	}
	for _, dir := range ours {
		if name == dir || strings.HasPrefix(name, dir+"/") {
			return true
		}
	}
	return false
}

// attributes keeps users' own and file capabilities.
func attributes(records map[string]string) map[string]string {
	var kept map[string]string
	size := 0
	for key, v := range records {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		if !ok || name != "security.capability" && !strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "user.overlay.") {
			continue
		}
		if size += len(name) + len(v); size > maxXattrBytes {
			return kept
		}
		if kept == nil {
			kept = map[string]string{}
		}
		kept[key] = v
	}
	return kept
}

func isOpaque(records map[string]string) bool {
	return records[xattrPrefix+"trusted.overlay.opaque"] == "y" || records[xattrPrefix+"user.overlay.opaque"] == "y"
}
