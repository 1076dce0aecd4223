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
			"With --add another key is made, to which credentials are sealed from then on; nodes get it first.\n" +
			"With --add-root another root of sandboxes' certificate authorities is made: each netd uses it when\n" +
			"it has the file and is started again. What runs believes it for as long as the older files stay,\n" +
			"but for sandboxes that began under a netd of before there was this flag: add a root only when none\n" +
			"of those is left, running or paused.",
		Args: cobra.ExactArgs(1),
	}
	add := cmd.Flags().Bool("add", false, "make one more key")
	root := cmd.Flags().Bool("add-root", false, "make one more root of authorities")
	cmd.MarkFlagsMutuallyExclusive("add", "add-root")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		do := sealed.Ensure
		switch {
		case *add:
			do = sealed.Add
		case *root:
			do = sealed.AddRoot
		}
		file, err := do(args[0])
		if err == nil {
			fmt.Fprintln(cmd.OutOrStdout(), file)
		}
		return err
	}
	return cmd
}
