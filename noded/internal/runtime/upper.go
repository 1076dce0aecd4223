package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	"s0.run/internal/sandbox"
)

// maxComplaint bounds what is kept of what runsc says on its standard error.
const maxComplaint = 4 << 10

// Image is the image that a container was started from, by digest.
func (r *Runtime) Image(ctx context.Context, id sandbox.ID) (string, error) {
	c, err := r.client.ContainerService().Get(ctx, string(id))
	if err != nil {
		return "", fmt.Errorf("container %s: %w", id, err)
	}
	return c.Image, nil
}

// Upper writes the upper layer of a running gVisor sandbox's root filesystem, as
// a tar of runsc's: hidden names are character devices 0:0. The sandbox's kernel
// writes it into a pipe of ours; it gets no other file.
func (r *Runtime) Upper(ctx context.Context, id sandbox.ID, w io.Writer) error {
	from, to, err := os.Pipe()
	if err != nil {
		return err
	}
	defer from.Close()
	// Not to its standard output, where it also talks.
	cmd := exec.CommandContext(ctx, r.cfg.Runsc, "--root="+r.cfg.RunscRoot, "tar", "rootfs-upper", "-file=/dev/fd/3", string(id))
	cmd.ExtraFiles = []*os.File{to}
	complaint := &head{max: maxComplaint}
	cmd.Stderr = complaint
	err = cmd.Start()
	to.Close()
	if err != nil {
		return fmt.Errorf("runsc tar: %w", err)
	}
	_, copied := io.Copy(w, from)
	from.Close() // a reader that gave up must not keep it writing
	if err := cmd.Wait(); err != nil {
		return errors.Join(copied, fmt.Errorf("runsc tar: %w: %s", err, complaint))
	}
	return copied
}

// head keeps the first bytes of what is written.
type head struct {
	buf bytes.Buffer
	max int
}

func (h *head) Write(p []byte) (int, error) {
	h.buf.Write(p[:min(len(p), h.max-h.buf.Len())])
	return len(p), nil
}

func (h *head) String() string { return h.buf.String() }
