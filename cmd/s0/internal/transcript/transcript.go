// Package transcript makes what a REPL's terminal showed fit for reading: the
// echo of the input, the prompts and what steers a screen are taken out, what
// the program printed stays. It is pure functions over strings.
package transcript

import (
	"regexp"
	"strings"
)

// The prompts that the sandbox gives its REPLs.
var prompts = []string{"_S0_> ", "_S0_>", "__S0_CONT__ ", "__S0_CONT__"}

// escapes matches the sequences that terminals take for commands: CSI (colours,
// cursor), OSC (titles) and those of two characters.
var escapes = regexp.MustCompile("\x1b(?:\\[[0-?]*[ -/]*[@-~]|\\][^\x07\x1b]*(?:\x07|\x1b\\\\)|[@-Z\\\\^_=>78])")

// Clean returns what input made a REPL print, given what its terminal showed.
func Clean(shown, input string) string {
	echo := lines(input)
	var printed strings.Builder
	for _, line := range lines(escapes.ReplaceAllString(shown, "")) {
		line, prompted := trimPrompts(overwrite(line))
		switch {
		case len(echo) > 0 && alike(line, echo[0]):
			echo = echo[1:]
		case prompted && strings.TrimSpace(line) == "":
		default:
			printed.WriteString(line)
			printed.WriteByte('\n')
		}
	}
	return printed.String()
}

// Program prepares a program for a REPL. Python's ends a block at the first
// empty line and wants one behind the last: a program of several lines is handed
// over whole, and then runs as a script does.
func Program(alias, input string) string {
	if alias != "python" || !strings.Contains(strings.TrimRight(input, "\r\n"), "\n") {
		return input
	}
	return `exec(compile(` + pythonString(input) + `, "<input>", "exec"))`
}

// pythonString is a Python literal of s in ASCII without line breaks.
func pythonString(s string) string {
	const digits = "0123456789abcdef"
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r >= ' ' && r <= '~':
			b.WriteRune(r)
		default:
			b.WriteString(`\U`)
			for shift := 28; shift >= 0; shift -= 4 {
				b.WriteByte(digits[r>>shift&0xf])
			}
		}
	}
	b.WriteByte('"')
	return b.String()
}

// lines splits text into lines without what ends them; nothing has no line.
func lines(s string) []string {
	s = strings.TrimRight(s, "\r\n")
	if s == "" {
		return nil
	}
	all := strings.Split(s, "\n")
	for i := range all {
		all[i] = strings.TrimRight(all[i], "\r")
	}
	return all
}

// overwrite keeps what a screen shows of a line that went back to its start.
func overwrite(line string) string {
	if i := strings.LastIndexByte(line, '\r'); i >= 0 {
		return line[i+1:]
	}
	return line
}

func trimPrompts(line string) (rest string, prompted bool) {
	for again := true; again; {
		again = false
		for _, p := range prompts {
			if cut, ok := strings.CutPrefix(line, p); ok {
				line, prompted, again = cut, true, true
			}
		}
	}
	return line, prompted
}

// alike compares an echo with its input: a terminal shows tabs as blanks.
func alike(a, b string) bool {
	return strings.Join(strings.Fields(a), " ") == strings.Join(strings.Fields(b), " ")
}
