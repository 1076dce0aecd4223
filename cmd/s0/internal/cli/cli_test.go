package cli

import (
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func walk(cmd *cobra.Command, visit func(*cobra.Command)) {
	visit(cmd)
	for _, sub := range cmd.Commands() {
		walk(sub, visit)
	}
}

// Help is the manual: every command says what it does and shows how, with
// commands and flags that exist.
func TestEveryCommandExplainsItself(t *testing.T) {
	t.Parallel()
	root := (&app{version: "test"}).root()
	walk(root, func(cmd *cobra.Command) {
		path := cmd.CommandPath()
		if cmd.Short == "" || cmd.Example == "" {
			t.Errorf("%s has no description or no example", path)
		}
		if cmd != root && (strings.HasSuffix(cmd.Short, ".") || strings.ToUpper(cmd.Short[:1]) != cmd.Short[:1]) {
			t.Errorf("%s: %q is not in the form of the others", path, cmd.Short)
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" || strings.HasSuffix(f.Usage, ".") {
				t.Errorf("%s: --%s is explained by %q", path, f.Name, f.Usage)
			}
		})
		shown := false
		for _, call := range invocation.FindAllString(cmd.Example, -1) {
			called := parse(t, root, strings.Fields(call)[1:])
			shown = shown || strings.HasPrefix(called.CommandPath(), path)
		}
		if !shown {
			t.Errorf("%s: no example calls it", path)
		}
	})
}

// invocation is a call of s0, up to what s0 does not read itself.
var invocation = regexp.MustCompile(`\bs0 (?:(?:[^|#\n)-]|-[^-]|--[a-z])+)`)

// parse finds the command that words call and checks the flags among them.
func parse(t *testing.T, cmd *cobra.Command, words []string) *cobra.Command {
	t.Helper()
	for i := 0; i < len(words); i++ {
		word, _, hasValue := strings.Cut(strings.Trim(words[i], `)"`), "=")
		if !strings.HasPrefix(word, "-") || word == "-" {
			if sub, _, err := cmd.Find(words[i : i+1]); err == nil && sub != cmd {
				cmd = sub
			}
			continue
		}
		cmd.InheritedFlags() // makes the lookups see them
		flag := cmd.Flags().ShorthandLookup(word[1:2])
		if strings.HasPrefix(word, "--") {
			flag = cmd.Flags().Lookup(word[2:])
		}
		switch {
		case flag == nil:
			t.Errorf("%s: an example uses %s, which does not exist", cmd.CommandPath(), words[i])
		case !hasValue && flag.NoOptDefVal == "":
			i++
		}
	}
	return cmd
}

func TestSeconds(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int32{"0": 0, "90": 90, "90s": 90, "1m30s": 90, "24h": 86400} {
		var s seconds
		if err := s.Set(text); err != nil || *s.value != want {
			t.Errorf("%s: %v, %v", text, s, err)
		}
	}
	for _, text := range []string{"", "-1", "1.5s", "soon", "99999999999"} {
		var s seconds
		if err := s.Set(text); err == nil || s.value != nil {
			t.Errorf("%q was taken for %v", text, s)
		}
	}
}

func TestParseEnv(t *testing.T) {
	t.Setenv("S0_TEST_PASSED_ON", "x=y")
	env, err := parseEnv([]string{"A=1", "B=", "C=a=b", "S0_TEST_PASSED_ON"})
	if err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]string{"A": "1", "B": "", "C": "a=b", "S0_TEST_PASSED_ON": "x=y"} {
		if got, ok := env[k]; !ok || got != want {
			t.Errorf("%s: %q, want %q", k, got, want)
		}
	}
	for _, pair := range []string{"=1", "", "S0_TEST_NOT_SET"} {
		if _, err := parseEnv([]string{pair}); err == nil {
			t.Errorf("%q was taken", pair)
		}
	}
}
