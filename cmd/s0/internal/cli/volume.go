package cli

import (
	"context"
	"errors"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/output"
)

func (a *app) volume() *cobra.Command {
	return group("volume", "Volumes, which outlive sandboxes",
		"  VOLUME=$(s0 volume create -o json | jq -r .id)\n  s0 sandbox create --mount $VOLUME:/data\n  s0 volume files ls $VOLUME\n  s0 volume snapshot create $VOLUME -n before",
		a.volumeList(), a.volumeGet(), a.volumeCreate(), a.volumeDelete(), a.volumeFork(), a.volumeSnapshot(), a.volumeFiles())
}

func (a *app) volumeList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List your team's volumes, newest first",
		Example: "  s0 volume list",
		Args:    want(),
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			list, err := c.ListVolumes(ctx)
			if err != nil {
				return err
			}
			rows := output.Rows{Columns: []string{"ID", "ACCESS", "BACKEND~", "SIZE", "CREATED", "SOURCE?"}, None: "No volumes. `s0 volume create` makes one."}
			for _, v := range list {
				rows.Rows = append(rows.Rows, []string{v.ID, string(v.AccessMode), string(v.Backend), size(v.MeteredStorageBytes), since(v.CreatedAt), deref(v.SourceVolumeID)})
			}
			return a.printer.Print(list, rows)
		}),
	}
}

func volumeFields(v *client.SandboxVolume) output.Fields {
	fields := output.Fields{
		{"ID", v.ID}, {"Access mode", string(v.AccessMode)}, {"Backend", string(v.Backend)}, {"Size", size(v.MeteredStorageBytes)},
		{"Owner", fmtOwner(v.DefaultPosixUID, v.DefaultPosixGID)}, {"Source", deref(v.SourceVolumeID)}, {"Created", since(v.CreatedAt)},
	}
	if b := v.S3; b != nil {
		fields = append(fields, [2]string{"Bucket", string(b.Provider) + "://" + b.Bucket + "/" + deref(b.Prefix)},
			[2]string{"Region", deref(b.Region)}, [2]string{"Endpoint", deref(b.EndpointURL)})
	}
	return fields
}

func (a *app) volumeGet() *cobra.Command {
	return &cobra.Command{
		Use:               "get <volume>",
		Short:             "Show a volume",
		Example:           "  s0 volume get VOLUME",
		Args:              want("the volume's id"),
		ValidArgsFunction: a.completeFirst(volumeWords),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			v, err := c.GetVolume(ctx, args[0])
			if err != nil {
				return err
			}
			return a.printer.Print(v, volumeFields(v))
		}),
	}
}

// bucket are the flags that say which bucket is a volume. What opens it comes from the
// environment: arguments can be read by others.
type bucket struct{ provider, bucket, prefix, region, endpoint string }

const envAccessKey, envSecretKey, envSessionToken = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"

func (b *bucket) config() (*client.CreateSandboxVolumeS3Config, error) {
	if b.bucket == "" {
		return nil, errors.New("say which bucket: --s3-bucket")
	}
	s3 := &client.CreateSandboxVolumeS3Config{
		Bucket: b.bucket, Prefix: given(b.prefix), Region: given(b.region), EndpointURL: given(b.endpoint),
		AccessKey: os.Getenv(envAccessKey), SecretKey: os.Getenv(envSecretKey), SessionToken: given(os.Getenv(envSessionToken)),
	}
	if b.provider != "" {
		s3.Provider = new(client.VolumeS3Provider(b.provider))
	}
	if s3.AccessKey == "" || s3.SecretKey == "" {
		return nil, errors.New("the bucket's credential is taken from " + envAccessKey + " and " + envSecretKey + ": set them")
	}
	return s3, nil
}

// given is a flag's value; nil when it was not given.
func given(value string) *string {
	if value == "" {
		return nil
	}
	return &value
}

