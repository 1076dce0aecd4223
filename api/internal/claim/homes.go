package claim

import (
	"sync"

	"github.com/google/uuid"
)

// mostHomes bounds what is remembered; then it begins anew.
const mostHomes = 1 << 16

// homes are the nodes that had volumes last, as far as this replica knows: a guess, which
// the database confirms.
type homes struct {
	mu    sync.Mutex
	nodes map[uuid.UUID]string
}

// put remembers where a claim has its volumes.
func (s *homes) put(h *half) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nodes == nil || len(s.nodes) >= mostHomes {
		s.nodes = map[uuid.UUID]string{}
	}
	for _, want := range h.p.req.Mounts {
		s.nodes[want.Volume] = h.node
	}
}

func (s *homes) of(volume uuid.UUID) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nodes[volume]
}
