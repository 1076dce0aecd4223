package machine

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/internal/regauth"
	"s0.run/registry"
)

// startRegistry starts the machine's registry and returns the references of the
// template images in it, by template and by digest: another build of an image is
// another spec, so its pool drains and refills.
func (s *server) startRegistry(ctx context.Context) (map[string]string, error) {
	key, err := regauth.LoadKey(s.cfg.registryKey())
	if err != nil {
		return nil, err
	}
	if err := s.writeNodeAuth(key); err != nil {
		return nil, fmt.Errorf("writing the node's registry credential: %w", err)
	}
	reg, err := registry.New(registry.Config{
		Dir: s.cfg.data("registry"), Key: key, Room: roomOn(s.cfg.DataDir), Log: s.log.With("daemon", "registry"),
	})
	if err != nil {
		return nil, err
	}
	images, l, err := s.fillRegistry(reg)
	if err != nil {
		reg.Close()
		return nil, err
	}
	s.launch(ctx, "registry", func(ctx context.Context) error {
		defer reg.Close()
		return reg.Serve(ctx, l)
	})
	s.mu.Lock()
	s.registry = reg
	s.mu.Unlock()
	s.say("  registry     %s", strings.Join(append([]string{"serves"}, slices.Sorted(maps.Keys(images))...), " "))
	return images, nil
}

func (s *server) fillRegistry(reg *registry.Registry) (images map[string]string, l net.Listener, err error) {
	images = map[string]string{}
	if !s.cfg.localImage() {
		images[defaultImage] = s.cfg.DefaultImage
	} else {
		for name, dir := range s.cfg.imageDirs() {
			digest, err := reg.Load(dir, imageRepository(name), "latest")
			if err != nil {
				return nil, nil, err
			}
			images[name] = s.cfg.registryRef(name, digest)
		}
	}
	if l, err = net.Listen("tcp", s.cfg.RegistryListen); err != nil {
		return nil, nil, fmt.Errorf("local registry: %w", err)
	}
	return images, l, nil
}

// writeNodeAuth gives noded a credential of its own, which pulls everything and
// pushes nothing, where docker's tools look for theirs.
func (s *server) writeNodeAuth(key regauth.Key) error {
	grant := regauth.Node()
	auth := base64.StdEncoding.EncodeToString([]byte(grant.User + ":" + key.Sign(grant)))
	raw, err := json.Marshal(map[string]any{"auths": map[string]any{s.cfg.RegistryListen: map[string]string{"auth": auth}}})
	if err != nil {
		return err
	}
	aside := s.cfg.registryAuth() + ".new"
	if err := os.WriteFile(aside, raw, 0o600); err != nil {
		return err
	}
	return os.Rename(aside, s.cfg.registryAuth())
}

// maxUsed is how full, in percent, the disk may be for more images to be pushed:
// as full as for more sandboxes.
const maxUsed = 85

// roomOn says whether the disk that dir is on has room for more.
func roomOn(dir string) func() error {
	return func() error {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			return errdefs.New(errdefs.Unavailable, "the server can't tell how full its disk is").WithCause(err)
		}
		used := st.Blocks - st.Bfree
		if all := used + st.Bavail; all > 0 && used*100/all >= maxUsed {
			return errdefs.New(errdefs.Exhausted, "the server's disk is too full for more")
		}
		return nil
	}
}
