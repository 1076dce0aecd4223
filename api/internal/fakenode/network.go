package fakenode

import "s0.run/internal/nodeapi"

// Network is what the node was told of a sandbox's network; nil: nothing.
func (n *Node) Network(id string) *nodeapi.Network {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.networks[id]
}

// putNetworkLocked keeps a policy with its credentials, of which news may come alone.
func (n *Node) putNetworkLocked(id string, told *nodeapi.Network) {
	if told == nil {
		return
	}
	if n.networks == nil {
		n.networks = map[string]*nodeapi.Network{}
	}
	next := &nodeapi.Network{Policy: told.GetPolicy(), Credentials: told.GetCredentials()}
	if len(next.Policy) == 0 {
		next.Policy = n.networks[id].GetPolicy()
	}
	n.networks[id] = next
}
