package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"s0.run/api/internal/store"
	"s0.run/api/internal/templates"
	"s0.run/internal/errdefs"
	"s0.run/internal/imageref"
	"s0.run/internal/nodeapi"
	"s0.run/internal/regauth"
)

const (
	// pinInterval is how often there is a look for unpinned images besides when a node
	// comes, the longest an image waits that was pushed soon after its template. pinTimeout
	// bounds one.
	pinInterval, pinTimeout = 30 * time.Second, 15 * time.Second
	// maxPinPause is the longest time between two questions for one image.
	maxPinPause = 10 * time.Minute
	// maxPins bounds one round: tenants can make many templates that nobody can pin.
	maxPins = 20
	// tellInterval is how often the registry is told what is in use.
	tellInterval, tellTimeout = 10 * time.Minute, 30 * time.Second
)

// Kick says that there is a node to ask. It never blocks.
func (k *Keeper) Kick() {
	select {
	case k.kicked <- struct{}{}:
	default: // the round to come asks it, too
	}
}

// Run pins what could not be pinned, and tells the registry what is in use, until
// ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	pin, tell := time.NewTicker(pinInterval), time.NewTicker(tellInterval)
	defer pin.Stop()
	defer tell.Stop()
	p := pins{Keeper: k, vain: map[pinKey]inVain{}}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.kicked:
			p.round(ctx)
		case <-pin.C:
			p.round(ctx)
		case <-tell.C:
			if err := k.TellRegistry(ctx); err != nil && ctx.Err() == nil {
				k.cfg.Log.Warn("could not tell the registry which images are in use", "err", err)
			}
		}
	}
}

// pins is what [Keeper.Run] remembers of images that it could not pin.
type pins struct {
	*Keeper
	next int // which of the due ones is the next one's turn
	vain map[pinKey]inVain
}

// pinKey is a template as it was when its image was asked for.
type pinKey struct {
	id      uuid.UUID
	updated time.Time
}

// inVain is when an image was asked for without an answer, first and last.
type inVain struct{ first, last time.Time }

// again is when to ask the next time: soon for what may be on its way, the more seldom
// the longer it has not come. A builtin image that nobody has built never does.
func (v inVain) again() time.Time { return v.last.Add(min(v.last.Sub(v.first)/4, maxPinPause)) }

// round tries the templates without a digest that are due, in turns. While there is no
// node to ask, none was asked for in vain.
func (p *pins) round(ctx context.Context) {
	if len(p.cfg.Table.Synced()) == 0 {
		return
	}
	due := p.due()
	pinned := false
	for n := range min(len(due), maxPins) {
		t := due[(p.next+n)%len(due)]
		if p.pin(ctx, t) {
			pinned = true
			continue
		}
		v := p.vain[keyOf(t)]
		if v.last = p.now(); v.first.IsZero() {
			v.first = v.last
		}
		p.vain[keyOf(t)] = v
	}
	if pinned {
		p.cfg.Changed(ctx)
	}
	p.next += maxPins
}

// due lists the templates without a digest whose time has come, and forgets the others
// that there were.
func (p *pins) due() (due []*templates.Template) {
	known := map[pinKey]inVain{}
	now := p.now()
	for _, t := range p.cfg.Catalog.All() {
		ref, err := imageref.Parse(t.Spec.MainContainer.Image)
		if err != nil || ref.Digest != "" || t.Row.Digest != "" {
			continue
		}
		v, asked := p.vain[keyOf(t)]
		if asked {
			known[keyOf(t)] = v
		}
		if !v.again().After(now) {
			due = append(due, t)
		}
	}
	p.vain = known
	return due
}

func keyOf(t *templates.Template) pinKey { return pinKey{t.Row.ID, t.Row.UpdatedAt} }

func (k *Keeper) pin(ctx context.Context, t *templates.Template) bool {
	ctx, cancel := context.WithTimeout(ctx, pinTimeout)
	defer cancel()
	image := t.Spec.MainContainer.Image
	digest, err := k.resolve(ctx, image)
	if err == nil {
		err = k.Pin(ctx, t.Row, image, digest)
	}
	if err != nil {
		k.cfg.Log.Debug("an image can't be pinned yet", "template", t.Row.TemplateID, "err", err)
		return false
	}
	k.cfg.Log.Info("pinned an image", "template", t.Row.TemplateID, "digest", digest)
	return true
}

// resolve asks a node: nodes are who reaches registries.
func (k *Keeper) resolve(ctx context.Context, image string) (string, error) {
	err := error(errdefs.New(errdefs.Unavailable, "no node can ask for the image now"))
	for _, n := range k.cfg.Table.Synced() {
		rpc, rerr := k.cfg.Nodes.RPC(n.Name)
		if rerr != nil {
			err = rerr
			continue
		}
		resp, rerr := rpc.ResolveImage(ctx, &nodeapi.ResolveImageRequest{Image: image})
		if rerr == nil && !imageref.ValidDigest(resp.GetDigest()) {
			rerr = errdefs.New(errdefs.BadGateway, "node %s answers digest %.80q", n.Name, resp.GetDigest())
		}
		if rerr == nil {
			return resp.GetDigest(), nil
		}
		err = rerr
		if connect.CodeOf(rerr) != connect.CodeUnavailable {
			break // the registry has answered
		}
	}
	return "", err
}

// TellRegistry tells the registry every image that a template names. The registry
// collects nothing that it was not told about twice, a long while apart.
func (k *Keeper) TellRegistry(ctx context.Context) error {
	reg := k.cfg.Registry
	if reg == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	used, err := k.cfg.Store.UsedImages(ctx)
	if err != nil {
		return err
	}
	body, err := json.Marshal(regauth.InUse{Images: ofRegistry(reg, used)})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://"+reg.Pull+regauth.InUsePath, bytes.NewReader(body))
	if err != nil {
		return err
	}
	grant := regauth.Server(k.now().Add(serverGrantLife))
	req.SetBasicAuth(grant.User, reg.Key.Sign(grant))
	resp, err := (&http.Client{CheckRedirect: refuseRedirect}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("the registry answers %s: %s", resp.Status, text)
	}
	return nil
}

func refuseRedirect(*http.Request, []*http.Request) error {
	return errors.New("the registry redirects")
}

// ofRegistry keeps the registry's own: by digest where one is known, and by tag.
func ofRegistry(reg *Registry, used []store.ImageRef) []regauth.UsedImage {
	list := []regauth.UsedImage{}
	for _, u := range used {
		ref, err := imageref.Parse(u.Image)
		if err != nil || ref.Registry != reg.Pull && ref.Registry != reg.Push {
			continue
		}
		if u.Digest != "" {
			ref.Digest = u.Digest
		}
		list = append(list, regauth.UsedImage{Repository: ref.Repository, Tag: ref.Tag, Digest: ref.Digest})
	}
	return list
}
