package contexts

import (
	"unicode/utf8"

	"s0.run/internal/procapi"
	"s0.run/procd/internal/proc"
	"s0.run/procd/internal/repl"
)

// maxOutputJSON is what the output fields of one answer may take as JSON; the
// rest of the answer fits beside them.
const maxOutputJSON = procapi.MaxJSONBytes - 2<<20

// result collects what the process printed in span, and how it ended if it did.
func (l *Live) result(span repl.Span) procapi.ExecResult {
	log := l.Process.Log()
	raw, lost := log.Collect(span.From, span.To)
	if l.Session != nil {
		raw = l.Session.Trim(raw)
	}
	fields := [][]byte{raw}
	if !l.Process.Terminal() {
		stdout, _ := log.Collect(span.From, span.To, proc.Stdout)
		stderr, _ := log.Collect(span.From, span.To, proc.Stderr)
		fields = append(fields, stdout, stderr)
	}
	res := procapi.ExecResult{Truncated: lost + fit(fields, maxOutputJSON)}
	res.OutputRaw = string(fields[0])
	if len(fields) > 1 {
		stdout, stderr := string(fields[1]), string(fields[2])
		res.Stdout, res.Stderr = &stdout, &stderr
	}
	if l.ended() {
		exit := l.Process.Exit()
		res.ExitCode, res.State = &exit.ExitCode, exit.State
	}
	return res
}

// fit cuts the beginnings of fields off until all of them fit into limit bytes of
// JSON, and returns how many bytes of the first one went.
func fit(fields [][]byte, limit int) (cut uint64) {
	whole := len(fields[0])
	for share := limit / len(fields); ; share /= 2 {
		total := 0
		for _, f := range fields {
			total += jsonLen(f)
		}
		if total <= limit {
			return uint64(whole - len(fields[0]))
		}
		for i, f := range fields {
			fields[i] = f[max(0, len(f)-share):]
		}
	}
}

// jsonLen is how long b is at most as a JSON string.
func jsonLen(b []byte) int {
	n := 2
	for len(b) > 0 {
		if c := b[0]; c < utf8.RuneSelf {
			n += asciiLen(c)
			b = b[1:]
			continue
		}
		r, size := utf8.DecodeRune(b)
		if r == utf8.RuneError || r == '\u2028' || r == '\u2029' {
			n += len(`\ufffd`)
		} else {
			n += size
		}
		b = b[size:]
	}
	return n
}

func asciiLen(c byte) int {
	switch {
	case c == '"' || c == '\\' || c == '\n' || c == '\r' || c == '\t':
		return 2
	case c < ' ' || c == 0x7f:
		return len(`\u0000`)
	}
	return 1
}
