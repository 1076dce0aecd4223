package transcript_test

import (
	"testing"

	"s0.run/cmd/s0/internal/transcript"
)

// What the terminals show was recorded from the programs themselves.
func TestClean(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, shown, input, want string }{
		{"nothing printed", "x = 41\r\n", "x = 41", ""},
		{"python", "print(x + 1)\r\n42\r\n_S0_> ", "print(x + 1)", "42\n"},
		{"without an echo", "42\r\n", "print(x + 1)", "42\n"},
		{"output that looks like the input", "41\r\n41\r\n", "41\n", "41\n"},
		{"a block", "for i in range(2):\r\n__S0_CONT__   print(i)\r\n__S0_CONT__ \r\n0\r\n1\r\n_S0_> ", "for i in range(2):\n  print(i)\n\n", "0\n1\n"},
		{"tabs", "if 1:\r\n__S0_CONT__     print(1)\r\n__S0_CONT__ \r\n1\r\n", "if 1:\n\tprint(1)\n", "1\n"},
		{"several statements", "print(1)\r\n1\r\n_S0_> print(2)\r\n2\r\n_S0_> 3\r\n3\r\n_S0_> ", "print(1)\nprint(2)\n3\n", "1\n2\n3\n"},
		{"empty lines of the output stay", "print('a\\n\\nb')\r\na\r\n\r\nb\r\n", `print('a\n\nb')`, "a\n\nb\n"},
		{"node", "1+1\r\r\n\x1b[33m2\x1b[39m\r\n\x1b[1G\x1b[0J_S0_> \x1b[3G", "1+1", "2\n"},
		{"sqlite", "select 1;\r\n\x1b[?2004l\r1\r\n\x1b[?2004h", "select 1;", "1\n"},
		{"bash", "echo hi\r\n\x1b[?2004l\rhi\r\n\x1b[?2004h_S0_> ", "echo hi", "hi\n"},
		{"a title", "\x1b]0;title\x07hi\r\n", "x", "hi\n"},
		{"a progress bar", "run()\r\n10%\r50%\r100%\r\n", "run()", "100%\n"},
		{"nothing at all", "", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := transcript.Clean(tt.shown, tt.input); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestProgram(t *testing.T) {
	t.Parallel()
	for _, input := range []string{"print(1)", "print(1)\n", "x = 1\r\n"} {
		if got := transcript.Program("python", input); got != input {
			t.Errorf("one line %q became %q", input, got)
		}
	}
	if in := "a()\nb()"; transcript.Program("bash", in) != in {
		t.Error("a program of bash was changed")
	}
}

func TestProgramIsOneLine(t *testing.T) {
	t.Parallel()
	got := transcript.Program("python", "def f():\n\treturn \"\\\\ ö🙂\"\nf()\n")
	want := `exec(compile("def f():\n\U00000009return \"\\\\ \U000000f6\U0001f642\"\nf()\n", "<input>", "exec"))`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
