package dataplane

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/procapi"
)

// Volumes finds the files of volumes.
type Volumes interface {
	// Reach says where a volume's files are, and what names the volume to that node.
	Reach(ctx context.Context, team, id uuid.UUID) (node string, v *nodeapi.Volume, err error)
}

// streamVolume is Stream for a volume: its node has the calls of procd's files for it.
func (p *Plane) streamVolume(ctx context.Context, to Target, req Request) (*http.Response, error) {
	node, v, err := p.cfg.Volumes.Reach(ctx, to.Team, to.Volume)
	if err != nil {
		return nil, err
	}
	return p.StreamAt(ctx, node, v, req)
}

// StreamAt is Stream for a volume that a node is known to have.
func (p *Plane) StreamAt(ctx context.Context, node string, v *nodeapi.Volume, req Request) (*http.Response, error) {
	b, err := proto.Marshal(v)
	if err != nil {
		return nil, err
	}
	u := url.URL{Scheme: "http", Host: "node", Path: nodeapi.VolumePrefix + v.GetId() + req.Path, RawQuery: req.Query.Encode()}
	name := http.Header{nodeapi.VolumeHeader: {base64.RawURLEncoding.EncodeToString(b)}}
	resp, err := p.exchange(ctx, node, req, u, name)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, volumeRefusal(ctx, resp)
}

// volumeRefusal turns an answer that is no success into an error, which has the gateway's
// codes: procd's are of sandboxes.
func volumeRefusal(ctx context.Context, resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxRefusalBytes))
	if err != nil {
		return unanswered(ctx, err)
	}
	var said procapi.Error
	if err := json.Unmarshal(b, &said); err != nil {
		return errNonsense.WithCause(fmt.Errorf("status %d: %w", resp.StatusCode, err))
	}
	if kind, ok := procdCodes[said.Code]; ok && kind.HTTPStatus() == resp.StatusCode {
		return errdefs.New(kind, "%s", clean(said.Message))
	}
	cause := fmt.Errorf("status %d, code %.40q: %s", resp.StatusCode, said.Code, clean(said.Message))
	switch {
	case said.Code == nodeapi.CodeVolumeFull:
		return store.VolumesFull().WithCause(cause)
	case said.Code == nodeapi.CodeVolumeBusy:
		return errdefs.New(errdefs.Conflict, "%s", clean(said.Message)).WithCause(cause)
	case resp.StatusCode == http.StatusNotImplemented:
		return errdefs.New(errdefs.Unavailable, "volumes are unavailable in this deployment").WithCause(cause)
	case resp.StatusCode == http.StatusGatewayTimeout:
		return errdefs.New(errdefs.GatewayTimeout, "the volume did not answer in time").WithCause(cause)
	case resp.StatusCode == http.StatusServiceUnavailable, said.Code == nodeapi.CodeStaleEpoch:
		return errdefs.New(errdefs.Unavailable, "the volume can't be reached at the moment").WithRetryAfter(time.Second).WithCause(cause)
	}
	return errNonsense.WithCause(cause)
}
