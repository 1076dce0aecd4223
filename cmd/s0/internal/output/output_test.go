package output_test

import (
	"strings"
	"testing"
	"time"

	"s0.run/cmd/s0/internal/output"
)

func print(t *testing.T, p output.Printer, data any, view output.View) string {
	t.Helper()
	var b strings.Builder
	p.W = &b
	if err := p.Print(data, view); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestFormats(t *testing.T) {
	t.Parallel()
	data := struct {
		B string   `json:"b"`
		A int      `json:"a"`
		L []string `json:"l"`
	}{"yes <&>", 1, []string{"007"}}
	for format, want := range map[output.Format]string{
		output.Table: "seen\n",
		output.JSON:  "{\n  \"b\": \"yes <&>\",\n  \"a\": 1,\n  \"l\": [\n    \"007\"\n  ]\n}\n",
		output.YAML:  "b: yes <&>\na: 1\nl:\n  - \"007\"\n",
	} {
		if got := print(t, output.Printer{Format: format}, data, output.Text("seen")); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", format, got, want)
		}
	}
}

func TestParseFormat(t *testing.T) {
	t.Parallel()
	if f, err := output.ParseFormat(""); err != nil || f != output.Table {
		t.Errorf("default %q, %v", f, err)
	}
	if _, err := output.ParseFormat("xml"); err == nil || !strings.Contains(err.Error(), "table, json or yaml") {
		t.Errorf("got %v", err)
	}
}

func TestRows(t *testing.T) {
	t.Parallel()
	rows := output.Rows{Columns: []string{"ID", "NAME~", "AGE"}, Rows: [][]string{
		{"local-1", "a name that is rather long", "5m"},
		{"local-22", "größe", ""},
	}}
	for width, want := range map[int]string{
		0:  "ID        NAME                        AGE\nlocal-1   a name that is rather long  5m\nlocal-22  größe\n",
		30: "ID        NAME             AGE\nlocal-1   a name that is…  5m\nlocal-22  größe\n",
		5:  "ID        NAME      AGE\nlocal-1   a name …  5m\nlocal-22  größe\n", // ids are never cut
	} {
		if got := print(t, output.Printer{Width: width}, nil, rows); got != want {
			t.Errorf("width %d:\n%s\nwant\n%s", width, got, want)
		}
	}
}

func TestSpareColumns(t *testing.T) {
	t.Parallel()
	rows := output.Rows{Columns: []string{"ID", "NAME~", "SIZE?", "AGE?"}, Rows: [][]string{{"local-1", "a long name", "12 MiB", "5m"}}}
	for width, want := range map[int]string{
		0:  "ID       NAME         SIZE    AGE\nlocal-1  a long name  12 MiB  5m\n",
		30: "ID       NAME      SIZE    AGE\nlocal-1  a long …  12 MiB  5m\n",
		29: "ID       NAME         SIZE\nlocal-1  a long name  12 MiB\n",
		24: "ID       NAME\nlocal-1  a long name\n",
		10: "ID       NAME\nlocal-1  a long …\n",
	} {
		if got := print(t, output.Printer{Width: width}, nil, rows); got != want {
			t.Errorf("width %d:\n%s\nwant\n%s", width, got, want)
		}
	}
	if len(rows.Rows[0]) != 4 {
		t.Error("the caller's rows were changed")
	}
}

// Letters of two cells are counted and cut as such.
func TestWideLetters(t *testing.T) {
	t.Parallel()
	rows := output.Rows{Columns: []string{"NAME~", "AGE"}, Rows: [][]string{{"漢字漢字漢字", "5m"}, {"e\u0301", "7m"}}}
	for width, want := range map[int]string{
		0:  "NAME          AGE\n漢字漢字漢字  5m\ne\u0301             7m\n",
		15: "NAME        AGE\n漢字漢字…   5m\ne\u0301           7m\n",
	} {
		if got := print(t, output.Printer{Width: width}, nil, rows); got != want {
			t.Errorf("width %d:\n%s\nwant\n%s", width, got, want)
		}
	}
}

// An empty list is no table, and whoever counts lines counts none.
func TestNone(t *testing.T) {
	t.Parallel()
	var notes strings.Builder
	rows := output.Rows{Columns: []string{"ID"}, None: "No sandboxes."}
	p := output.Printer{Notes: &notes}
	if got := print(t, p, nil, rows); got != "" || notes.String() != "No sandboxes.\n" {
		t.Errorf("got %q, notes %q", got, &notes)
	}
	p.Format = output.JSON
	if got := print(t, p, []int{}, rows); got != "[]\n" || notes.String() != "No sandboxes.\n" {
		t.Errorf("got %q, notes %q", got, &notes)
	}
}

func TestFields(t *testing.T) {
	t.Parallel()
	got := print(t, output.Printer{}, nil, output.Fields{{"ID", "x"}, {"Empty", ""}, {"Status", "running"}})
	if want := "ID      x\nStatus  running\n"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// A file's name may hold what would repaint the user's terminal.
func TestCellsAreHarmless(t *testing.T) {
	t.Parallel()
	got := print(t, output.Printer{}, nil, output.Fields{{"Name", "a\x1b[2Jb\nc\u009b\u202ed\u2028e"}})
	if want := "Name  a?[2Jb?c??d?e\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestTimes(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for d, want := range map[time.Duration]string{
		0: "0s", 119 * time.Second: "119s", 5*time.Minute + 59*time.Second: "5m", 47 * time.Hour: "47h", 49 * time.Hour: "2d",
	} {
		if got := output.Age(now.Add(-d), now); got != want {
			t.Errorf("age %v: %s, want %s", d, got, want)
		}
		if got := output.Since(now.Add(-d), now); got != want+" ago" {
			t.Errorf("since %v: %s", d, got)
		}
		if got := output.Until(now.Add(d), now); d > 0 && got != "in "+want {
			t.Errorf("until %v: %s", d, got)
		}
	}
	if got := output.Until(time.Time{}, now); got != "never" {
		t.Errorf("a time that is not set: %s", got)
	}
}

func TestBytes(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 100 << 20: "100.0 MiB", 3 << 40: "3.0 TiB"} {
		if got := output.Bytes(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
