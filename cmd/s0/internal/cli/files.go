package cli

import (
	"context"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

// filesOf gives the files that a command is about: a sandbox's or a volume's.
type filesOf func(c *client.Client) client.Files

func (a *app) files() *cobra.Command {
	var sandbox string
	at := func(c *client.Client) client.Files { return c.Files(sandbox) }
	return a.inSandbox(&sandbox, group("files", "Files in a sandbox; relative paths are below /workspace",
		"  s0 sandbox files -s ID ls /\n  s0 sandbox files -s ID upload data.csv\n  s0 sandbox files -s ID cat result.txt",
		a.fileCommands(at)...))
}

// fileCommands are those that sandboxes and volumes have.
func (a *app) fileCommands(at filesOf) []*cobra.Command {
	return []*cobra.Command{
		a.filesLs(at), a.filesCat(at), a.filesStat(at), a.filesMkdir(at), a.filesRm(at), a.filesMv(at),
		a.filesUpload(at), a.filesDownload(at), a.filesWrite(at), a.filesWatch(at), a.filesSearch(at),
	}
}

func (a *app) filesLs(at filesOf) *cobra.Command {
	return &cobra.Command{
		Use:               "ls [path]",
		Short:             "List a directory",
		Example:           "  s0 sandbox files -s ID ls\n  s0 sandbox files -s ID ls /etc",
		Args:              wantUpTo(1),
		ValidArgsFunction: a.completeRemote(at, 0, 0),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			dir := "."
			if len(args) == 1 {
				dir = args[0]
			}
			list, err := at(c).List(ctx, dir)
			if err != nil {
				return err
			}
			rows := output.Rows{Columns: []string{"MODE", "SIZE", "MODIFIED", "NAME"}, None: "The directory is empty."}
			for _, f := range list.Entries {
				rows.Rows = append(rows.Rows, []string{fileMode(f), output.Bytes(f.Size), since(f.ModTime), fileName(f)})
			}
			return a.printer.Print(list, rows)
		}),
	}
}

func (a *app) filesCat(at filesOf) *cobra.Command {
	return &cobra.Command{
		Use:               "cat <path>",
		Short:             "Write a file's content to stdout",
		Example:           "  s0 sandbox files -s ID cat /etc/os-release",
		Args:              want("the path"),
		ValidArgsFunction: a.completeRemote(at, 0, 0),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			content, err := at(c).Read(ctx, args[0])
			if err != nil {
				return err
			}
			defer content.Close()
			_, err = io.Copy(os.Stdout, content)
			return err
		}),
	}
}

func (a *app) filesStat(at filesOf) *cobra.Command {
	return &cobra.Command{
		Use:               "stat <path>",
		Short:             "Describe a file",
		Example:           "  s0 sandbox files -s ID stat /etc/os-release",
		Args:              want("the path"),
		ValidArgsFunction: a.completeRemote(at, 0, 0),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			f, err := at(c).Stat(ctx, args[0])
			if err != nil {
				return err
			}
			return a.printer.Print(f, output.Fields{
				{"Path", f.Path}, {"Type", string(f.Type)}, {"Size", output.Bytes(f.Size)}, {"Mode", f.Mode},
				{"Modified", since(f.ModTime)}, {"Link to", deref(f.LinkTarget)},
			})
		}),
	}
}

func (a *app) filesMkdir(at filesOf) *cobra.Command {
	var parents bool
	cmd := &cobra.Command{
		Use:               "mkdir <path>",
		Short:             "Make a directory",
		Example:           "  s0 sandbox files -s ID mkdir --parents a/b/c",
		Args:              want("the path"),
		ValidArgsFunction: a.completeRemote(at, 0, 0),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			if err := at(c).Mkdir(ctx, args[0], parents); err != nil {
				return err
			}
			return a.done("Made %s.", args[0])
		}),
	}
	cmd.Flags().BoolVar(&parents, "parents", false, "make those above it too; an existing one is fine")
	return cmd
}

func (a *app) filesRm(at filesOf) *cobra.Command {
	return &cobra.Command{
		Use:               "rm <path>",
		Short:             "Delete a file, or a directory with all below it",
		Example:           "  s0 sandbox files -s ID rm old-results",
		Args:              want("the path"),
		ValidArgsFunction: a.completeRemote(at, 0, 0),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			if err := at(c).Delete(ctx, args[0]); err != nil {
				return err
			}
			return a.done("Deleted %s.", args[0])
		}),
	}
}

func (a *app) filesMv(at filesOf) *cobra.Command {
	return &cobra.Command{
		Use:               "mv <source> <destination>",
		Short:             "Move a file or a directory",
		Example:           "  s0 sandbox files -s ID mv draft.txt final.txt",
		Args:              want("the source", "the destination"),
		ValidArgsFunction: a.completeRemote(at, 0, 1),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			if err := at(c).Move(ctx, args[0], args[1]); err != nil {
				return err
			}
			return a.done("Moved %s to %s.", args[0], args[1])
		}),
	}
}

func (a *app) filesWrite(at filesOf) *cobra.Command {
	var data string
	var stdin bool
	cmd := &cobra.Command{
		Use:               "write <path>",
		Short:             "Write a file from an argument or from stdin",
		Example:           "  s0 sandbox files -s ID write hello.txt --data 'hello'\n  date | s0 sandbox files -s ID write now.txt --stdin",
		Args:              want("the path"),
		ValidArgsFunction: a.completeRemote(at, 0, 0),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			var content io.Reader = strings.NewReader(data)
			if stdin {
				content = os.Stdin
			}
			if err := at(c).Write(ctx, args[0], content); err != nil {
				return err
			}
			return a.done("Wrote %s.", args[0])
		}),
	}
	cmd.Flags().StringVar(&data, "data", "", "the file's content")
	cmd.Flags().BoolVar(&stdin, "stdin", false, "read the content from stdin")
	cmd.MarkFlagsMutuallyExclusive("data", "stdin")
	cmd.MarkFlagsOneRequired("data", "stdin")
	return cmd
}

func fileMode(f client.FileInfo) string {
	kind := map[client.FileInfoType]string{client.FileInfoTypeDir: "d", client.FileInfoTypeSymlink: "l"}[f.Type]
	if kind == "" {
		kind = "-"
	}
	return kind + f.Mode
}

func fileName(f client.FileInfo) string {
	switch {
	case f.LinkTarget != nil && *f.LinkTarget != "":
		return f.Name + " -> " + *f.LinkTarget
	case f.Type == client.FileInfoTypeDir:
		return f.Name + "/"
	}
	return f.Name
}
