package objects

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// amazon is where buckets are that name no endpoint.
const amazon = "https://s3.amazonaws.com"

// bucket is a store in an S3 bucket, or below a prefix of one.
type bucket struct {
	core   minio.Core
	name   string
	prefix string // "" or ends with a slash
}

func openBucket(u *url.URL) (bucket, error) {
	q := u.Query()
	for name := range q {
		if name != "endpoint" && name != "region" {
			return bucket{}, fmt.Errorf("unknown parameter %q: want endpoint or region", name)
		}
	}
	raw := amazon
	if q.Has("endpoint") {
		raw = q.Get("endpoint")
	}
	endpoint, err := url.Parse(raw)
	if err != nil || endpoint.Host == "" || endpoint.Scheme != "https" && endpoint.Scheme != "http" || strings.Trim(endpoint.Path, "/") != "" {
		return bucket{}, errors.New("endpoint: want https://host:port")
	}
	transport, err := minio.DefaultTransport(endpoint.Scheme == "https")
	if err != nil {
		return bucket{}, err
	}
	lookup := minio.BucketLookupPath // what serves S3 by itself rarely has a name for each bucket
	if raw == amazon {
		lookup = minio.BucketLookupAuto
	}
	client, err := minio.New(endpoint.Host, &minio.Options{
		Creds:  credentials.NewChainCredentials([]credentials.Provider{&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}}),
		Secure: endpoint.Scheme == "https", Region: q.Get("region"), BucketLookup: lookup, Transport: transport,
		MaxRetries: 1, // insist tries again
	})
	if err != nil {
		return bucket{}, err
	}
	b := bucket{core: minio.Core{Client: client}, name: u.Host}
	if p := strings.Trim(u.Path, "/"); p != "" {
		b.prefix = p + "/"
	}
	return b, nil
}

func (b bucket) put(ctx context.Context, key string, data []byte) error {
	sum := md5.Sum(data) // the store refuses what was damaged on the way
	_, err := b.core.PutObject(ctx, b.name, b.prefix+key, bytes.NewReader(data), int64(len(data)),
		base64.StdEncoding.EncodeToString(sum[:]), "", minio.PutObjectOptions{ContentType: "application/octet-stream"})
	return remote(err)
}

func (b bucket) get(ctx context.Context, key string, limit int64) ([]byte, error) {
	r, info, _, err := b.core.GetObject(ctx, b.name, b.prefix+key, minio.GetObjectOptions{})
	if err != nil {
		return nil, remote(err)
	}
	defer r.Close()
	data, err := readAll(r, limit)
	if err == nil && info.Size >= 0 && int64(len(data)) != info.Size {
		err = io.ErrUnexpectedEOF
	}
	return data, remote(err)
}

func (b bucket) remove(ctx context.Context, key string) error {
	err := remote(b.core.RemoveObject(ctx, b.name, b.prefix+key, minio.RemoveObjectOptions{}))
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

func (b bucket) list(ctx context.Context, prefix string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		for info := range b.core.Client.ListObjectsIter(ctx, b.name, minio.ListObjectsOptions{Prefix: b.prefix + prefix, Recursive: true}) {
			if info.Err != nil {
				yield(Object{}, remote(info.Err))
				return
			}
			key, ours := strings.CutPrefix(info.Key, b.prefix)
			if ours && keys.MatchString(key) && !yield(Object{Key: key, Modified: info.LastModified}, nil) {
				return
			}
		}
	}
}

// remote says what a server's answer means. That a bucket is missing is no object's
// absence, which would be an answer.
func remote(err error) error {
	var answer minio.ErrorResponse
	if err == nil || !errors.As(err, &answer) {
		return err
	}
	switch {
	case answer.Code == minio.NoSuchKey:
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case answer.Code == minio.NoSuchBucket, answer.StatusCode == http.StatusForbidden, answer.StatusCode == http.StatusUnauthorized:
		return fmt.Errorf("%w: %w", ErrDenied, err)
	}
	return err
}
