// The images program builds the builtin templates' images from Debian packages,
// for machines that have no registry in reach: debootstrap for the default image,
// apt for the layers that others add to it; deterministic layers, OCI layouts. It
// writes a layout whole or not at all and leaves it alone while its recipe has not
// changed. It never pushes anything anywhere.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	dir := flag.String("dir", "build/images", "directory of the OCI layouts, one for each image")
	force := flag.Bool("force", false, "build even when a recipe has not changed")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "usage: images [flags] [%s | all]...\n", strings.Join(names(), " | "))
		flag.PrintDefaults()
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *dir, *force, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

// names lists the images, the base of the others first.
func names() []string { return []string{"default", "browser", "code-interpreter"} }

func run(ctx context.Context, dir string, force bool, wanted []string) error {
	switch {
	case len(wanted) == 0:
		wanted = []string{"default"}
	case slices.Contains(wanted, "all"):
		wanted = names()
	}
	for _, name := range wanted {
		r, ok := recipes()[name]
		if !ok {
			return fmt.Errorf("no such image: %q; want %s or all", name, strings.Join(names(), ", "))
		}
		if r.Base != nil && !r.Base.builtIn(filepath.Join(dir, "default")) {
			if err := build(ctx, *r.Base, filepath.Join(dir, "default"), false); err != nil {
				return err
			}
		}
		if err := build(ctx, r, filepath.Join(dir, name), force); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// build makes the recipe's layout at out, unless it is there.
func build(ctx context.Context, r recipe, out string, force bool) error {
	if !force && r.builtIn(out) {
		fmt.Printf("template image: %s is up to date (recipe %s)\n", out, r.hash())
		return nil
	}
	if os.Geteuid() != 0 {
		return errors.New("building an image needs root (packages install in a chroot); run it as root")
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(out), ".image-")
	if err != nil {
		return err
	}
	t := tree{root: filepath.Join(work, "rootfs"), began: time.Now()}
	defer func() {
		for _, at := range []string{"proc", "sys", "dev/pts", "dev/shm", "dev"} { // of a debootstrap that was cut short
			_ = unix.Unmount(filepath.Join(t.root, at), unix.MNT_DETACH)
		}
		os.RemoveAll(work)
	}()
	if err := t.install(ctx, r, work, filepath.Join(filepath.Dir(out), "default")); err != nil {
		return err
	}
	if err := clean(t.root); err != nil {
		return fmt.Errorf("cleaning the root file system: %w", err)
	}
	fmt.Println("template image: packing")
	digest, err := pack(r, t, filepath.Join(work, "layout"))
	if err != nil {
		return err
	}
	if err := replace(filepath.Join(work, "layout"), out); err != nil {
		return err
	}
	fmt.Printf("template image: %s built in %s (%s)\n", out, time.Since(t.began).Round(time.Second), digest)
	return nil
}

// install makes the root file system: from nothing, or over the base in baseDir.
func (t *tree) install(ctx context.Context, r recipe, work, baseDir string) error {
	if r.Base == nil {
		suite, err := hostSuite(ctx)
		if err != nil {
			return err
		}
		fmt.Printf("template image: installing %d packages of %s (about 2 minutes)\n", len(r.Packages), suite.Codename)
		return bootstrap(ctx, r, suite, t.root)
	}
	if err := unpack(ctx, baseDir, t.root); err != nil {
		return fmt.Errorf("unpacking the base: %w", err)
	}
	var err error
	if t.base, err = open(baseDir); err != nil {
		return err
	}
	if t.marks, err = marks(t.root); err != nil {
		return err
	}
	fmt.Printf("template image: installing %s (minutes)\n", strings.Join(r.Packages, ", "))
	return extend(ctx, r, t.root, work)
}

// replace puts a finished layout in place of an older one.
func replace(layout, out string) error {
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	return os.Rename(layout, out)
}
