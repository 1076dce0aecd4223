package tree

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Own is the directory in a replica's root that holds half-written files. It is never
// part of what is synced.
const Own = ".s0-sync"

const (
	maxPath = 4096 // PATH_MAX
	maxName = 255  // NAME_MAX
)

// CheckPath says whether a name from the server can be one here. The server, and with
// it whoever writes to the volume, is not trusted: a path that leads outside the root, to
// what we keep in it, to git's own files (whose hooks run as the user) or to what the
// system takes for something else is refused.
func CheckPath(path string) error {
	if len(path) > maxPath {
		return errors.New("the path is too long")
	}
	if !utf8.ValidString(path) || strings.ContainsFunc(path, unicode.IsControl) {
		return errors.New("the path has letters that no file here may have")
	}
	if !filepath.IsLocal(path) || strings.HasSuffix(path, "/") || strings.Contains(path, "//") {
		return errors.New("the path leads elsewhere")
	}
	if _, err := filepath.Localize(path); err != nil {
		return errors.New("no file here can have such a path")
	}
	for name := range strings.SplitSeq(path, "/") {
		if err := checkName(name); err != nil {
			return err
		}
	}
	return nil
}

func checkName(name string) error {
	switch {
	case name == "." || name == "..":
		return errors.New("the path leads elsewhere")
	case len(name) > maxName:
		return errors.New("a name in the path is too long")
	case Private(name):
		return fmt.Errorf("%q is never synced", name)
	case foreign && !windowsName(name):
		return errors.New("no file here can have such a name")
	}
	return nil
}

// Private reports whether a name is git's or ours, in any spelling that some file system
// takes for it.
func Private(name string) bool {
	plain := strings.Map(func(r rune) rune {
		if unicode.Is(unicode.Cf, r) { // HFS+ does not see these
			return -1
		}
		return unicode.ToLower(r)
	}, norm.NFKC.String(name))
	plain, _, _ = strings.Cut(plain, ":") // an NTFS stream
	switch strings.TrimRight(plain, ". ") {
	case ".git", "git~1", Own, "s0-syn~1":
		return true
	}
	return false
}

// windowsName reports whether Windows keeps a file under exactly this name.
func windowsName(name string) bool {
	if strings.ContainsAny(name, `<>:"|?*\`) || strings.HasSuffix(name, ".") || strings.HasSuffix(name, " ") {
		return false
	}
	base, _, _ := strings.Cut(strings.ToUpper(name), ".")
	switch base = strings.TrimRight(base, " "); base {
	case "CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$":
		return false
	}
	for _, device := range []string{"COM", "LPT"} {
		if digit, is := strings.CutPrefix(base, device); is && utf8.RuneCountInString(digit) == 1 && strings.Contains("0123456789¹²³", digit) {
			return false
		}
	}
	return true
}

// Fold is what two paths have in common that a file system without case takes for one.
func Fold(path string) string { return strings.ToLower(norm.NFC.String(path)) }

// Relative is a path of the journal as one below the root.
func Relative(path string) string { return strings.TrimPrefix(path, "/") }
