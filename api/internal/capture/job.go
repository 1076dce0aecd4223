package capture

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/stream"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"s0.run/api/internal/images"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/imageref"
	"s0.run/internal/nodeapi"
	"s0.run/internal/publicnet"
)

// dialTimeout bounds one connection to a registry that nobody vouches for.
const dialTimeout = 30 * time.Second

// maxLayers is how many layers an image may have: more than an overlay can stack
// is of no use.
const maxLayers = 100

// job is one capture under way.
type job struct {
	*Capturer
	template store.Template
	sandbox  store.Sandbox
	prefix   string // of the team's images

	mu    sync.Mutex
	stage string
}

// enter begins a stage.
func (j *job) enter(ctx context.Context, stage string) error {
	j.mu.Lock()
	j.stage = stage
	j.mu.Unlock()
	return j.cfg.Store.RenewCapture(ctx, j.template.ID, stage, lease)
}

// renew keeps the lease until ctx ends. A capture that is over is given up.
func (j *job) renew(ctx context.Context, give context.CancelCauseFunc) {
	tick := time.NewTicker(renewal)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		j.mu.Lock()
		stage := j.stage
		j.mu.Unlock()
		if err := j.cfg.Store.RenewCapture(ctx, j.template.ID, stage, lease); errdefs.Is(err, errdefs.Conflict) {
			give(err)
			return
		}
	}
}

// capture reads the sandbox and pushes the image; it returns its reference.
func (j *job) capture(ctx context.Context) (string, error) {
	layer, base, err := j.read(ctx)
	if err != nil {
		return "", err
	}
	defer layer.Close()
	if err := j.enter(ctx, store.StagePublishing); err != nil {
		return "", err
	}
	creds, _, err := j.cfg.Registry.ServerCredentials(ctx, j.sandbox.TeamID)
	if err != nil {
		return "", err
	}
	return j.publish(ctx, creds, base, layer)
}

