package noded

import (
	"path/filepath"

	"s0.run/internal/daemon"
	"s0.run/noded/internal/lifecycle"
	"s0.run/noded/internal/server"
	"s0.run/noded/internal/volumes"
)

// portals are the node's volumes, or none.
type portals struct{ agent *volumes.Agent }

func openVolumes(cfg Config, s *daemon.Stack) (portals, error) {
	if cfg.VolumedSocket == "" || cfg.Simulate {
		return portals{}, nil
	}
	agent, err := volumes.Open(filepath.Join(cfg.RunDir, "portals"), cfg.VolumedSocket)
	if err != nil {
		return portals{}, err
	}
	s.Push(agent.Close)
	return portals{agent}, nil
}

// An interface that holds a nil agent is not nil.

func (p portals) forLifecycle() lifecycle.Volumes {
	if p.agent == nil {
		return nil
	}
	return p.agent
}

func (p portals) forServer() server.Volumes {
	if p.agent == nil {
		return nil
	}
	return p.agent.Client
}
