package search

import (
	"bytes"
	"errors"
	"io"
	"os"
	"regexp"
	"strings"

	"s0.run/internal/procapi"
)

// blockBytes is what is searched at once. A longer line is searched in pieces; a
// match that crosses two is not found.
const blockBytes = 64 << 10

// pattern is what a line must contain: either of the two.
type pattern struct {
	literal []byte
	re      *regexp.Regexp
}

// find is where the first match in a line begins, -1 for none.
func (p *pattern) find(line []byte) int {
	if p.re == nil {
		return bytes.Index(line, p.literal)
	}
	if loc := p.re.FindIndex(line); loc != nil {
		return loc[0]
	}
	return -1
}

// scan is one file's way through the buffer.
type scan struct {
	*run
	path string
	line int // the number of the line that the next block begins in
	part int // bytes of it that earlier blocks had
}

// file searches size bytes of f.
func (r *run) file(path string, f *os.File, size int64) error {
	s := scan{run: r, path: path, line: 1}
	in := io.LimitReader(f, size)
	kept := 0
	for {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(in, r.buf[kept:])
		r.summary.Bytes += int64(n)
		block, last := r.buf[:kept+n], errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !last || bytes.IndexByte(block[kept:], 0) >= 0 {
			r.summary.Skipped++
			return nil
		}
		end := len(block)
		if i := bytes.LastIndexByte(block, '\n'); i >= 0 && !last {
			end = i + 1
		}
		if err := s.block(block[:end]); err != nil || last {
			return err
		}
		kept = copy(r.buf, block[end:])
	}
}

// block searches whole lines, but for one that is longer than a block.
func (s *scan) block(b []byte) error {
	for len(b) > 0 {
		if s.pattern.re == nil { // go on where it may be
			skip := bytes.Index(b, s.pattern.literal)
			if skip < 0 {
				s.pass(b)
				return nil
			}
			start := bytes.LastIndexByte(b[:skip], '\n') + 1
			s.pass(b[:start])
			b = b[start:]
		}
		line, rest := b, []byte(nil)
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			line, rest = b[:i], b[i+1:]
		}
		if at := s.pattern.find(line); at >= 0 {
			if err := s.tell(s.match(line, at)); err != nil {
				return err
			}
		}
		s.pass(b[:len(b)-len(rest)])
		b = rest
	}
	return nil
}

// pass counts the lines of what was searched.
func (s *scan) pass(b []byte) {
	if n := bytes.Count(b, []byte{'\n'}); n > 0 {
		s.line += n
		s.part = len(b) - 1 - bytes.LastIndexByte(b, '\n')
		return
	}
	s.part += len(b)
}

// match shows a line, or of a long one what is around the match.
func (s *scan) match(line []byte, at int) procapi.SearchMatch {
	m := procapi.SearchMatch{Path: s.path, Type: "file", Line: s.line, Column: s.part + at + 1, Truncated: s.part > 0}
	line = bytes.TrimSuffix(line, []byte{'\r'})
	if len(line) > procapi.MaxSearchText {
		from := max(0, min(at-procapi.MaxSearchText/4, len(line)-procapi.MaxSearchText))
		line, m.Truncated = line[from:from+procapi.MaxSearchText], true
	}
	m.Text = strings.ToValidUTF8(string(line), "\uFFFD")
	return m
}
