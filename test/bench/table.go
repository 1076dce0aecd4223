package bench

import (
	"encoding/csv"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// A row is one line of the table: samples of one thing under one load.
type row struct {
	name    string
	load    string // what else was going on: "1 client", "8 clients"
	unit    string // ms, MiB, /s
	samples []float64
	budget  budget
	note    string
}

// A budget is what the row shall stay within; zero values are no promise.
type budget struct {
	p50, p99 float64
	least    bool // the figure shall be at least p50, not at most
}

func milliseconds(ds []time.Duration) []float64 {
	out := make([]float64, len(ds))
	for i, d := range ds {
		out[i] = float64(d) / float64(time.Millisecond)
	}
	return out
}

// percentile is the nearest-rank percentile of sorted samples, 0 <= p <= 100.
func percentile(sorted []float64, p float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	i := int(p/100*float64(len(sorted))+0.999999) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}

func (r row) sorted() []float64 { return slices.Sorted(slices.Values(r.samples)) }

// verdict says how the row stands to its budget, with the factor when missed.
func (r row) verdict() string {
	if r.budget.p50 == 0 && r.budget.p99 == 0 {
		return ""
	}
	s := r.sorted()
	if len(s) == 0 {
		return "not measured"
	}
	var missed []string
	check := func(name string, got, want float64) {
		switch {
		case want == 0:
		case r.budget.least && got < want, !r.budget.least && got > want:
			missed = append(missed, fmt.Sprintf("%s %.3g, want %.3g (%.1fx)", name, got, want, got/want))
		}
	}
	check("p50", percentile(s, 50), r.budget.p50)
	check("p99", percentile(s, 99), r.budget.p99)
	if missed == nil {
		return "met"
	}
	return "MISSED: " + strings.Join(missed, ", ")
}

func printTable(w io.Writer, rows []row) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "what\tload\tN\tmin\tp50\tp99\tunit\tbudget\tnote")
	for _, r := range rows {
		s := r.sorted()
		fmt.Fprintf(tw, "%s\t%s\t%d\t%.3g\t%.3g\t%.3g\t%s\t%s\t%s\n",
			r.name, r.load, len(s), percentile(s, 0), percentile(s, 50), percentile(s, 99), r.unit, r.verdict(), r.note)
	}
	return tw.Flush()
}

// writeRaw writes every sample, in the order it was taken.
func writeRaw(w io.Writer, rows []row) error {
	cw := csv.NewWriter(w)
	if err := cw.Write([]string{"what", "load", "unit", "index", "value"}); err != nil {
		return err
	}
	for _, r := range rows {
		for i, v := range r.samples {
			if err := cw.Write([]string{r.name, r.load, r.unit, strconv.Itoa(i), strconv.FormatFloat(v, 'g', -1, 64)}); err != nil {
				return err
			}
		}
	}
	cw.Flush()
	return cw.Error()
}
