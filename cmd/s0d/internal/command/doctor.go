package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"s0.run/cmd/s0d/internal/machine"
	"s0.run/cmd/s0d/internal/prereq"
)

// askTimeout bounds each question to a server that may be stuck.
const askTimeout = 5 * time.Second

func doctorCommand(version string) *cobra.Command {
	cmd := &cobra.Command{
		Use: "doctor", Short: "Say what this machine lacks, what runs and what is wrong", Args: cobra.NoArgs,
	}
	cfg := machineFlags(cmd.Flags(), version)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := cfg.Validate(); err != nil {
			return err
		}
		running, err := cfg.Running()
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		sound := showPrerequisites(out, prereq.All(cfg.Prerequisites(running)))
		if !running {
			fmt.Fprintln(out, "\ns0 is not running; `s0d up` starts it")
		} else if !showServer(cmd.Context(), out, *cfg) {
			sound = false
		}
		if !sound {
			return errors.New("something needs your attention")
		}
		return nil
	}
	return withFile(cmd)
}

func showPrerequisites(out io.Writer, results []prereq.Result) (sound bool) {
	sound = true
	for _, r := range results {
		mark := "ok     "
		if !r.OK() {
			mark, sound = "MISSING", false
		}
		fmt.Fprintf(out, "%s  %-22s %s\n", mark, r.Name, r.Detail)
		if !r.OK() {
			fmt.Fprintf(out, "%33s%s\n", "", r.Fix)
		}
	}
	return sound
}

// showServer tells of the running server, and reports whether all is well.
func showServer(ctx context.Context, out io.Writer, cfg machine.Config) (sound bool) {
	ctx, cancel := context.WithTimeout(ctx, 4*askTimeout)
	defer cancel()
	s, err := cfg.Ask(ctx)
	if err != nil {
		fmt.Fprintf(out, "\ns0 runs but does not answer: %v\nits log is %s\n", err, cfg.LogFile())
		return false
	}
	fmt.Fprintf(out, "\ns0 is %s: process %d, version %s, for %s\n", s.State, s.PID, s.Version, time.Since(s.StartedAt).Round(time.Second))
	sound = s.State == machine.Ready
	for _, name := range slices.Sorted(maps.Keys(s.Children)) {
		pid := s.Children[name]
		if pid == 0 {
			fmt.Fprintf(out, "  %-12s is not running; it is started again\n", name)
			sound = false
			continue
		}
		fmt.Fprintf(out, "  %-12s process %d\n", name, pid)
	}
	if s.API != "" {
		err := ready(ctx, s.API)
		fmt.Fprintf(out, "  %-12s %s: %s\n", "api", s.API, wellOr(err))
		sound = sound && err == nil
	}
	view, err := cfg.Node().Look(ctx)
	if err != nil {
		fmt.Fprintf(out, "  %-12s %v\n", "noded", err)
		return false
	}
	fmt.Fprintf(out, "  %-12s %d sandboxes, %d paused, %d warm slots, %d warming\n", "noded", len(view.Claimed), len(view.Paused), len(view.Slots), view.Warming)
	if view.LastError != "" {
		fmt.Fprintf(out, "  %-12s the latest warm-up failed: %s\n", "", view.LastError)
		sound = false
	}
	showImages(ctx, out, s, cfg)
	sound = showObjectStore(ctx, out, cfg) && sound
	fmt.Fprintf(out, "  %-12s %s\n", "log", cfg.LogFile())
	return sound
}

// showImages tells what images take, in the registry and on the node.
func showImages(ctx context.Context, out io.Writer, s machine.Status, cfg machine.Config) {
	if r := s.Registry; r != nil {
		fmt.Fprintf(out, "  %-12s %d images in %d repositories, %s\n", "registry", r.Images, r.Repositories, megabytes(r.Bytes))
	}
	images, err := cfg.Node().Images(ctx)
	if err != nil || images == nil {
		return
	}
	fmt.Fprintf(out, "  %-12s %d on the node, %s pulled, %s unpacked; nothing uses %d of them\n", "images",
		images.GetImages(), megabytes(images.GetContentBytes()), megabytes(images.GetSnapshotBytes()), images.GetCollectable())
}

// showObjectStore tells how the node gets on with it, if it has one.
func showObjectStore(ctx context.Context, out io.Writer, cfg machine.Config) (sound bool) {
	store, err := cfg.Node().ObjectStore(ctx)
	if err != nil || store == nil {
		return err == nil
	}
	fmt.Fprintf(out, "  %-12s %s, %d images wait to be stored\n", "object store", store.GetUrl(), store.GetWaiting())
	if store.GetLastError() == "" {
		return true
	}
	fmt.Fprintf(out, "  %-12s the latest could not be stored: %s\n", "", store.GetLastError())
	return false
}

func megabytes(n int64) string { return fmt.Sprintf("%d MB", (n+500_000)/1_000_000) }

func ready(ctx context.Context, api string) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, api+"/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		return fmt.Errorf("not ready: %s", text)
	}
	return nil
}

func wellOr(err error) string {
	if err != nil {
		return err.Error()
	}
	return "ready"
}
