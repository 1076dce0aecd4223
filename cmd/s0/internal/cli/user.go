package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

func (a *app) user() *cobra.Command {
	return group("user", "Your own account", "  s0 user get\n  s0 user ssh-key add --public-key-file ~/.ssh/id_ed25519.pub",
		a.userGet(), a.userUpdate(), a.userIdentities(), a.sshKey())
}

func (a *app) userGet() *cobra.Command {
	return &cobra.Command{
		Use:     "get",
		Short:   "Show who you are",
		Example: "  s0 user get",
		Args:    want(),
		RunE: a.runUser(func(ctx context.Context, c *client.Client, _ []string) error {
			u, err := c.CurrentUser(ctx)
			if err != nil {
				return err
			}
			return a.printUser(u)
		}),
	}
}

func (a *app) printUser(u *client.User) error {
	return a.printer.Print(u, output.Fields{
		{"ID", u.ID}, {"Email", u.Email}, {"Name", u.Name}, {"Picture", deref(u.AvatarURL)}, {"Admin", yesNo(u.IsAdmin)},
		{"Default team", deref(u.DefaultTeamID)}, {"Created", since(u.CreatedAt)},
	})
}

func (a *app) userUpdate() *cobra.Command {
	var name, picture string
	cmd := &cobra.Command{
		Use:     "update",
		Short:   "Change your name or picture",
		Example: "  s0 user update --name 'Ada Lovelace'\n  s0 user update --avatar-url https://example.com/ada.png",
		Args:    want(),
	}
	flags := cmd.Flags()
	flags.StringVar(&name, "name", "", "how others see you")
	flags.StringVar(&picture, "avatar-url", "", "https address of your picture; empty for none")
	cmd.MarkFlagsOneRequired("name", "avatar-url")
	cmd.RunE = a.runUser(func(ctx context.Context, c *client.Client, _ []string) error {
		u, err := c.UpdateUser(ctx, client.UpdateUserRequest{Name: changed(cmd, "name", name), AvatarURL: changed(cmd, "avatar-url", picture)})
		if err != nil {
			return err
		}
		return a.printUser(u)
	})
	return cmd
}

// changed is a flag's value if it was given.
func changed(cmd *cobra.Command, flag, value string) *string {
	if !cmd.Flags().Changed(flag) {
		return nil
	}
	return &value
}

func (a *app) userIdentities() *cobra.Command {
	list := &cobra.Command{
		Use:     "list",
		Short:   "List the ways in which you can sign in",
		Example: "  s0 user identity list",
		Args:    want(),
		RunE: a.runUser(func(ctx context.Context, c *client.Client, _ []string) error {
			list, err := c.ListIdentities(ctx)
			if err != nil {
				return err
			}
			rows := output.Rows{Columns: []string{"ID", "PROVIDER~", "CREATED?"}}
			for _, i := range list.Identities {
				rows.Rows = append(rows.Rows, []string{i.ID, i.Provider, since(unixTime(i.CreatedAt))})
			}
			return a.printer.Print(list, rows)
		}),
	}
	remove := &cobra.Command{
		Use:               "delete <id>",
		Short:             "Take away a way to sign in; the last one stays",
		Example:           "  s0 user identity delete 1b2c…",
		Args:              want("the identity's id"),
		ValidArgsFunction: a.completeFirst(identityWords),
		RunE: a.runUser(func(ctx context.Context, c *client.Client, args []string) error {
			if err := c.DeleteIdentity(ctx, args[0]); err != nil {
				return err
			}
			return a.done("Identity %s is deleted.", args[0])
		}),
	}
	return group("identity", "The ways in which you can sign in", "  s0 user identity list", list, remove)
}

func identityWords(ctx context.Context, c *client.Client) (found []cobra.Completion, _ error) {
	list, err := c.ListIdentities(ctx)
	if err != nil {
		return nil, err
	}
	for _, i := range list.Identities {
		found = append(found, describeWord(i.ID, i.Provider))
	}
	return found, nil
}

func (a *app) sshKey() *cobra.Command {
	return group("ssh-key", "Your SSH keys in the current team", "  s0 user ssh-key list", a.sshKeyList(), a.sshKeyAdd(), a.sshKeyDelete())
}

