// The images program builds the default template image from Debian packages,
// for machines that have no registry in reach: debootstrap, a deterministic
// layer, an OCI layout. It writes the layout whole or not at all and leaves it
// alone while its recipe has not changed. It never pushes anything anywhere.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	out := flag.String("out", "build/images/default", "directory of the OCI layout")
	force := flag.Bool("force", false, "build even when the recipe has not changed")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *out, *force); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out string, force bool) error {
	recipe := defaultRecipe()
	if !force && recipe.builtIn(out) {
		fmt.Printf("template image: %s is up to date (recipe %s)\n", out, recipe.hash())
		return nil
	}
	if os.Geteuid() != 0 {
		return errors.New("building an image needs root (debootstrap uses chroot); run it as root")
	}
	suite, err := hostSuite(ctx)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(out), ".image-")
	if err != nil {
		return err
	}
	rootfs := filepath.Join(work, "rootfs")
	defer func() {
		for _, at := range []string{"proc", "sys", "dev/pts", "dev/shm", "dev"} { // of a debootstrap that was cut short
			_ = unix.Unmount(filepath.Join(rootfs, at), unix.MNT_DETACH)
		}
		os.RemoveAll(work)
	}()

	began := time.Now()
	fmt.Printf("template image: installing %d packages of %s (about 2 minutes)\n", len(recipe.Packages), suite.Codename)
	if err := bootstrap(ctx, recipe, suite, rootfs); err != nil {
		return err
	}
	if err := clean(rootfs); err != nil {
		return fmt.Errorf("cleaning the root file system: %w", err)
	}
	fmt.Println("template image: packing")
	digest, err := pack(recipe, rootfs, began, filepath.Join(work, "layout"))
	if err != nil {
		return err
	}
	if err := replace(filepath.Join(work, "layout"), out); err != nil {
		return err
	}
	fmt.Printf("template image: %s built in %s (%s)\n", out, time.Since(began).Round(time.Second), digest)
	return nil
}

// replace puts a finished layout in place of an older one.
func replace(layout, out string) error {
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	return os.Rename(layout, out)
}
