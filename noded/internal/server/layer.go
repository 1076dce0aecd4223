package server

import (
	"context"
	"net/http"
	"strings"

	"s0.run/internal/errdefs"
	"s0.run/internal/nodeapi"
	"s0.run/internal/sandbox"
	"s0.run/noded/internal/layer"
)

// Layers reads what a sandbox has changed in its root filesystem.
type Layers interface {
	Open(ctx context.Context, id sandbox.ID) (*layer.Layer, error)
}

// layer answers with an image's layer of what a sandbox has changed. When the
// answer begins, the sandbox was read; one that breaks off is not whole.
func (s *Server) layer(w http.ResponseWriter, r *http.Request) {
	l, err := s.openLayer(r)
	if err != nil {
		s.cfg.Log.Warn("a sandbox's layer can't be read", "path", r.URL.Path, "error", err)
		s.refuse(w, err)
		return
	}
	defer l.Close()
	w.Header().Set(nodeapi.LayerImageHeader, l.Image)
	w.Header().Set("Content-Type", "application/x-tar")
	w.WriteHeader(http.StatusOK)
	if http.NewResponseController(w).Flush() != nil {
		return
	}
	if _, err := l.WriteTo(w); err != nil {
		panic(http.ErrAbortHandler)
	}
}

func (s *Server) openLayer(r *http.Request) (*layer.Layer, error) {
	id, err := sandbox.ParseID(strings.TrimPrefix(r.URL.Path, nodeapi.LayerPrefix))
	if err != nil || r.Method != http.MethodGet {
		return nil, errdefs.New(errdefs.NotFound, "not found")
	}
	gen, err := generation(r.Header.Get(nodeapi.GenerationHeader))
	if err != nil {
		return nil, err
	}
	if _, err := s.cfg.Lifecycle.Proc(id, gen); err != nil { // it must be one that can be used now
		return nil, err
	}
	if s.cfg.Layers == nil {
		return nil, errdefs.New(errdefs.Unprocessable, "this node runs no real sandboxes")
	}
	return s.cfg.Layers.Open(r.Context(), id)
}
