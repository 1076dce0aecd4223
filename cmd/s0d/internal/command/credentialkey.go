package command

import (
	"fmt"

	"github.com/spf13/cobra"

	"s0.run/internal/sealed"
)

// credentialKeyCommand makes what several machines share; `s0d up` makes its own.
func credentialKeyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "credential-key DIR",
		Short: "Make the key that credentials are sealed to",
		Long: "Makes a key pair in DIR if there is none. Every node's netd needs the directory (--credential-keys),\n" +
			"every API server the public file that is printed (--credential-key), and nobody else either of them.\n" +
			"With --add another key is made, to which credentials are sealed from then on; nodes get it first.",
		Args: cobra.ExactArgs(1),
	}
	add := cmd.Flags().Bool("add", false, "make one more")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		do := sealed.Ensure
		if *add {
			do = sealed.Add
		}
		file, err := do(args[0])
		if err == nil {
			fmt.Fprintln(cmd.OutOrStdout(), file)
		}
		return err
	}
	return cmd
}
