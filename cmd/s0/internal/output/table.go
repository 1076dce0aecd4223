package output

import (
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/width"
)

const (
	columnGap = 2
	minCells  = 8 // what is left of a column that gives way
)

// Rows is a table with a header. Where the terminal is too narrow, columns whose title
// ends with "~" are cut, and if that is not enough those whose title ends with "?" are
// left out, the last first. Ids should be neither: people copy them.
type Rows struct {
	Columns []string
	Rows    [][]string
	None    string // said in place of an empty table; defaults to "There are none."
}

// Fields is one thing, a field a line; fields without a value are left out.
type Fields [][2]string

func (f Fields) write(w io.Writer, cells int) error {
	var rows [][]string
	for _, field := range f {
		if field[1] != "" {
			rows = append(rows, []string{field[0], field[1]})
		}
	}
	return writeAligned(w, rows, nil, cells)
}

func (t Rows) write(w io.Writer, cells int) error {
	titles := make([]string, len(t.Columns))
	cut := make([]bool, len(t.Columns))
	spare := make([]bool, len(t.Columns))
	for i, c := range t.Columns {
		titles[i], cut[i] = strings.CutSuffix(c, "~")
		titles[i], spare[i] = strings.CutSuffix(titles[i], "?")
	}
	rows := append([][]string{titles}, t.Rows...)
	for cells > 0 && narrowest(rows, cut) > cells {
		last := lastOf(spare)
		if last < 0 {
			break
		}
		for i := range rows {
			rows[i] = slices.Delete(slices.Clone(rows[i]), last, last+1)
		}
		cut, spare = slices.Delete(cut, last, last+1), slices.Delete(spare, last, last+1)
	}
	return writeAligned(w, rows, cut, cells)
}

func lastOf(marked []bool) int {
	for i := len(marked) - 1; i >= 0; i-- {
		if marked[i] {
			return i
		}
	}
	return -1
}

// narrowest is how little room rows can do with.
func narrowest(rows [][]string, cut []bool) (cells int) {
	for i := range rows[0] {
		widest := 0
		for _, row := range rows {
			widest = max(widest, Cells(Plain(row[i])))
		}
		if cut[i] {
			widest = min(widest, minCells)
		}
		cells += widest
	}
	return cells + columnGap*(len(rows[0])-1)
}

// writeAligned writes rows with their columns below each other. A cell that
// could speak to the terminal or break the table is made harmless first.
func writeAligned(w io.Writer, rows [][]string, cut []bool, cells int) error {
	var widths []int
	for _, row := range rows {
		for i := range row {
			row[i] = Plain(row[i])
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], Cells(row[i]))
		}
	}
	fit(widths, cut, cells)
	var b strings.Builder
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			cell = Shorten(cell, widths[i])
			line.WriteString(cell)
			line.WriteString(strings.Repeat(" ", widths[i]-Cells(cell)+columnGap))
		}
		b.WriteString(strings.TrimRight(line.String(), " "))
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// fit takes cells from the widest columns that may be cut until the row fits.
func fit(widths []int, cut []bool, cells int) {
	total := columnGap * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	for ; cells > 0 && total > cells; total-- {
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

// Cells is how much room text takes on a terminal: East Asian letters and emoji two
// cells, what is drawn over the letter before none.
func Cells(s string) (n int) {
	for _, r := range s {
		n += runeCells(r)
	}
	return n
}

func runeCells(r rune) int {
	if unicode.In(r, unicode.Mn, unicode.Me) {
		return 0
	}
	switch width.LookupRune(r).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	}
	return 1
}

// Shorten cuts text to a number of cells, 1 at least.
func Shorten(s string, cells int) string {
	if Cells(s) <= cells {
		return s
	}
	room := cells - 1
	for i, r := range s {
		if room -= runeCells(r); room < 0 {
			return s[:i] + "…"
		}
	}
	return s
}

// Plain keeps what comes from a sandbox or another user from moving the cursor,
// changing colours, adding lines or turning the direction of writing.
func Plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.In(r, unicode.Bidi_Control, unicode.Zl, unicode.Zp) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
}
