package runsc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"s0.run/internal/shimapi"
)

// The files of an image, in the order in which the sentry takes them, by the names under which
// `runsc restore` and `runsc create --fs-restore-image-path` look for them.
var (
	imageFiles      = []string{"checkpoint.img", "pages_meta.img", "pages.img"}
	filesImageFiles = []string{shimapi.FilesImage, "multitar.img", "pages_meta.img", "pages.img"}
)

// saveArg is what gVisor's control.SaveOpts has of it.
type saveArg struct {
	Metadata      map[string]string `json:"metadata"`
	HavePagesFile bool              `json:"have_pages_file"`
	Resume        bool              // without it the sandbox ends, also when it could not be saved
}

// saveFilesArg is what gVisor's boot.FSSaveArgs has of it. What it saves goes on.
type saveFilesArg struct {
	Paths []savedPath `json:"paths"`
}

type savedPath struct {
	Path string `json:"path"`
}

// Checkpoint writes all processes, memory and files into a directory that exists. The
// sandbox goes on, also when that fails.
func (r *Runsc) Checkpoint(ctx context.Context, image string) error {
	arg := saveArg{Metadata: map[string]string{"compression": "none"}, HavePagesFile: true, Resume: true}
	return r.save(ctx, controlCall{saveMethod, arg}, image, imageFiles)
}

// CheckpointFiles writes the root filesystem's writable layer alone.
func (r *Runsc) CheckpointFiles(ctx context.Context, image string) error {
	arg := saveFilesArg{Paths: []savedPath{{"/"}}}
	return r.save(ctx, controlCall{saveFilesMethod, arg}, image, filesImageFiles)
}

// save has the sentry write into new files. One whose caller has given up goes on writing: who
// wants the sandbox back asks for that, and waits for the answer.
func (r *Runsc) save(ctx context.Context, what controlCall, dir string, names []string) error {
	ctx, cancel := context.WithTimeout(ctx, imageTimeout)
	defer cancel()
	if err := r.saveInto(ctx, what, dir, names); err != nil {
		return fmt.Errorf("saving %s: %w", r.id, errors.Join(ctx.Err(), err))
	}
	return nil
}

func (r *Runsc) saveInto(ctx context.Context, what controlCall, dir string, names []string) error {
	conn, err := r.dialControl(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })() // ends the wait for the answer
	files, err := newFiles(dir, names)
	defer closeFiles(files)
	if err != nil {
		return err
	}
	return call(conn, what, files...)
}

func newFiles(dir string, names []string) (files []*os.File, err error) {
	for _, name := range names {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