// read asks the sandbox's node for the layer; when the answer begins, the sandbox
// was read.
func (j *job) read(ctx context.Context) (layer io.ReadCloser, base string, err error) {
	client, err := j.cfg.Nodes.Data(j.sandbox.Node)
	if err != nil {
		return nil, "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node"+nodeapi.LayerPrefix+string(j.sandbox.ID), nil)
	if err != nil {
		return nil, "", err
	}
	req.Header.Set(nodeapi.GenerationHeader, strconv.FormatUint(uint64(j.sandbox.Generation), 10))
	resp, err := client.Do(req)
	if err != nil {
		return nil, "", errdefs.New(errdefs.Unavailable, "the sandbox's node can't be reached").WithCause(err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return nil, "", refusal(resp)
	}
	return resp.Body, resp.Header.Get(nodeapi.LayerImageHeader), nil
}

// publish pushes the base with the layer over it, as it comes. Nothing tags the
// image: it is kept for as long as a template names it, and no longer.
func (j *job) publish(ctx context.Context, creds images.Credentials, base string, layer io.ReadCloser) (string, error) {
	to, err := name.NewRepository(creds.Push+"/"+j.prefix+"/"+j.template.TemplateID, insecure(creds.Push, creds.Push)...)
	if err != nil {
		return "", err
	}
	below, err := j.below(ctx, creds, base)
	if err != nil {
		return "", err
	}
	img, top, err := over(below, layer)
	if err != nil {
		return "", err
	}
	options := []remote.Option{remote.WithContext(ctx), remote.WithAuth(login(creds)), remote.WithJobs(1)}
	if err := remote.WriteLayer(to, top, options...); err != nil {
		return "", errdefs.New(errdefs.Unavailable, "the image could not be pushed").WithCause(err)
	}
	digest, err := img.Digest() // known now that the layer has passed
	if err != nil {
		return "", err
	}
	if err := remote.Write(to.Digest(digest.String()), img, options...); err != nil {
		return "", errdefs.New(errdefs.Unavailable, "the image could not be pushed").WithCause(err)
	}
	return creds.Pull + "/" + j.prefix + "/" + j.template.TemplateID + "@" + digest.String(), nil
}

func login(c images.Credentials) authn.Authenticator {
	return authn.FromConfig(authn.AuthConfig{Username: c.User, Password: c.Password})
}

// below is the image that the sandbox was started from. Its registry may be anyone's.
func (j *job) below(ctx context.Context, creds images.Credentials, base string) (v1.Image, error) {
	from, err := name.NewDigest(base, insecure(base, creds.Pull)...)
	ref, rerr := imageref.Parse(base)
	if err = cmp.Or(err, rerr); err != nil {
		return nil, fmt.Errorf("the image of sandbox %s: %w", j.sandbox.ID, err)
	}
	options := []remote.Option{remote.WithContext(ctx)}
	switch {
	case ref.Registry == creds.Pull:
		options = append(options, remote.WithAuth(login(creds)))
	case !j.cfg.Trusted.Lists(ref.Registry):
		options = append(options, remote.WithTransport(j.public))
	}
	img, err := remote.Image(from, options...)
	if err != nil {
		return nil, errdefs.New(errdefs.Unavailable, "the image of the sandbox can't be read from its registry any more").WithCause(err)
	}
	return img, nil
}

// publicOnly reaches the public internet and nothing else, and by no proxy, which
// would look names up for us.
func publicOnly() *http.Transport {
	t := remote.DefaultTransport.(*http.Transport).Clone()
	t.Proxy, t.DialContext = nil, (&net.Dialer{Timeout: dialTimeout, ControlContext: publicnet.Control}).DialContext
	return t
}

// insecure allows plain HTTP to the machine's own registry.
func insecure(ref, own string) []name.Option {
	if ref == own || strings.HasPrefix(ref, own+"/") {
		return []name.Option{name.Insecure}
	}
	return nil
}

// over is the image with one layer more, top.
func over(below v1.Image, layer io.ReadCloser) (img v1.Image, top v1.Layer, err error) {
	layers, err := below.Layers()
	if err != nil {
		return nil, nil, err
	}
	if len(layers) >= maxLayers {
		return nil, nil, errdefs.New(errdefs.Unprocessable, "the sandbox's image has %d layers already: build one anew from a shorter base", len(layers))
	}
	media, err := below.MediaType()
	if err != nil {
		return nil, nil, err
	}
	kind := types.OCILayer
	if media == types.DockerManifestSchema2 {
		kind = types.DockerLayer
	}
	top = stream.NewLayer(layer, stream.WithMediaType(kind))
	img, err = mutate.Append(below, mutate.Addendum{
		Layer:   top,
		History: v1.History{CreatedBy: "s0 template create --from-sandbox", Created: v1.Time{Time: time.Now().UTC()}},
	})
	return img, top, err
}

// refusals are the statuses with which a node says that it is not its fault.
var refusals = map[int]errdefs.Kind{
	http.StatusNotFound: errdefs.NotFound, http.StatusRequestTimeout: errdefs.Timeout, http.StatusConflict: errdefs.Conflict,
	http.StatusRequestEntityTooLarge: errdefs.TooLarge, http.StatusUnprocessableEntity: errdefs.Unprocessable, http.StatusTooManyRequests: errdefs.Exhausted,
}

const maxRefusalBytes = 64 << 10

// refusal reads why a node does not give the layer.
func refusal(resp *http.Response) error {
	var said struct {
		Message string `json:"message"`
	}
	kind, known := refusals[resp.StatusCode]
	err := json.NewDecoder(io.LimitReader(resp.Body, maxRefusalBytes)).Decode(&said)
	if err != nil || !known {
		return errdefs.New(errdefs.Unavailable, "the sandbox's files could not be read").
			WithCause(fmt.Errorf("the node answered status %d: %s", resp.StatusCode, nodeapi.Text(said.Message)))
	}
	return errdefs.New(kind, "%s", nodeapi.Text(said.Message))
}
