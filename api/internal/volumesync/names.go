package volumesync

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

// stagedPrefixes begin the names under which the node stages content: they are nobody's.
var stagedPrefixes = []string{".s0-new-", ".s0-change-", ".s0-tree-"}

// cleanPath reads a path that a replica names: from the volume's root on, with or without a
// slash before. What is answered is without.
func cleanPath(field, p string) (string, error) {
	name := strings.TrimPrefix(p, "/")
	switch {
	case name == "" || len(name) > procapi.MaxMirrorPath || !utf8.ValidString(name) || strings.ContainsRune(name, 0):
		return "", errdefs.New(errdefs.InvalidArgument, "%s: want a path of at most %d bytes", field, procapi.MaxMirrorPath)
	case path.Clean(name) != name || name == "." || name == ".." || strings.HasPrefix(name, "../"):
		return "", errdefs.New(errdefs.InvalidArgument, "%s: want a path without `.`, `..`, repeated and trailing slashes", field)
	}
	for segment := range strings.SplitSeq(name, "/") {
		if len(segment) > maxSegment || slices.ContainsFunc(stagedPrefixes, func(p string) bool { return strings.HasPrefix(segment, p) }) {
			return "", errdefs.New(errdefs.InvalidArgument, "%s: a name is longer than %d bytes, or reserved", field, maxSegment)
		}
	}
	return name, nil
}

// maxSegment is the longest name of file systems, in bytes.
const maxSegment = 255

// Shown is a path as it is answered.
func Shown(name string) string {
	if name == "" {
		return ""
	}
	return "/" + name
}

// Normalized is a path as file systems have it that tell neither cases nor forms of
// characters apart.
func Normalized(name string) string {
	return norm.NFC.String(cases.Fold().String(norm.NFC.String(name)))
}

// names are the rules of all replicas of a volume together.
type names struct{ store.SyncNames }

// key is what two paths have in common of which some replica can have only one.
func (n names) key(name string) string {
	switch {
	case !n.CaseSensitive:
		return Normalized(name)
	case n.UnicodeInsensitive:
		return norm.NFC.String(name)
	}
	return name
}

// any reports whether some replica can't have every name.
func (n names) any() bool { return !n.CaseSensitive || n.UnicodeInsensitive || n.Windows }

// Issue is why a replica can't have a path.
type Issue struct {
	Code           string   `json:"code"`
	Path           string   `json:"path,omitempty"`
	NormalizedPath string   `json:"normalized_path,omitempty"`
	Paths          []string `json:"paths,omitempty"`
	Segment        string   `json:"segment,omitempty"`
	Message        string   `json:"message"`
}

// Codes of issues, which are reasons of conflicts, too.
const (
	codeCasefold = "casefold_collision"
	codeUnicode  = "unicode_normalization_collision"
	codeReserved = "windows_reserved_name"
	codeInvalid  = "windows_invalid_name"
)

// issues are at most maxIssues reasons why a file system with these rules can't have paths.
func (n names) issues(paths []string) (all []Issue) {
	slices.Sort(paths)
	byKey := map[string][]string{}
	for _, p := range paths {
		if key := n.key(p); n.any() {
			byKey[key] = append(byKey[key], Shown(p))
		}
		if code, segment := n.refused(p); code != "" && len(all) < maxIssues {
			all = append(all, Issue{
				Code: code, Path: Shown(p), NormalizedPath: Shown(Normalized(p)), Segment: segment,
				Message: fmt.Sprintf("%q can't be a name on Windows", segment),
			})
		}
	}
	for _, p := range paths {
		same := byKey[n.key(p)]
		if len(same) < 2 || same[0] != Shown(p) || len(all) >= maxIssues {
			continue
		}
		code := codeCasefold
		if n.CaseSensitive {
			code = codeUnicode
		}
		all = append(all, Issue{Code: code, NormalizedPath: Shown(Normalized(p)), Paths: same, Message: "these paths are one on the replica"})
	}
	return all
}

// refused is why Windows, where a replica is on it, can't have a path; empty: it can.
func (n names) refused(name string) (code, segment string) {
	if !n.Windows {
		return "", ""
	}
	for segment := range strings.SplitSeq(name, "/") {
		stem, _, _ := strings.Cut(strings.ToUpper(segment), ".")
		switch {
		case slices.Contains(devices, strings.TrimRight(stem, " ")):
			return codeReserved, segment
		case strings.ContainsAny(segment, `<>:"\|?*`) || strings.ContainsFunc(segment, unicode.IsControl),
			strings.HasSuffix(segment, "."), strings.HasSuffix(segment, " "):
			return codeInvalid, segment
		}
	}
	return "", ""
}

// devices are names that Windows keeps for itself, with any extension.
var devices = []string{
	"CON", "PRN", "AUX", "NUL",
	"COM1", "COM2", "COM3", "COM4", "COM5", "COM6", "COM7", "COM8", "COM9",
	"LPT1", "LPT2", "LPT3", "LPT4", "LPT5", "LPT6", "LPT7", "LPT8", "LPT9",
}

// artifactName is where the content of a refused change is kept: beside its path, under a
// name that tells whose it is. The number is that of its own entry, so that no two have
// one name.
func artifactName(dir, name, replica string, seq int64) string {
	begin, end := artifactParts(name, replica)
	return path.Join(dir, begin+strconv.FormatInt(seq, 10)+end)
}

// artifactParts are what is before and behind the number.
func artifactParts(name, replica string) (begin, end string) {
	actor := strings.Map(func(r rune) rune {
		if r < utf8.RuneSelf && (unicode.IsLetter(r) || unicode.IsDigit(r) || r == '-' || r == '_') {
			return r
		}
		return '-'
	}, replica)
	if len(actor) > maxActor {
		actor = actor[:maxActor]
	}
	base, ext := name, path.Ext(name)
	if ext == name || len(ext) > maxExt { // a name that begins with its only dot has none
		ext = ""
	}
	base = strings.TrimSuffix(base, ext)
	mark := ".sandbox0-conflict-" + actor + "-seq-"
	for len(base)+len(mark)+maxSeq+len(ext) > maxArtifactName {
		_, size := utf8.DecodeLastRuneInString(base)
		base = base[:len(base)-size]
	}
	return base + mark, ext
}

// Bounds of an artifact's name's parts, in bytes.
const maxActor, maxSeq, maxExt = 40, 19, 32
