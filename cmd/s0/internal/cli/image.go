package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"s0.run/api/client"
	"s0.run/cmd/s0/internal/images"
	"s0.run/cmd/s0/internal/output"
	"s0.run/cmd/s0/internal/progress"
)

func (a *app) templateImage() *cobra.Command {
	return group("image", "Images of your team's templates", "  s0 template image build . -t app:v1\n  s0 template image push app:v1 -t app:v1",
		a.imageBuild(), a.imagePush(), a.imageCredentials())
}

// imageStore is where built images are kept.
func imageStore() (string, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("finding your home directory: %w", err)
	}
	return filepath.Join(home, ".s0", "images"), nil
}

func (a *app) imageBuild() *cobra.Command {
	o := images.BuildOptions{Context: ".", Out: os.Stderr}
	cmd := &cobra.Command{
		Use:   "build [context] -t <name[:tag]>",
		Short: "Build an image on this machine",
		Long: `Build an image from a Dockerfile with docker, podman or buildah, the first of
them that works here, and keep it for s0 template image push.`,
		Example: "  s0 template image build -t app:v1\n  s0 template image build ./app -t app:v1 -f ./app/Dockerfile --platform linux/amd64",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.Context = args[0]
			}
			if err := validName(o.Name); err != nil {
				return err
			}
			store, err := imageStore()
			if err != nil {
				return err
			}
			b, err := images.FindBuilder(cmd.Context())
			if err != nil {
				return err
			}
			dir, err := images.Build(cmd.Context(), b, store, o)
			if err != nil {
				return err
			}
			note("To use it: s0 template image push %s -t %s", o.Name, o.Name)
			built := builtImage{Name: o.Name, Builder: b.Name, Layout: dir}
			return a.printer.Print(built, output.Fields{{"Name", built.Name}, {"Builder", built.Builder}, {"Layout", built.Layout}})
		},
	}
	cmd.Flags().StringVarP(&o.Name, "tag", "t", "", "what to call it: name[:tag]")
	cmd.Flags().StringVarP(&o.File, "file", "f", "", "the Dockerfile (default the context's own)")
	cmd.Flags().StringVar(&o.Platform, "platform", "", "what to build for, such as linux/amd64")
	cmd.Flags().BoolVar(&o.Pull, "pull", false, "look for a newer base image")
	cmd.Flags().BoolVar(&o.NoCache, "no-cache", false, "build every step anew")
	cmd.MarkFlagRequired("tag")
	return cmd
}

// builtImage and pushedImage are what -o json prints.
type builtImage struct {
	Name    string `json:"name"`
	Builder string `json:"builder"`
	Layout  string `json:"layout"`
}

type pushedImage struct {
	Image  string `json:"image"` // for a template: it never changes
	Tag    string `json:"tag"`   // the same by tag, as it is now
	Digest string `json:"digest"`
}

// validName refuses what can't be the name of an image before much is done for it.
func validName(name string) error {
	if name == "" || strings.HasPrefix(name, "-") || strings.ContainsAny(name, "@ \t\n") || strings.ToLower(baseOf(name)) != baseOf(name) {
		return fmt.Errorf("-t %q: want name[:tag] in small letters, such as app:v1", name)
	}
	return nil
}

// baseOf is an image's name without its tag.
func baseOf(name string) string {
	if colon := strings.LastIndexByte(name, ':'); colon > strings.LastIndexByte(name, '/') {
		return name[:colon]
	}
	return name
}

