package sshproxy

import (
	"slices"
	"strings"

	"s0.run/internal/errdefs"
)

// Command is what git has a server run: one program over one repository.
type Command struct{ Program, Repository string }

var programs = []string{"git-upload-pack", "git-receive-pack", "git-upload-archive"}

// maxCommand is more than any repository's path.
const maxCommand = 4096

var (
	errCommand         = errdefs.New(errdefs.PermissionDenied, "only git-upload-pack, git-receive-pack and git-upload-archive of one repository pass here")
	errRefusedUpstream = errdefs.New(errdefs.BadGateway, "upstream runs no command for this key")
)

// ParseCommand understands what git's client says and nothing else: a program's name and
// one word, in the shell's single quotes as git writes them.
func ParseCommand(text string) (Command, error) {
	if len(text) > maxCommand {
		return Command{}, errCommand
	}
	if rest, ok := strings.CutPrefix(text, "git "); ok { // the other way to say it
		text = "git-" + rest
	}
	program, word, ok := strings.Cut(text, " ")
	if !ok || !slices.Contains(programs, program) {
		return Command{}, errCommand
	}
	repository, ok := unquote(word)
	if !ok || repository == "" || repository[0] == '-' || strings.ContainsFunc(repository, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return Command{}, errCommand
	}
	return Command{program, repository}, nil
}

// unquote reads one word: pieces in single quotes, and between them \' and \! alone.
func unquote(word string) (string, bool) {
	var out strings.Builder
	for len(word) > 0 {
		switch {
		case word[0] == '\'':
			end := strings.IndexByte(word[1:], '\'')
			if end < 0 {
				return "", false
			}
			out.WriteString(word[1 : 1+end])
			word = word[end+2:]
		case strings.HasPrefix(word, `\'`), strings.HasPrefix(word, `\!`):
			out.WriteByte(word[1])
			word = word[2:]
		default:
			return "", false
		}
	}
	return out.String(), true
}

// String is the command for a shell, quoted as git does it.
func (c Command) String() string {
	return c.Program + " '" + strings.NewReplacer(`'`, `'\''`, `!`, `'\!'`).Replace(c.Repository) + "'"
}
