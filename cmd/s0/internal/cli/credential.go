package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

func (a *app) credential() *cobra.Command {
	return group("credential", "Secrets that requests carry and sandboxes never have",
		"  s0 credential create -f github.yaml\n  s0 credential list\n  s0 credential update github -f github.yaml",
		a.credentialList(), a.credentialGet(), a.credentialCreate(), a.credentialUpdate(), a.credentialDelete())
}

func (a *app) credentialList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the team's credential sources",
		Example: "  s0 credential list",
		Args:    want(),
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			list, err := c.ListCredentialSources(ctx)
			if err != nil {
				return err
			}
			return a.printer.Print(list, credentialRows(list...))
		}),
	}
}

func credentialRows(list ...client.CredentialSourceMetadata) output.Rows {
	rows := output.Rows{Columns: []string{"NAME~", "KIND", "VERSION", "STATUS?", "UPDATED"}, None: "No credential sources."}
	for _, s := range list {
		rows.Rows = append(rows.Rows, []string{s.Name, string(s.ResolverKind), fmt.Sprint(s.CurrentVersion), string(s.Status), since(s.UpdatedAt)})
	}
	return rows
}

func (a *app) credentialGet() *cobra.Command {
	return &cobra.Command{
		Use:               "get <name>",
		Short:             "Show a credential source; nothing shows what it holds",
		Example:           "  s0 credential get github",
		Args:              want("the source's name"),
		ValidArgsFunction: a.completeFirst(credentialWords),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			s, err := c.GetCredentialSource(ctx, args[0])
			if err != nil {
				return err
			}
			return a.printer.Print(s, credentialRows(*s))
		}),
	}
}

const credentialFile = `

  name: github
  resolverKind: static_headers
  spec: {staticHeaders: {values: {token: "..."}}}

The other kinds are static_username_password (staticUsernamePassword: username,
password), static_tls_client_certificate (staticTLSClientCertificate:
certificatePem, privateKeyPem, caPem) and static_ssh_private_key
(staticSSHPrivateKey: privateKeyPem, passphrase).`

func (a *app) credentialCreate() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:     "create -f <source>",
		Short:   "Create a credential source",
		Long:    "Create a credential source from a file in YAML or JSON, such as" + credentialFile,
		Example: "  s0 credential create -f github.yaml\n  vault read … | s0 credential create -f -",
		Args:    want(),
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			req, err := readConfig[client.CredentialSourceWriteRequest](file)
			if err == nil && req.Name == "" {
				err = fmt.Errorf("%s: name is missing", file)
			}
			if err != nil {
				return err
			}
			s, err := c.CreateCredentialSource(ctx, req)
			if err != nil {
				return err
			}
			return a.printer.Print(s, output.Text("Created "+s.Name+"."))
		}),
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "source in YAML or JSON, - for stdin")
	cmd.MarkFlagRequired("file")
	return cmd
}

func (a *app) credentialUpdate() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:               "update <name> -f <source>",
		Short:             "Replace what a credential source holds; sandboxes use it within seconds",
		Long:              "Replace what a credential source holds. The file is like that of `create`;\nits name may be missing, and its kind stays." + credentialFile,
		Example:           "  s0 credential update github -f github.yaml",
		Args:              want("the source's name"),
		ValidArgsFunction: a.completeFirst(credentialWords),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			req, err := readConfig[client.CredentialSourceUpdateRequest](file)
			if err == nil && req.Name != nil && *req.Name != args[0] {
				err = errors.New("the file's name is another one")
			}
			if err != nil {
				return err
			}
			s, err := c.UpdateCredentialSource(ctx, args[0], req)
			if err != nil {
				return err
			}
			return a.printer.Print(s, output.Text(fmt.Sprintf("Updated %s to version %d.", s.Name, s.CurrentVersion)))
		}),
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "source in YAML or JSON, - for stdin")
	cmd.MarkFlagRequired("file")
	return cmd
}

func (a *app) credentialDelete() *cobra.Command {
	return &cobra.Command{
		Use:               "delete <name>",
		Short:             "Delete a credential source that no sandbox is bound to",
		Example:           "  s0 credential delete github",
		Args:              want("the source's name"),
		ValidArgsFunction: a.completeFirst(credentialWords),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			if err := c.DeleteCredentialSource(ctx, args[0]); err != nil {
				return err
			}
			return a.done("Deleted %s.", args[0])
		}),
	}
}