func (a *app) imagePush() *cobra.Command {
	var target string
	cmd := &cobra.Command{
		Use:   "push <image> -t <name[:tag]>",
		Short: "Push an image to your team's place in the server's registry",
		Long: `Push an image and print the reference to put into a template.

The image is one that s0 template image build made, an OCI image layout, an
archive of one or of docker save, or one that docker, podman or buildah has here.
Without any of these programs, layouts and archives can still be pushed.`,
		Example: "  s0 template image push app:v1 -t app:v1\n  s0 template image push ./layout -t app:v1\n  s0 template image push ./app.tar -t app",
		Args:    want("the image: its name, a directory or a file"),
		RunE: a.run(func(ctx context.Context, c *client.Client, args []string) error {
			if err := validName(target); err != nil {
				return err
			}
			store, err := imageStore()
			if err != nil {
				return err
			}
			img, err := images.Find(ctx, args[0], store)
			if err != nil {
				return err
			}
			defer img.Close()
			pushed, err := push(ctx, c, img, target)
			if err != nil {
				return err
			}
			note("Put it into a template: spec.mainContainer.image")
			return a.printer.Print(pushed, output.Fields{{"Image", pushed.Image}, {"Tag", pushed.Tag}})
		}),
	}
	cmd.Flags().StringVarP(&target, "tag", "t", "", "what to call it: name[:tag]")
	cmd.MarkFlagRequired("tag")
	return cmd
}

func push(ctx context.Context, c *client.Client, img *images.Image, target string) (*pushedImage, error) {
	creds, err := c.CreateRegistryCredentials(ctx, target)
	if err != nil {
		return nil, err
	}
	name := below(creds, target)
	bar := progress.Start(os.Stderr, "Pushing "+target, 0)
	defer bar.Stop()
	to := images.Target{Reference: creds.PushRegistry + "/" + name, User: creds.Username, Password: creds.Password}
	digest, err := images.Push(ctx, img, to, bar.Set)
	if err != nil {
		return nil, err
	}
	return &pushedImage{Image: creds.PullRegistry + "/" + baseOf(name) + "@" + digest, Tag: creds.PullRegistry + "/" + name, Digest: digest}, nil
}

// below is a target's name in the registry, below the team's prefix, with its tag.
func below(creds *client.RegistryCredentials, target string) string {
	for _, host := range []string{creds.PushRegistry, creds.PullRegistry} {
		target = strings.TrimPrefix(target, host+"/")
	}
	if !strings.HasPrefix(target, creds.Username+"/") {
		target = creds.Username + "/" + target
	}
	if baseOf(target) == target {
		target += ":latest"
	}
	return target
}

func (a *app) imageCredentials() *cobra.Command {
	var target string
	var raw bool
	cmd := &cobra.Command{
		Use:   "credentials",
		Short: "Get credentials for the server's registry",
		Long: `Get credentials with which other programs push your team's images. They work for
a short while. The password is printed only with --raw, and then alone.`,
		Example: "  s0 template image credentials\n  s0 template image credentials --raw | docker login -u USERNAME --password-stdin REGISTRY",
		Args:    want(),
		RunE: a.run(func(ctx context.Context, c *client.Client, _ []string) error {
			creds, err := c.CreateRegistryCredentials(ctx, target)
			if err != nil {
				return err
			}
			if raw {
				return a.printer.Print(creds, output.Text(creds.Password))
			}
			login := fmt.Sprintf("s0 template image credentials --raw | docker login -u %s --password-stdin %s", creds.Username, creds.PushRegistry)
			shown := *creds
			shown.Password = "hidden: see --raw"
			fields := output.Fields{{"Push to", creds.PushRegistry + "/" + creds.Username + "/NAME"}, {"In templates", creds.PullRegistry + "/" + creds.Username + "/NAME"}}
			if creds.ExpiresAt != nil {
				fields = append(fields, [2]string{"Expires", "in " + time.Until(*creds.ExpiresAt).Round(time.Minute).String()})
			}
			return a.printer.Print(shown, append(fields, [2]string{"Log in", login}))
		}),
	}
	cmd.Flags().StringVarP(&target, "tag", "t", "", "the image that shall be pushed: name[:tag]")
	cmd.Flags().BoolVar(&raw, "raw", false, "print the password, and nothing else")
	return cmd
}
