package command

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"s0.run/cmd/s0d/internal/containerd"
	"s0.run/cmd/s0d/internal/install"
)

// containerdCommand is for where another than `s0d up` looks after containerd.
func containerdCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "containerd", Short: "Run the containerd of one node's sandboxes alone", Args: cobra.NoArgs,
		Long: "Writes the configuration of a containerd that has what a node needs and nothing else, and becomes that\n" +
			"containerd. Shims, and sandboxes, outlive it; where the control group that it is started in ends with\n" +
			"it, as a container's does, they need another: --shim-cgroup.",
	}
	var c containerd.Config
	f := cmd.Flags()
	f.StringVar(&c.Binary, "binary", "/usr/local/bin/containerd", "containerd")
	f.StringVar(&c.ShimDir, "shim-dir", "/usr/local/bin", "directory that has the shim; the older one stays in use when it is replaced by renaming")
	f.StringVar(&c.Root, "root", "/var/lib/s0/containerd", "images and snapshots")
	f.StringVar(&c.State, "state", "/run/s0/containerd", "containerd.sock and what a reboot may take")
	f.StringVar(&c.Namespace, "containerd-namespace", "s0", "containerd namespace of sandboxes")
	f.StringVar(&c.ShimCgroup, "shim-cgroup", "", "control group that shims move to (default that of containerd); for hosts of cgroup v2")
	f.IntVar(&c.Nice, "nice", 5, "nice value of containerd and sandboxes")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		d := containerd.New(c)
		if err := d.Prepare(); err != nil {
			return fmt.Errorf("preparing containerd: %w", err)
		}
		run := d.Command(cmd.Context())
		if run.Err != nil {
			return run.Err
		}
		if err := os.Chdir(run.Dir); err != nil {
			return err
		}
		return fmt.Errorf("becoming containerd: %w", unix.Exec(run.Path, run.Args, run.Env))
	}
	return withFile(cmd)
}

func installCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "install FILE... DIR", Short: "Put files into a directory, each whole or not at all",
		Long: "Puts copies of files into a directory that there is. Each is renamed into place, so that what runs from an\n" +
			"older one goes on running: for what a node's sandboxes run from, which outlives a container.",
		Args: cobra.MinimumNArgs(2),
	}
	mode := cmd.Flags().String("mode", "0755", "of the copies")
	mkdir := cmd.Flags().Bool("mkdir", false, "make the directory if it is not there")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		bits, err := strconv.ParseUint(*mode, 8, 9)
		if err != nil {
			return fmt.Errorf("--mode %q: want up to three octal digits: %w", *mode, err)
		}
		dir := args[len(args)-1]
		if *mkdir {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		for _, file := range args[:len(args)-1] {
			if err := install.File(file, dir, fs.FileMode(bits)); err != nil {
				return err
			}
		}
		return nil
	}
	return cmd
}

// probeTimeout is less than what whoever asks by this has.
const probeTimeout = 4 * time.Second

func probeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "probe SOCKET PATH", Short: "Ask a daemon on its unix socket how it is", Args: cobra.ExactArgs(2),
		Long: "Asks for a path, such as /healthz or /readyz, on a daemon's --admin-socket, and fails unless the answer is 200.",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), probeTimeout)
			defer cancel()
			client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", args[0])
			}}}
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://daemon"+args[1], nil)
			if err != nil {
				return err
			}
			resp, err := client.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				b, _ := io.ReadAll(io.LimitReader(resp.Body, maxProbed))
				return fmt.Errorf("%s: %s: %s", args[1], resp.Status, strings.TrimSpace(string(b)))
			}
			return nil
		},
	}
}

// maxProbed is what is shown of a daemon's reason.
const maxProbed = 1 << 10
