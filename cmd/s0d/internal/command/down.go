package command

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"s0.run/cmd/s0d/internal/machine"
)

func downCommand(version string) *cobra.Command {
	cmd := &cobra.Command{
		Use: "down", Short: "Stop everything, running sandboxes included", Args: cobra.NoArgs,
		Long: `Stop everything, running sandboxes included; data stays, and with it every paused
sandbox. With --keep-sandboxes the running ones go on and the next up adopts them.`,
	}
	cfg := machineFlags(cmd.Flags(), version)
	keep := cmd.Flags().Bool("keep-sandboxes", false, "leave the sandboxes running")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := cfg.Validate(); err != nil {
			return err
		}
		running, err := cfg.Running()
		if err != nil {
			return err
		}
		if !running {
			fmt.Fprintln(cmd.OutOrStdout(), "s0 is not running")
			return nil
		}
		return cfg.Down(cmd.Context(), *keep, cmd.OutOrStdout())
	}
	return withFile(cmd)
}

func statusCommand(version string) *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Say whether s0 runs, by the exit code too", Args: cobra.NoArgs,
	}
	cfg := machineFlags(cmd.Flags(), version)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := cfg.Ask(cmd.Context())
		if err != nil {
			return fmt.Errorf("s0 is not running: %w", err)
		}
		if s.State != machine.Ready {
			return fmt.Errorf("s0 is %s (process %d)", s.State, s.PID)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "s0 is up: %s (process %d, version %s)\n", s.API, s.PID, s.Version)
		return nil
	}
	return withFile(cmd)
}

func resetCommand(version string) *cobra.Command {
	cmd := &cobra.Command{
		Use: "reset", Short: "Stop everything and forget it: users, templates, sandboxes, images", Args: cobra.NoArgs,
	}
	cfg := machineFlags(cmd.Flags(), version)
	yes := cmd.Flags().Bool("yes", false, "do not ask")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := cfg.Validate(); err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		if !*yes && !confirm(cmd.InOrStdin(), out, fmt.Sprintf("Remove everything below %s and %s?", cfg.DataDir, cfg.RunDir)) {
			return errors.New("nothing was removed")
		}
		running, err := cfg.Running()
		if err != nil {
			return err
		}
		if running {
			if err := cfg.Down(cmd.Context(), true, out); err != nil { // wiping ends the sandboxes
				return err
			}
		}
		if err := cfg.Wipe(cmd.Context()); err != nil {
			return err
		}
		fmt.Fprintln(out, "everything is removed")
		return nil
	}
	return withFile(cmd)
}

func confirm(in io.Reader, out io.Writer, question string) bool {
	fmt.Fprintf(out, "%s [y/N] ", question)
	line, _ := bufio.NewReader(in).ReadString('\n')
	answer := strings.ToLower(strings.TrimSpace(line))
	return answer == "y" || answer == "yes"
}
