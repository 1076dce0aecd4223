package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

func (a *app) filesSearch(at filesOf) *cobra.Command {
	var req client.FileSearchRequest
	var regexp, ignoreCase bool
	var limit int
	cmd := &cobra.Command{
		Use:   "search <pattern> [path]",
		Short: "Search files by content and name",
		Long: `Search prints the lines that contain a pattern, or, with an empty pattern, the
names of files. A glob without a slash is matched with a file's name, one with a
slash with its path below the one that is searched; ** stands for any directories.`,
		Example:           "  s0 sandbox files -s ID search TODO src --include '*.go'\n  s0 sandbox files -s ID search '' --include '*.log'",
		Args:              wantUpTo(1, "the pattern"),
		ValidArgsFunction: a.completeRemote(at, 1, 1),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			req.Pattern = &args[0]
			if len(args) == 2 {
				req.Path = &args[1]
			}
			req.Regexp, req.IgnoreCase = &regexp, &ignoreCase
			if limit > 0 {
				req.MaxResults = &limit
			}
			return a.search(ctx, at(c), req)
		}),
	}
	flags := cmd.Flags()
	flags.BoolVarP(&regexp, "regexp", "E", false, "the pattern is a regular expression (RE2)")
	flags.BoolVarP(&ignoreCase, "ignore-case", "i", false, "upper and lower case are the same")
	flags.StringArrayVar(&req.Include, "include", nil, "glob, one of which must match")
	flags.StringArrayVar(&req.Exclude, "exclude", nil, "glob, none of which may match a file or a directory above it")
	flags.IntVar(&limit, "limit", 0, "results at most (default 1000)")
	return cmd
}

func (a *app) search(ctx context.Context, files client.Files, req client.FileSearchRequest) error {
	summary, err := files.Search(ctx, req, func(m client.FileSearchMatch) error {
		text := output.Plain(m.Path)
		if m.Line != nil {
			text = fmt.Sprintf("%s:%d:%s", text, *m.Line, output.Plain(deref(m.Text)))
		}
		return a.printer.PrintLine(m, output.Text(text))
	})
	if err != nil {
		return err
	}
	if summary.Stopped != nil {
		note("There may be more: the search stopped for its limit of %s.", *summary.Stopped)
	}
	return nil
}
