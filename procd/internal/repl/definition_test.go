package repl

import (
	"bytes"
	"strings"
	"testing"

	"s0.run/internal/errdefs"
	"s0.run/internal/procapi"
)

func TestDefine(t *testing.T) {
	t.Parallel()
	for alias, name := range map[string]string{
		"": "python", "python3": "python", "javascript": "node", "nodejs": "node", "rb": "ruby", "R": "r", "pl": "perl",
	} {
		if d, err := Define(&procapi.REPLRequest{Alias: alias}, false); err != nil || d.Name != name {
			t.Errorf("alias %q: %q, %v", alias, d.Name, err)
		}
	}
	for _, name := range strings.Fields("python node bash zsh ruby lua php r perl redis-cli sqlite swift kotlin") {
		d, err := Define(&procapi.REPLRequest{Alias: name}, true)
		if err != nil || len(d.Candidates) == 0 || d.Prompt == "" || d.Term == "" || d.Exact {
			t.Errorf("%s: %+v, %v", name, d, err)
		}
	}
	if d, err := Define(nil, false); err != nil || d.Name != "python" {
		t.Errorf("no repl part: %q, %v", d.Name, err)
	}
}

func TestDefineRefuses(t *testing.T) {
	t.Parallel()
	ok := []procapi.Candidate{{Name: "sh"}}
	for name, req := range map[string]procapi.REPLRequest{
		"unknown alias":       {Alias: "cobol"},
		"case":                {Alias: "Python"},
		"no name":             {Config: &procapi.REPLConfig{Candidates: ok}},
		"no candidate":        {Config: &procapi.REPLConfig{Name: "x"}},
		"unnamed candidate":   {Config: &procapi.REPLConfig{Name: "x", Candidates: []procapi.Candidate{{}}}},
		"many candidates":     {Config: &procapi.REPLConfig{Name: "x", Candidates: make([]procapi.Candidate, 33)}},
		"mode":                {Config: &procapi.REPLConfig{Name: "x", Candidates: ok, Ready: &procapi.Ready{Mode: "soon"}}},
		"no token":            {Config: &procapi.REPLConfig{Name: "x", Candidates: ok, Ready: &procapi.Ready{Mode: "prompt_token"}}},
		"negative delay":      {Config: &procapi.REPLConfig{Name: "x", Candidates: ok, Ready: &procapi.Ready{StartupDelayMS: -1}}},
		"long delay":          {Config: &procapi.REPLConfig{Name: "x", Candidates: ok, Ready: &procapi.Ready{StartupDelayMS: 1 << 30}}},
		"long prompt":         {Config: &procapi.REPLConfig{Name: "x", Candidates: ok, Prompt: &procapi.Prompt{CustomPrompt: strings.Repeat("x", 300)}}},
		"unknown value_from":  {Config: &procapi.REPLConfig{Name: "x", Candidates: ok, Env: []procapi.EnvVar{{Name: "A", ValueFrom: "secret"}}}},
		"repl_config is used": {Alias: "python", Config: &procapi.REPLConfig{}},
	} {
		if d, err := Define(&req, false); !errdefs.Is(err, errdefs.InvalidArgument) {
			t.Errorf("%s: %+v, %v", name, d, err)
		}
	}
}

func TestTracker(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		out      string
		prompts  uint64
		atPrompt bool
	}{
		{"", 0, false},
		{"_S0_> ", 1, true},
		{"1\r\n2\r\n_S0_> ", 1, true},
		{"_S0_> x", 1, false},
		{"a_S0_> b__S0_CONT__ ", 2, true},
		{"\x1b[0m\x1b[J_S0_> \x1b[K\x1b[?2004h", 1, true},
		{"_S0_> \x1b[31mred", 1, false},
		{"_S0_> \x1b[", 1, false},
		{"_S0_>", 0, false},
		{strings.Repeat("_S0_> ", 5000), 5000, true},
		{strings.Repeat("x", 100_000) + "_S0_> ", 1, true},
	} {
		for _, size := range []int{1, 2, 3, 7, 1000, 1 << 20} {
			tr := tracker{prompt: Prompt, continuation: Continuation}
			for rest := []byte(c.out); len(rest) > 0; {
				n := min(size, len(rest))
				tr.observe(rest[:n])
				rest = rest[n:]
			}
			if tr.prompts != c.prompts || tr.atPrompt() != c.atPrompt || tr.seen != uint64(len(c.out)) {
				t.Errorf("%.40q in pieces of %d: %d prompts, at prompt %v", c.out, size, tr.prompts, tr.atPrompt())
			}
		}
	}
}

// However output is cut into pieces, the same prompts are found.
func FuzzTracker(f *testing.F) {
	f.Add([]byte("a_S0_> b__S0_CONT__ \x1b[?2004h"), uint8(3))
	f.Fuzz(func(t *testing.T, out []byte, size uint8) {
		whole := tracker{prompt: Prompt, continuation: Continuation}
		whole.observe(out)
		pieces := tracker{prompt: Prompt, continuation: Continuation}
		for rest := out; len(rest) > 0; {
			n := min(int(size)+1, len(rest))
			pieces.observe(rest[:n])
			rest = rest[n:]
		}
		if want := uint64(bytes.Count(out, []byte(Prompt)) + bytes.Count(out, []byte(Continuation))); pieces.prompts != want {
			t.Errorf("%d prompts, want %d", pieces.prompts, want)
		}
		if pieces.atPrompt() != whole.atPrompt() && len(out) < tailBytes {
			t.Errorf("at prompt: %v in pieces, %v whole", pieces.atPrompt(), whole.atPrompt())
		}
		if trimmed := whole.trim(out); !bytes.Contains(out, trimmed) {
			t.Errorf("trim of %q invented %q", out, trimmed)
		}
	})
}
