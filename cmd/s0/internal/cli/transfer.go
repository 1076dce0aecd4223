package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/archive"
	"s0.run/cmd/s0/internal/output"
	"s0.run/cmd/s0/internal/progress"
)

func (a *app) filesUpload(at filesOf) *cobra.Command {
	var recursive bool
	cmd := &cobra.Command{
		Use:               "upload <local> [path]",
		Short:             "Copy a file or a directory of yours into the sandbox",
		Example:           "  s0 sandbox files -s ID upload data.csv\n  s0 sandbox files -s ID upload data.csv /srv/input/\n  s0 sandbox files -s ID upload --recursive src",
		Args:              wantUpTo(1, "the local path"),
		ValidArgsFunction: a.completeRemote(at, 1, 1),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			remote := path.Base(filepath.ToSlash(args[0]))
			if len(args) == 2 {
				remote = into(args[1], remote)
			}
			if recursive {
				return a.uploadTree(ctx, at(c), args[0], remote)
			}
			return a.upload(ctx, at(c), args[0], remote)
		}),
	}
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "a directory, with all below it")
	return cmd
}

// into names a file within a directory, which a path is if it ends in a slash.
func into(remote, name string) string {
	if strings.HasSuffix(remote, "/") {
		return remote + name
	}
	return remote
}

func (a *app) upload(ctx context.Context, files client.Files, local, remote string) error {
	f, err := os.Open(local)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.IsDir() {
		return fmt.Errorf("%s is a directory: say --recursive to copy it", local)
	}
	bar := progress.Start(os.Stderr, "Uploading "+local, info.Size())
	err = files.Write(ctx, remote, bar.Reader(f))
	bar.Stop()
	if err != nil {
		return err
	}
	return a.done("Uploaded %s to %s (%s).", local, remote, output.Bytes(info.Size()))
}

// uploadTree sends a directory as an archive: all of it arrives, or nothing.
func (a *app) uploadTree(ctx context.Context, files client.Files, local, remote string) error {
	if info, err := os.Stat(local); err != nil || !info.IsDir() {
		return errors.Join(err, fmt.Errorf("%s is no directory", local))
	}
	size, err := archive.Size(local)
	if err != nil {
		return err
	}
	bar := progress.Start(os.Stderr, "Uploading "+local, size)
	defer bar.Stop()
	var skipped []string
	r, w := io.Pipe()
	packed := make(chan struct{})
	go func() {
		defer close(packed)
		w.CloseWithError(archive.Pack(w, local, func(path string) { skipped = append(skipped, path) }))
	}()
	got, err := files.WriteArchive(ctx, remote, bar.Reader(r))
	r.Close()
	<-packed
	bar.Stop()
	for _, path := range skipped {
		note("Left out %s, which is neither file, directory nor symlink.", path)
	}
	if err != nil {
		return err
	}
	return a.printer.Print(got, output.Text(fmt.Sprintf("Uploaded %s to %s (%d files, %s).", local, remote, got.Files, output.Bytes(got.Bytes))))
}

func (a *app) filesDownload(at filesOf) *cobra.Command {
	var recursive bool
	cmd := &cobra.Command{
		Use:   "download <path> [local]",
		Short: "Copy a file or a directory of the sandbox to yours",
		Long: `Copy a file or a directory of the sandbox to yours, whole or not at all. A directory
must not exist yet. Links that lead out of it are left out.`,
		Example: `  s0 sandbox files -s ID download result.csv
  s0 sandbox files -s ID download /var/log/app.log logs/
  s0 sandbox files -s ID download --recursive results
  s0 sandbox files -s ID download -r . everything`,
		Args:              wantUpTo(1, "the path"),
		ValidArgsFunction: a.completeRemote(at, 0, 0),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			remote, err := at(c).Stat(ctx, args[0])
			if err != nil {
				return err
			}
			local, err := localName(args)
			switch {
			case err != nil:
				return err
			case remote.Type == client.FileInfoTypeDir && !recursive:
				return fmt.Errorf("%s is a directory: say --recursive to copy it", args[0])
			case remote.Type != client.FileInfoTypeFile && recursive: // a link may lead to a directory
				return a.downloadTree(ctx, at(c), args[0], local)
			}
			return a.download(ctx, at(c), args[0], local, remote)
		}),
	}
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "a directory, with all below it")
	return cmd
}

// localName is where args say that a download goes to: within a directory that
// exists, or as named.
func localName(args []string) (string, error) {
	name := path.Base(path.Clean(args[0]))
	nameless := name == "." || name == ".." || name == "/"
	local := name
	if len(args) == 2 {
		local = args[1]
		info, err := os.Stat(local)
		if (err != nil || !info.IsDir()) && !strings.HasSuffix(local, "/") {
			return local, nil
		}
		local = filepath.Join(local, name)
	}
	if nameless {
		return "", fmt.Errorf("say what to call the copy of %s: `download -r %s NAME`", args[0], args[0])
	}
	if !filepath.IsLocal(name) {
		return "", fmt.Errorf("%q can't be a file's name here: name another", name)
	}
	return local, nil
}

// download leaves no half file behind.
func (a *app) download(ctx context.Context, files client.Files, remote, local string, info *client.FileInfo) (err error) {
	content, err := files.Read(ctx, remote)
	if err != nil {
		return err
	}
	defer content.Close()
	size, perm := info.Size, permissions(info)
	if info.Type != client.FileInfoTypeFile {
		size, perm = 0, 0o644 // these are the link's own
	}
	tmp, err := os.CreateTemp(filepath.Dir(local), ".s0-download-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	bar := progress.Start(os.Stderr, "Downloading "+remote, size)
	n, err := io.Copy(bar.Writer(tmp), content)
	bar.Stop()
	if err := errors.Join(err, tmp.Chmod(perm), tmp.Close()); err != nil {
		return fmt.Errorf("downloading %s: %w", remote, err)
	}
	if err := os.Rename(tmp.Name(), local); err != nil {
		return err
	}
	return a.done("Downloaded %s to %s (%s).", remote, local, output.Bytes(n))
}

// permissions are a file's, without what others could do with it here.
func permissions(info *client.FileInfo) fs.FileMode {
	var mode uint32
	if _, err := fmt.Sscanf(info.Mode, "%o", &mode); err != nil {
		return 0o644
	}
	return fs.FileMode(mode)&0o755 | 0o600
}

// downloadTree leaves no half directory behind.
func (a *app) downloadTree(ctx context.Context, files client.Files, remote, local string) (err error) {
	if _, err := os.Lstat(local); err == nil {
		return fmt.Errorf("%s exists already: name a directory that does not, or remove it", local)
	}
	content, err := files.ReadArchive(ctx, remote)
	if err != nil {
		return err
	}
	defer content.Close()
	tmp, err := os.MkdirTemp(filepath.Dir(local), ".s0-download-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	var skipped []string
	bar := progress.Start(os.Stderr, "Downloading "+remote, 0)
	got, err := archive.Unpack(bar.Reader(content), tmp, func(name, target string) { skipped = append(skipped, name+" -> "+target) })
	bar.Stop()
	if err == nil {
		err = errors.Join(os.Chmod(tmp, 0o755), os.Rename(tmp, local))
	}
	if err != nil {
		return fmt.Errorf("downloading %s: %w", remote, err)
	}
	for _, link := range skipped {
		note("Left out a link that leads outside: %s", link)
	}
	return a.printer.Print(got, output.Text(fmt.Sprintf("Downloaded %s to %s (%d files, %s).", remote, local, got.Files, output.Bytes(got.Bytes))))
}