func (a *app) volumeCreate() *cobra.Command {
	var mode, backend, snapshot string
	var uid, gid int64
	var b bucket
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a volume",
		Long: `Make a volume. Its access mode says which sandboxes mount it: RWO one at a time, ROX
many, which read it alone, RWX none, so that only ` + "`s0 volume files`" + ` reaches it.

With --backend s3 a bucket is the volume, to be read alone (ROX). What opens it is taken from ` + envAccessKey + `,
` + envSecretKey + ` and, if it is set, ` + envSessionToken + `.`,
		Example: `  s0 volume create
  s0 volume create --access-mode ROX --snapshot-id SNAPSHOT
  s0 volume create --backend s3 --s3-bucket models --s3-region eu-central-1`,
		Args: want(),
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			var req client.CreateSandboxVolumeRequest
			if mode != "" {
				req.AccessMode = new(client.VolumeAccessMode(mode))
			}
			req.SnapshotID = given(snapshot)
			if backend != "" {
				req.Backend = new(client.VolumeBackend(backend))
			}
			if backend == "s3" || b != (bucket{}) {
				var err error
				if req.S3, err = b.config(); err != nil {
					return err
				}
			}
			req.DefaultPosixUID, req.DefaultPosixGID = owner(uid, gid)
			v, err := c.CreateVolume(ctx, "", req)
			if err != nil {
				return err
			}
			return a.printer.Print(v, volumeFields(v))
		}),
	}
	flags := cmd.Flags()
	flags.StringVar(&mode, "access-mode", "", "RWO, ROX or RWX (default RWO; of a bucket ROX)")
	flags.StringVar(&backend, "backend", "", "s0fs, or s3 for a bucket (default s0fs)")
	flags.StringVar(&snapshot, "snapshot-id", "", "begin with a snapshot of a volume")
	flags.Int64Var(&uid, "uid", -1, "who owns what is written without a sandbox; with --gid")
	flags.Int64Var(&gid, "gid", -1, "and the group; with --uid")
	flags.StringVar(&b.provider, "s3-provider", "", "aws, ali or r2 (default aws)")
	flags.StringVar(&b.bucket, "s3-bucket", "", "the bucket")
	flags.StringVar(&b.prefix, "s3-prefix", "", "what the keys begin with that are the volume")
	flags.StringVar(&b.region, "s3-region", "", "the bucket's region")
	flags.StringVar(&b.endpoint, "s3-endpoint-url", "", "where the bucket is served (default the provider's)")
	complete(cmd, "access-mode", "RWO", "ROX", "RWX")
	complete(cmd, "backend", "s0fs", "s3")
	complete(cmd, "s3-provider", "aws", "ali", "r2")
	return cmd
}

// owner are the ids that flags name; -1 stands for one that was not given.
func owner(uid, gid int64) (u, g *int64) {
	if uid >= 0 {
		u = &uid
	}
	if gid >= 0 {
		g = &gid
	}
	return u, g
}

func (a *app) volumeDelete() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "delete <volume>...",
		Short:             "Delete volumes with their snapshots",
		Example:           "  s0 volume delete VOLUME\n  s0 volume delete --force VOLUME",
		Args:              wantSome("the volume's id"),
		ValidArgsFunction: a.completeFirst(volumeWords),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			for _, id := range args {
				if err := c.DeleteVolume(ctx, id, force); err != nil {
					return err
				}
			}
			return a.done("Deleted %s.", strings.Join(args, ", "))
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "also while sandboxes have them mounted")
	return cmd
}

func (a *app) volumeFork() *cobra.Command {
	var mode string
	cmd := &cobra.Command{
		Use:               "fork <volume>",
		Short:             "Make a volume that is what another one is now",
		Example:           "  s0 volume fork VOLUME\n  s0 volume fork VOLUME --access-mode ROX",
		Args:              want("the volume's id"),
		ValidArgsFunction: a.completeFirst(volumeWords),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			var req client.ForkVolumeRequest
			if mode != "" {
				req.AccessMode = new(client.VolumeAccessMode(mode))
			}
			v, err := c.ForkVolume(ctx, args[0], "", req)
			if err != nil {
				return err
			}
			return a.printer.Print(v, volumeFields(v))
		}),
	}
	cmd.Flags().StringVar(&mode, "access-mode", "", "RWO, ROX or RWX (default the source's)")
	complete(cmd, "access-mode", "RWO", "ROX", "RWX")
	return cmd
}

// volumeFiles are the commands of files with the volume before their own arguments.
func (a *app) volumeFiles() *cobra.Command {
	var volume string
	commands := a.fileCommands(func(c *client.Client) client.Files { return c.VolumeFiles(volume) })
	for _, cmd := range commands {
		a.ofVolume(&volume, cmd)
	}
	return group("files", "Files of a volume, without any sandbox; paths begin at its root",
		"  s0 volume files ls VOLUME /\n  s0 volume files upload VOLUME data.csv\n  s0 volume files cat VOLUME result.txt", commands...)
}

func (a *app) ofVolume(volume *string, cmd *cobra.Command) {
	name, rest, _ := strings.Cut(cmd.Use, " ")
	cmd.Use = name + " <volume> " + rest
	cmd.Short, cmd.Long = strings.ReplaceAll(cmd.Short, "the sandbox", "the volume"), strings.ReplaceAll(cmd.Long, "the sandbox", "the volume")
	cmd.Example = strings.ReplaceAll(strings.ReplaceAll(cmd.Example, "sandbox files -s ID "+name, "volume files "+name+" VOLUME"), "VOLUME --recursive ", "VOLUME -r ")
	check, run, words := cmd.Args, cmd.RunE, cmd.ValidArgsFunction
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return want("the volume's id")(cmd, args)
		}
		return check(cmd, args[1:])
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		*volume = args[0]
		return run(cmd, args[1:])
	}
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return a.completeFrom(cmd.Context(), volumeWords)
		}
		*volume = args[0]
		return words(cmd, args[1:], word)
	}
}
