package output

import (
	"io"
	"strings"
	"unicode/utf8"
)

const (
	columnGap = 2
	minCells  = 8 // what is left of a column that gives way
)

// Rows is a table with a header. Columns whose title ends with "~" may be cut
// where the terminal is too narrow; ids never should: people copy them.
type Rows struct {
	Columns []string
	Rows    [][]string
}

// Fields is one thing, a field a line; fields without a value are left out.
type Fields [][2]string

func (f Fields) write(w io.Writer, width int) error {
	var rows [][]string
	for _, field := range f {
		if field[1] != "" {
			rows = append(rows, []string{field[0], field[1]})
		}
	}
	return writeAligned(w, rows, nil, width)
}

func (t Rows) write(w io.Writer, width int) error {
	titles := make([]string, len(t.Columns))
	cut := make([]bool, len(t.Columns))
	for i, c := range t.Columns {
		titles[i], cut[i] = strings.CutSuffix(c, "~")
	}
	return writeAligned(w, append([][]string{titles}, t.Rows...), cut, width)
}

// writeAligned writes rows with their columns below each other. A cell that
// could speak to the terminal or break the table is made harmless first.
func writeAligned(w io.Writer, rows [][]string, cut []bool, width int) error {
	var widths []int
	for _, row := range rows {
		for i := range row {
			row[i] = Plain(row[i])
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	fit(widths, cut, width)
	var b strings.Builder
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			cell = Shorten(cell, widths[i])
			line.WriteString(cell)
			line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+columnGap))
		}
		b.WriteString(strings.TrimRight(line.String(), " "))
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// fit takes cells from the widest columns that may be cut until the row fits.
func fit(widths []int, cut []bool, width int) {
	total := columnGap * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	for ; width > 0 && total > width; total-- {
		widest := -1
		for i := range cut {
			if cut[i] && widths[i] > minCells && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			return
		}
		widths[widest]--
	}
}

// Shorten cuts text to a number of cells, 1 at least.
func Shorten(s string, cells int) string {
	if utf8.RuneCountInString(s) <= cells {
		return s
	}
	return string([]rune(s)[:cells-1]) + "…"
}

// Plain keeps what comes from a sandbox or another user from moving the cursor,
// changing colours or adding lines.
func Plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || (r >= 0x7f && r < 0xa0) {
			return '?'
		}
		return r
	}, s)
}
