package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

// completionTimeout bounds what pressing Tab may cost.
const completionTimeout = 2 * time.Second

var shells = []string{"bash", "zsh", "fish", "powershell"}

// completion takes the place of cobra's command of the same name, which wants four
// pages of help read.
func completion() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish|powershell",
		Short: "Print what makes your shell complete s0's commands, flags and ids",
		Long: `Print what makes your shell complete s0's commands, flags and ids. To install it:

  bash        s0 completion bash > ~/.local/share/bash-completion/completions/s0
              (needs the package bash-completion)
  zsh         s0 completion zsh > ~/.zfunc/_s0
              and in ~/.zshrc: fpath+=~/.zfunc; autoload -U compinit; compinit
  fish        s0 completion fish > ~/.config/fish/completions/s0.fish
  powershell  s0 completion powershell >> $PROFILE

Make the directory first if there is none, and start a new shell. Ids of sandboxes,
templates, contexts and sessions come from the server, if it answers in time.`,
		Example:               "  source <(s0 completion bash)",
		ValidArgs:             shells,
		DisableFlagsInUseLine: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := want("the shell")(cmd, args); err != nil {
				return err
			}
			if !slices.Contains(shells, args[0]) {
				return usageError(cmd, fmt.Errorf("shell %q: want %s", args[0], strings.Join(shells, ", ")))
			}
			return nil
		},
		PersistentPreRunE: func(*cobra.Command, []string) error { return nil }, // needs no configuration
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(os.Stdout, true)
			case "zsh":
				return root.GenZshCompletion(os.Stdout)
			case "fish":
				return root.GenFishCompletion(os.Stdout, true)
			}
			return root.GenPowerShellCompletionWithDesc(os.Stdout)
		},
	}
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Show which s0 this is",
		Example: "  s0 version\n  s0 version -o json",
		Args:    want(),
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Version string `json:"version"`
				Go      string `json:"go"`
				OS      string `json:"os"`
				Arch    string `json:"arch"`
			}{a.version, runtime.Version(), runtime.GOOS, runtime.GOARCH}
			return a.printer.Print(v, output.Text(fmt.Sprintf("s0 %s (%s, %s/%s)", v.Version, v.Go, v.OS, v.Arch)))
		},
	}
}

// words asks the server for words that complete an argument.
type words func(ctx context.Context, c *client.Client) ([]cobra.Completion, error)

// completeFrom asks the server for words; a server that does not answer in time
// has none.
func (a *app) completeFrom(ctx context.Context, ask words) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	if err := a.open(); err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	c, err := a.session.Client(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	found, err := ask(ctx, c)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}

// completeFirst completes a command's first argument, or with more all of them.
func (a *app) completeFirst(ask words) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.completeFrom(cmd.Context(), ask)
	}
}

// completeSignal completes a command of an id and a signal.
func (a *app) completeSignal(ids words) cobra.CompletionFunc {
	first := a.completeFirst(ids)
	return func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 1 {
			return []cobra.Completion{"INT", "TERM", "HUP", "QUIT", "KILL", "USR1", "USR2", "STOP", "CONT"}, cobra.ShellCompDirectiveNoFileComp
		}
		return first(cmd, args, word)
	}
}

