// Package images decides which images templates may name, and which bytes they
// mean by it.
//
// A reference names a host that nodes will speak to: it must be the machine's own
// registry, there below the team's prefix or a public one, or a registry that the
// operator lets images come from. A tag is asked for once, by a node, and becomes
// a digest; what could not be asked for then is asked for again while [Keeper.Run]
// runs. The same loop tells the registry which images are in use. The package
// stores nothing itself.
package images

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/nodes"
	"s0.run/api/internal/placement"
	"s0.run/api/internal/store"
	"s0.run/api/internal/templates"
	"s0.run/internal/errdefs"
	"s0.run/internal/imageref"
	"s0.run/internal/regauth"
)

const (
	// grantLife is how long a team's credential works: a push of a large image over
	// a slow line, and not much more, for it can't be taken back.
	grantLife = 2 * time.Hour
	// serverGrantLife is of the credentials that this server makes for itself.
	serverGrantLife = 10 * time.Minute
	// resolveTimeout bounds the question for a digest while a client waits.
	resolveTimeout = 10 * time.Second
)

// Registry is the machine's own registry, as this server knows it.
type Registry struct {
	Pull string // host:port that nodes pull from, and templates name
	Push string // where clients push to; the same place
	Key  regauth.Key
}

// Config names what decides. A nil Registry: there is none.
type Config struct {
	Store    *store.Store
	Registry *Registry
	Allowed  imageref.Registries
	Table    *placement.Table
	Nodes    *nodes.Set
	Catalog  *templates.Catalog
	Changed  func(context.Context) // called after a pin was stored here
	Log      *slog.Logger
}

// Keeper is safe for concurrent use.
type Keeper struct {
	cfg    Config
	kicked chan struct{}
	now    func() time.Time
}

// New makes a Keeper.
func New(cfg Config) *Keeper { return &Keeper{cfg: cfg, kicked: make(chan struct{}, 1), now: time.Now} }

// Credentials are what a client pushes with.
type Credentials struct {
	Push, Pull     string // registries
	User, Password string
	Expires        time.Time
}

// errNoRegistry is the answer where no registry is configured.
var errNoRegistry = errdefs.New(errdefs.Unavailable, "this server has no image registry")

// Credentials makes a team's credentials. A target, if one is named, must be an
// image that they can push.
func (k *Keeper) Credentials(ctx context.Context, team uuid.UUID, target string) (Credentials, error) {
	reg := k.cfg.Registry
	if reg == nil {
		return Credentials{}, errNoRegistry
	}
	prefix, err := k.cfg.Store.RegistryPrefix(ctx, team)
	if err != nil {
		return Credentials{}, err
	}
	if target != "" {
		if err := k.checkTarget(prefix, target); err != nil {
			return Credentials{}, err
		}
	}
	expires := k.now().Add(grantLife).UTC().Truncate(time.Second)
	return Credentials{
		Push: reg.Push, Pull: reg.Pull, User: prefix, Password: reg.Key.Sign(regauth.Team(prefix, expires)), Expires: expires,
	}, nil
}

// checkTarget refuses a target that the team can't push. A plain name, without a
// folder, stands for one below the team's prefix.
func (k *Keeper) checkTarget(prefix, target string) error {
	for _, host := range []string{k.cfg.Registry.Push, k.cfg.Registry.Pull} {
		target = strings.TrimPrefix(target, host+"/")
	}
	// As an image of some registry it is read like any other.
	ref, err := imageref.Parse("registry.invalid/" + target)
	switch {
	case err != nil:
		return errdefs.New(errdefs.InvalidArgument, "targetImage: want name[:tag] or %s/name[:tag]", prefix)
	case strings.Contains(ref.Repository, "/") && !regauth.Below(ref.Repository, prefix):
		return errdefs.New(errdefs.PermissionDenied, "targetImage: your team's images lie below %s/", prefix)
	}
	return nil
}

// ServerCredentials are this server's own, to push an image that it makes for a
// team, below prefix. They work for a few minutes.
func (k *Keeper) ServerCredentials(ctx context.Context, team uuid.UUID) (c Credentials, prefix string, err error) {
	reg := k.cfg.Registry
	if reg == nil {
		return Credentials{}, "", errNoRegistry
	}
	if prefix, err = k.cfg.Store.RegistryPrefix(ctx, team); err != nil {
		return Credentials{}, "", err
	}
	grant := regauth.Team(prefix, k.now().Add(serverGrantLife))
	return Credentials{Push: reg.Pull, Pull: reg.Pull, User: grant.User, Password: reg.Key.Sign(grant), Expires: grant.Expires}, prefix, nil
}

// Admit says whether a team's template may name an image, and which digest it has
// now; the digest is empty when it can't be asked for at the moment, or the
// reference names one.
func (k *Keeper) Admit(ctx context.Context, team uuid.UUID, image string) (digest string, err error) {
	ref, err := imageref.Parse(image)
	if err != nil {
		return "", errdefs.New(errdefs.InvalidArgument, "spec.mainContainer.image: %v", err)
	}
	if err := k.mayName(ctx, team, ref); err != nil {
		return "", err
	}
	if ref.Digest != "" {
		return "", nil
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	digest, err = k.resolve(ctx, image)
	if err != nil {
		k.cfg.Log.Info("an image can't be pinned yet", "image", image, "err", err)
		return "", nil
	}
	return digest, nil
}

// mayName refuses an image that is another team's, and a registry that is nobody's
// business here.
func (k *Keeper) mayName(ctx context.Context, team uuid.UUID, ref imageref.Ref) error {
	if reg := k.cfg.Registry; reg != nil && (ref.Registry == reg.Pull || ref.Registry == reg.Push) {
		prefix, err := k.cfg.Store.RegistryPrefix(ctx, team)
		if err == nil && !regauth.Below(ref.Repository, prefix) && !regauth.Below(ref.Repository, regauth.PublicPrefix) {
			err = errdefs.New(errdefs.PermissionDenied, "spec.mainContainer.image: your team's images lie below %s/%s/", reg.Pull, prefix)
		}
		return err
	}
	if !k.cfg.Allowed.Allows(ref.Registry) {
		return errdefs.New(errdefs.PermissionDenied,
			"spec.mainContainer.image: images may not come from %s; the operator allows %s", ref.Registry, strings.Join(k.cfg.Allowed, ", "))
	}
	return nil
}

// Pin stores the digest of a template's image.
func (k *Keeper) Pin(ctx context.Context, t store.Template, image, digest string) error {
	return k.cfg.Store.PinTemplate(ctx, t.TeamID, t.ID, image, digest)
}
