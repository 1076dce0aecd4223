package volumes

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sealed"
)

// Bucket is a bucket that is a volume, without what opens it.
type Bucket struct {
	Provider string `json:"provider,omitempty"`
	Bucket   string `json:"bucket"`
	Prefix   string `json:"prefix,omitempty"`
	Region   string `json:"region,omitempty"`
	Endpoint string `json:"endpoint_url,omitempty"`
}

// Secret is what opens a bucket. It shows itself to nobody.
type Secret = sealed.Secret

// secretKind is the kind of a bucket's credential, secretVersion its only version.
const secretKind, secretVersion = "s3", 1

// BucketOf reads the bucket of a volume; nil: it has none.
func BucketOf(v store.Volume) (*Bucket, error) {
	if v.Bucket == nil {
		return nil, nil
	}
	b := new(Bucket)
	if err := json.Unmarshal(v.Bucket, b); err != nil {
		return nil, fmt.Errorf("reading the bucket of volume %s: %w", v.ID, err)
	}
	return b, nil
}

// toWire is what a node is told of a volume.
func toWire(v store.Volume) (*nodeapi.Volume, error) {
	out := &nodeapi.Volume{
		Id: v.ID.String(), Team: v.TeamID.String(), Epoch: uint64(v.Epoch), Backend: v.Backend,
		Uid: uint32(v.UID), Gid: uint32(v.GID), LimitBytes: v.LimitBytes,
	}
	b, err := BucketOf(v)
	if err != nil || b == nil {
		return out, err
	}
	out.S3 = &nodeapi.S3Bucket{
		Provider: b.Provider, Bucket: b.Bucket, Prefix: b.Prefix, Region: b.Region, Endpoint: b.Endpoint,
		Credential: nodeapi.CredentialsToWire([]sealed.Credential{{
			Source: out.Id, Kind: secretKind, Version: secretVersion, Blob: v.Secret(),
		}})[0],
	}
	return out, nil
}

func mountToWire(h store.Held) (*nodeapi.Mount, error) {
	v, err := toWire(h.Volume)
	return &nodeapi.Mount{Id: h.Mount.ID.String(), Volume: v, MountPoint: h.Mount.Point, ReadOnly: h.Mount.ReadOnly}, err
}

func mountsToWire(held []store.Held) ([]*nodeapi.Mount, error) {
	out := make([]*nodeapi.Mount, len(held))
	for i, h := range held {
		var err error
		if out[i], err = mountToWire(h); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Refused is what a tenant may know of a node's refusal that is about volumes; nil: it is
// about something else.
func Refused(err error) error {
	refused, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return nil
	}
	switch refused.Meta().Get(nodeapi.CodeHeader) {
	case nodeapi.CodeVolumeBusy:
		return errdefs.New(errdefs.Conflict, "%s", nodeapi.Text(refused.Message())).WithCause(err)
	case nodeapi.CodeVolumeFull:
		return store.VolumesFull().WithCause(err)
	case nodeapi.CodeVolumeWritten:
		return errdefs.New(errdefs.Unavailable, "%s", nodeapi.Text(refused.Message())).WithRetryAfter(time.Second).WithCause(err)
	case nodeapi.CodeStaleEpoch:
		return errMoving.WithCause(err)
	}
	if refused.Code() == connect.CodeUnimplemented {
		return errUnavailable.WithCause(err)
	}
	return nil
}

// failure says what a tenant may know of a node's failure. What the node says of a bad
// argument, such as a bucket that can't be opened, is for him.
func failure(err error, failed string) error {
	if e := Refused(err); e != nil {
		return e
	}
	switch connect.CodeOf(err) {
	case connect.CodeInvalidArgument:
		refused, _ := errors.AsType[*connect.Error](err)
		return errdefs.New(errdefs.InvalidArgument, "%s: %s", failed, nodeapi.Text(refused.Message())).WithCause(err)
	case connect.CodeFailedPrecondition, connect.CodeAlreadyExists, connect.CodeNotFound:
		return errdefs.New(errdefs.Conflict, "%s in its present state", failed).WithCause(err)
	case connect.CodeResourceExhausted:
		return errdefs.New(errdefs.Exhausted, "%s: its node is busy", failed).WithRetryAfter(time.Second).WithCause(err)
	case connect.CodeDeadlineExceeded:
		return errdefs.New(errdefs.GatewayTimeout, "%s in time", failed).WithCause(err)
	}
	return errdefs.New(errdefs.Unavailable, "%s", failed).WithRetryAfter(time.Second).WithCause(err)
}