func (a *app) sshKeyList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List your SSH keys in the current team",
		Example: "  s0 user ssh-key list",
		Args:    want(),
		RunE: a.runUser(func(ctx context.Context, c *client.Client, _ []string) error {
			keys, err := c.ListSSHKeys(ctx)
			if err != nil {
				return err
			}
			rows := output.Rows{Columns: []string{"ID", "NAME~", "TYPE?", "FINGERPRINT~", "CREATED?"}}
			for _, k := range keys.SSHKeys {
				rows.Rows = append(rows.Rows, []string{k.ID, k.Name, k.KeyType, k.FingerprintSha256, since(k.CreatedAt)})
			}
			return a.printer.Print(keys, rows)
		}),
	}
}

func (a *app) sshKeyAdd() *cobra.Command {
	var name, key, file string
	cmd := &cobra.Command{
		Use:   "add --public-key-file <file>",
		Short: "Add an SSH key for the current team",
		Long: `Add an SSH key for the current team. It goes when you leave the team.

Without --name the key is named by its comment, or by its file.`,
		Example: `  s0 user ssh-key add --public-key-file ~/.ssh/id_ed25519.pub
  ssh-add -L | head -1 | s0 user ssh-key add --name agent --public-key-file -
  s0 user ssh-key add --name laptop --public-key "ssh-ed25519 AAAA… me@laptop"`,
		Args: want(),
		RunE: a.runUser(func(ctx context.Context, c *client.Client, _ []string) error {
			key, err := publicKey(key, file)
			if err != nil {
				return err
			}
			if name == "" {
				name = keyName(key, file)
			}
			added, err := c.CreateSSHKey(ctx, name, key)
			if err != nil {
				return err
			}
			return a.printer.Print(added, output.Fields{
				{"ID", added.ID}, {"Name", added.Name}, {"Type", added.KeyType}, {"Fingerprint", added.FingerprintSha256},
			})
		}),
	}
	flags := cmd.Flags()
	flags.StringVar(&name, "name", "", "what the key is called")
	flags.StringVar(&key, "public-key", "", "the key itself, a line as in an authorized_keys file")
	flags.StringVar(&file, "public-key-file", "", "the file that has it; - for stdin")
	cmd.MarkFlagsOneRequired("public-key", "public-key-file")
	cmd.MarkFlagsMutuallyExclusive("public-key", "public-key-file")
	return cmd
}

// maxPublicKey is more than a public key has, and less than what isn't one.
const maxPublicKey = 16 << 10

// publicKey reads the key that the flags name. A private key stays here.
func publicKey(key, file string) (string, error) {
	text := []byte(key)
	if file != "" {
		var err error
		if text, err = readSome(file, maxPublicKey); err != nil {
			return "", fmt.Errorf("reading the public key: %w", err)
		}
	}
	if bytes.Contains(text, []byte("PRIVATE KEY")) {
		return "", errors.New("this is a private key, which nobody else should have: give the public one, in the file with .pub")
	}
	return strings.TrimSpace(string(text)), nil
}

// readSome reads a small file, or stdin for "-".
func readSome(file string, limit int64) ([]byte, error) {
	f := os.Stdin
	if file != "-" {
		var err error
		if f, err = os.Open(file); err != nil {
			return nil, err
		}
		defer f.Close()
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", file, limit)
	}
	return b, err
}

func keyName(key, file string) string {
	if _, comment, ok := strings.Cut(key, " "); ok {
		if _, comment, ok = strings.Cut(comment, " "); ok && strings.TrimSpace(comment) != "" {
			return strings.TrimSpace(comment)
		}
	}
	if file != "" && file != "-" {
		return strings.TrimSuffix(filepath.Base(file), ".pub")
	}
	return "key"
}

func (a *app) sshKeyDelete() *cobra.Command {
	return &cobra.Command{
		Use:               "delete <id>",
		Short:             "Delete one of your SSH keys",
		Example:           "  s0 user ssh-key delete 1b2c…",
		Args:              want("the key's id"),
		ValidArgsFunction: a.completeFirst(sshKeyWords),
		RunE: a.runUser(func(ctx context.Context, c *client.Client, args []string) error {
			if err := c.DeleteSSHKey(ctx, args[0]); err != nil {
				return err
			}
			return a.done("SSH key %s is deleted.", args[0])
		}),
	}
}

func sshKeyWords(ctx context.Context, c *client.Client) (found []cobra.Completion, _ error) {
	keys, err := c.ListSSHKeys(ctx)
	if err != nil {
		return nil, err
	}
	for _, k := range keys.SSHKeys {
		found = append(found, describeWord(k.ID, k.Name, k.FingerprintSha256))
	}
	return found, nil
}
