package command

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"s0.run/api"
)

// nodesCommand is what an operator decides about a cluster's nodes. API servers follow
// the database, so that none has to be reached.
func nodesCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "nodes", Short: "Admit, list, drain and remove the nodes of a cluster"}
	cmd.AddCommand(nodesPin(), nodesToken(), nodesList(), nodesDrain(), nodesRemove())
	return cmd
}

// withNodes gives a command the cluster's database.
func withNodes(cmd *cobra.Command, run func(ctx context.Context, n *api.Nodes, cmd *cobra.Command, args []string) error) *cobra.Command {
	url := cmd.Flags().String("database-url", "", "the cluster's PostgreSQL; better put into a file, for others can see a command line")
	from := secret(cmd.Flags(), url, "database-url-file", "file that has that URL")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := from.read(); err != nil {
			return err
		}
		if *url == "" {
			return errors.New("--database-url, in the --config file or one of its own (--database-url-file), is required")
		}
		n, err := api.OpenNodes(cmd.Context(), *url)
		if err != nil {
			return err
		}
		defer n.Close()
		return run(cmd.Context(), n, cmd, args)
	}
	return withFile(cmd)
}

func nodesPin() *cobra.Command {
	return &cobra.Command{
		Use: "pin DIR", Short: "Print by what nodes know the authority in DIR (--node-ca), made when it is missing", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pin, err := api.NodeCAPin(args[0])
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), pin)
			}
			return err
		},
	}
}

func nodesToken() *cobra.Command {
	cmd := &cobra.Command{
		Use: "token", Short: "Print a token with which nodes may join", Args: cobra.NoArgs,
		Long: "Prints a token for a node's --join-token-file. It admits one node, for an hour, unless told otherwise;\n" +
			"a node that has joined needs none any more. It is stored as a hash and shown this once.",
	}
	node := cmd.Flags().String("node", "", "the only node that it admits")
	uses := cmd.Flags().Int("uses", 1, "nodes that it admits")
	life := cmd.Flags().Duration("ttl", time.Hour, "for how long")
	return withNodes(cmd, func(ctx context.Context, n *api.Nodes, cmd *cobra.Command, _ []string) error {
		token, until, err := n.NewToken(ctx, *node, *uses, *life)
		if err != nil {
			return err
		}
		cmd.PrintErrf("until %s\n", until.Format(time.RFC3339))
		fmt.Fprintln(cmd.OutOrStdout(), token)
		return nil
	})
}

func nodesList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List the nodes that have joined", Args: cobra.NoArgs}
	return withNodes(cmd, func(ctx context.Context, n *api.Nodes, cmd *cobra.Command, _ []string) error {
		list, err := n.List(ctx)
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "NAME\tENDPOINT\tSTATE\tSEEN\tCERTIFIED UNTIL")
		for _, node := range list {
			state, seen := "member", "never"
			switch {
			case node.Removed:
				state = "removed"
			case node.Draining:
				state = "draining"
			}
			if !node.SeenAt.IsZero() {
				seen = node.SeenAt.Format(time.RFC3339)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", node.Name, node.Endpoint, state, seen, node.CertifiedUntil.Format(time.RFC3339))
		}
		return w.Flush()
	})
}

func nodesDrain() *cobra.Command {
	cmd := &cobra.Command{
		Use: "drain NODE", Short: "Give a node nothing new and pause what runs there", Args: cobra.ExactArgs(1),
		Long: "Gives a node nothing new and pauses what runs there. What is in the object store (noded --object-store)\n" +
			"goes on at another node when somebody needs it; what is not waits until the node is back: drain NODE --undo.",
	}
	undo := cmd.Flags().Bool("undo", false, "use the node again")
	return withNodes(cmd, func(ctx context.Context, n *api.Nodes, _ *cobra.Command, args []string) error {
		return n.Drain(ctx, args[0], !*undo)
	})
}

func nodesRemove() *cobra.Command {
	cmd := &cobra.Command{
		Use: "remove NODE", Short: "End a node's membership at once and for good", Args: cobra.ExactArgs(1),
		Long: "Ends a node's membership at once and for good: its certificates are refused from now on, and its name is\n" +
			"free. Its sandboxes that are paused and in the object store go on at other nodes; all others are lost.",
	}
	return withNodes(cmd, func(ctx context.Context, n *api.Nodes, _ *cobra.Command, args []string) error {
		return n.Remove(ctx, args[0])
	})
}