// completeSandboxes completes the first argument, of `delete` all of them. What
// `exec` has behind it are often files' names.
func (a *app) completeSandboxes(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 && cmd.Name() != "delete" {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return a.completeFrom(cmd.Context(), func(ctx context.Context, c *client.Client) (found []cobra.Completion, _ error) {
		list, err := c.ListSandboxes(ctx, client.ListSandboxesOptions{Limit: 200})
		if err != nil {
			return nil, err
		}
		for _, s := range list.Sandboxes {
			if !slices.Contains(args, s.ID) {
				found = append(found, describeWord(s.ID, string(s.Status), s.TemplateID, since(s.CreatedAt)))
			}
		}
		return found, nil
	})
}

// contextWords are the ids of a sandbox's contexts.
func contextWords(sandbox *string) words {
	return func(ctx context.Context, c *client.Client) (found []cobra.Completion, _ error) {
		list, err := c.ListContexts(ctx, *sandbox)
		if err != nil {
			return nil, err
		}
		for _, x := range list.Contexts {
			found = append(found, describeWord(x.ID, contextState(x), contextWhat(x)))
		}
		return found, nil
	}
}

// sessionWords are the ids of a sandbox's execution sessions.
func sessionWords(sandbox *string) words {
	return func(ctx context.Context, c *client.Client) (found []cobra.Completion, _ error) {
		list, err := c.ListSessions(ctx, *sandbox)
		if err != nil {
			return nil, err
		}
		for _, x := range list.Sessions {
			found = append(found, describeWord(x.ID, string(x.Phase), deref(x.Spec.Name), strings.Join(x.Spec.Command, " ")))
		}
		return found, nil
	}
}

// serviceWords are the ids of a sandbox's services.
func serviceWords(sandbox *string) words {
	return func(ctx context.Context, c *client.Client) (found []cobra.Completion, _ error) {
		list, err := c.SandboxServices(ctx, *sandbox)
		if err != nil {
			return nil, err
		}
		for _, x := range list.Services {
			found = append(found, describeWord(x.ID, deref(x.DisplayName), deref(x.PublicURL)))
		}
		return found, nil
	}
}

// credentialWords are the team's credential sources.
func credentialWords(ctx context.Context, c *client.Client) (found []cobra.Completion, _ error) {
	list, err := c.ListCredentialSources(ctx)
	if err != nil {
		return nil, err
	}
	for _, x := range list {
		found = append(found, describeWord(x.Name, string(x.ResolverKind)))
	}
	return found, nil
}

// portWords are the ports that a sandbox exposes.
func portWords(sandbox *string) words {
	return func(ctx context.Context, c *client.Client) (found []cobra.Completion, _ error) {
		list, err := c.ExposedPorts(ctx, *sandbox)
		if err != nil {
			return nil, err
		}
		for _, p := range list.ExposedPorts {
			found = append(found, describeWord(fmt.Sprint(p.Port), deref(p.PublicURL)))
		}
		return found, nil
	}
}

// completeRemote completes paths of a sandbox or a volume, for the arguments from the first to the
// last; others are the user's own files.
func (a *app) completeRemote(at filesOf, first, last int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) < first || len(args) > last {
			return nil, cobra.ShellCompDirectiveDefault
		}
		dir, _ := path.Split(word)
		found, directive := a.completeFrom(cmd.Context(), func(ctx context.Context, c *client.Client) (found []cobra.Completion, _ error) {
			list, err := at(c).List(ctx, cmp.Or(dir, "."))
			if err != nil {
				return nil, err
			}
			for _, f := range list.Entries {
				name := dir + f.Name
				if f.Type == client.FileInfoTypeDir {
					name += "/"
				}
				if output.Plain(name) == name { // a name that spans lines would be two words
					found = append(found, name)
				}
			}
			return found, nil
		})
		return found, directive | cobra.ShellCompDirectiveNoSpace
	}
}

// completeContextFlag completes the flag --context-id of a command whose first
// argument is a sandbox.
func (a *app) completeContextFlag(cmd *cobra.Command) {
	completeFlag(cmd, "context-id", func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.completeFrom(cmd.Context(), contextWords(&args[0]))
	})
}

// complete offers words for a flag's value.
func complete(cmd *cobra.Command, flag string, words ...string) {
	completeFlag(cmd, flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}

func completeFlag(cmd *cobra.Command, flag string, find cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, find); err != nil {
		panic(err) // the flag was made two lines above
	}
}

// describeWord makes a word with its description, of which empty parts are left out.
// Both come from others than the one whose shell reads them.
func describeWord(word string, parts ...string) cobra.Completion {
	parts = slices.DeleteFunc(parts, func(s string) bool { return s == "" })
	return cobra.CompletionWithDesc(output.Plain(word), output.Plain(strings.Join(parts, ", ")))
}
