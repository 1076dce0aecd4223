package cli

import (
	_ "embed"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

//go:embed testdata/commands.txt
var contract string

// TestTreeOfTheContract holds the commands and flags that there are against those
// that the contract names.
func TestTreeOfTheContract(t *testing.T) {
	t.Parallel()
	root := (&app{version: "test"}).root()
	lines := 0
	for line := range strings.Lines(contract) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] == "#" {
			continue
		}
		lines++
		path, rest := split(words)
		checkLine(t, root, path[1:], rest)
	}
	if lines < 100 {
		t.Errorf("%d lines were read", lines)
	}
}

// split separates a command from its arguments and flags.
func split(words []string) (path, rest []string) {
	n := 0
	for n < len(words) && isName(words[n]) {
		n++
	}
	return words[:n], words[n:]
}

// find finds a command by its path; nil when there is none.
func find(cmd *cobra.Command, path []string) *cobra.Command {
	for _, name := range path {
		sub, _, err := cmd.Find([]string{name})
		if err != nil || sub == cmd {
			return nil
		}
		cmd = sub
	}
	return cmd
}

func checkLine(t *testing.T, root *cobra.Command, path, words []string) {
	t.Helper()
	cmd := find(root, path)
	if cmd == nil {
		t.Errorf("there is no s0 %s", strings.Join(path, " "))
		return
	}
	var args []string
	for _, w := range words {
		switch {
		case strings.HasPrefix(w, "-"):
			checkFlag(t, cmd, w)
		case !strings.HasPrefix(w, "["):
			args = append(args, w)
		}
	}
	if cmd.Args != nil && !cmd.HasSubCommands() {
		if err := cmd.Args(cmd, args); err != nil {
			t.Errorf("%s does not take %q: %v", cmd.CommandPath(), args, err)
		}
	}
}

// isName tells a command's name from an argument of it.
func isName(word string) bool {
	return !strings.HasPrefix(word, "-") && !strings.HasPrefix(word, "[") && strings.ToLower(word) == word
}

func checkFlag(t *testing.T, cmd *cobra.Command, word string) {
	t.Helper()
	names, takesValue := strings.CutSuffix(word, "=")
	for name := range strings.SplitSeq(names, "/") {
		f := lookup(cmd, name)
		switch {
		case f == nil:
			t.Errorf("%s has no %s", cmd.CommandPath(), name)
		case takesValue != (f.NoOptDefVal == ""):
			t.Errorf("%s: that %s takes a value is %v, want %v", cmd.CommandPath(), name, !takesValue, takesValue)
		}
	}
}

func lookup(cmd *cobra.Command, name string) *pflag.Flag {
	cmd.InheritedFlags() // makes the lookups see them
	if long, is := strings.CutPrefix(name, "--"); is {
		return cmd.Flags().Lookup(long)
	}
	if f := cmd.Flags().ShorthandLookup(name[1:]); f != nil {
		return f
	}
	return cmd.InheritedFlags().ShorthandLookup(name[1:])
}
