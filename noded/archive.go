package noded

import (
	"github.com/prometheus/client_golang/prometheus"

	"s0.run/internal/daemon"
	"s0.run/internal/nodeapi"
	"s0.run/noded/internal/archive"
	"s0.run/noded/internal/lifecycle"
	"s0.run/noded/internal/objects"
	"s0.run/noded/internal/server"
)

// objectStore is the node's way to the object store; nil: it has none.
type objectStore struct {
	*archive.Archive
	url    string
	keeper *archive.Keeper
}

// openObjectStore reads the key and makes the store known. That nobody answers there is
// no reason not to start: what is here goes on.
func openObjectStore(cfg Config, local localDisk) (*objectStore, error) {
	if cfg.ObjectStore == "" {
		return nil, nil
	}
	keys, err := archive.LoadKeys(cfg.ObjectKeyFile)
	if err != nil {
		return nil, err
	}
	store, err := objects.Open(cfg.ObjectStore)
	if err != nil {
		return nil, err
	}
	a, err := archive.New(archive.Config{Store: store, Keys: keys, Room: local.RoomFor})
	if err != nil {
		return nil, err
	}
	return &objectStore{Archive: a, url: store.String()}, nil
}

// keep stores the images of the manager's sandboxes from now on.
func (o *objectStore) keep(cfg Config, manager *lifecycle.Manager, local localDisk, metrics prometheus.Registerer, s *daemon.Stack) {
	if o == nil {
		return
	}
	o.keeper = archive.NewKeeper(archive.KeeperConfig{
		Archive: o.Archive, Sandboxes: manager, Crowded: local.Crowded, DryRun: cfg.ObjectDryRun, Metrics: metrics, Log: cfg.Log,
	})
	s.Start("object store", o.keeper.Run)
}

// Status implements server.Archive.
func (o *objectStore) Status() *nodeapi.ObjectStore {
	status := o.keeper.Status()
	return &nodeapi.ObjectStore{Url: o.url, Waiting: uint32(status.Waiting), LastError: nodeapi.Text(status.LastError)}
}

// MakeObjectKey writes a file with a new key for ObjectKeyFile, unless there is a file.
func MakeObjectKey(path string) error { return archive.MakeKey(path) }

// forLifecycle and forServer are nil where there is none, not an interface with nothing
// in it.
func (o *objectStore) forLifecycle() lifecycle.Archive {
	if o == nil {
		return nil
	}
	return o
}

func (o *objectStore) forServer() server.Archive {
	if o == nil {
		return nil
	}
	return o
}
