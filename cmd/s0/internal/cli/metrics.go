package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

func (a *app) sandboxMetrics() *cobra.Command {
	var opts client.MetricsOptions
	var statistic string
	var when period
	cmd := &cobra.Command{
		Use:   "metrics <id>",
		Short: "Show what a sandbox used",
		Long: `Show what a sandbox used in the last hour, or in another time of it: the newest
point of each series, the lowest and the highest. -o json prints all points.`,
		Example:           "  s0 sandbox metrics ID\n  s0 sandbox metrics ID --since 10m --name sandbox.cpu.usage -o json",
		Args:              want("the sandbox's id"),
		ValidArgsFunction: a.completeSandboxes,
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			opts.Start, opts.End, opts.Statistic = when.from(), when.end.Time, client.SandboxRuntimeMetricStatistic(statistic)
			m, err := c.SandboxMetrics(ctx, args[0], opts)
			if err != nil {
				return err
			}
			return a.printer.Print(m, metricRows(m))
		}),
	}
	when.register(cmd)
	flags := cmd.Flags()
	flags.StringSliceVar(&opts.Names, "name", nil, "metrics (default all)")
	flags.IntVar(&opts.StepSeconds, "step-seconds", 0, "width of a point")
	flags.StringVar(&statistic, "statistic", "", "auto, average, minimum, maximum, last or rate (default auto)")
	flags.IntVar(&opts.MaxPoints, "max-points", 0, "points of a series at most (default 240)")
	complete(cmd, "statistic", "auto", "average", "minimum", "maximum", "last", "rate")
	return cmd
}

func metricRows(m *client.SandboxRuntimeMetrics) output.Rows {
	rows := output.Rows{Columns: []string{"METRIC", "NEWEST", "LOWEST", "HIGHEST", "POINTS"}, None: "No samples in that time."}
	for _, s := range m.Series {
		var values []float64
		for _, segment := range s.Segments {
			for _, p := range segment.Points {
				values = append(values, p.Value)
			}
		}
		if len(values) == 0 {
			continue
		}
		name := string(s.Metric)
		if d := s.Dimensions["direction"]; d != "" {
			name += " " + d
		}
		rows.Rows = append(rows.Rows, []string{
			name, quantity(values[len(values)-1], s.Unit), quantity(slices.Min(values), s.Unit), quantity(slices.Max(values), s.Unit), strconv.Itoa(len(values)),
		})
	}
	return rows
}

// quantity is a value as people read it.
func quantity(v float64, unit client.SandboxRuntimeMetricUnit) string {
	switch unit {
	case client.SandboxRuntimeMetricUnitBytes:
		return output.Bytes(int64(v))
	case client.SandboxRuntimeMetricUnitBytesPerSecond:
		return output.Bytes(int64(v)) + "/s"
	case client.SandboxRuntimeMetricUnitRatio:
		return fmt.Sprintf("%.1f %%", 100*v)
	case client.SandboxRuntimeMetricUnitSeconds:
		return fmt.Sprintf("%.1f s", v)
	case client.SandboxRuntimeMetricUnitCountPerSecond:
		return fmt.Sprintf("%.1f/s", v)
	case client.SandboxRuntimeMetricUnitCores:
		return fmt.Sprintf("%.2f cores", v)
	}
	return fmt.Sprintf("%.0f", v)
}
