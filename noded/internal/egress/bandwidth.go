package egress

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"

	"s0.run/internal/netdapi"
)

// Bandwidth is what a team's sandboxes may send and receive.
type Bandwidth struct {
	Together netdapi.Bandwidth `json:"together,omitzero"` // those of this node
	Each     netdapi.Bandwidth `json:"each,omitzero"`
}

// Bandwidths are those of all teams.
type Bandwidths struct {
	Teams  map[string]Bandwidth `json:"teams,omitempty"`
	Others Bandwidth            `json:"others,omitzero"`
}

func (b *Bandwidths) of(team string) Bandwidth {
	if own, ok := b.Teams[team]; ok {
		return own
	}
	return b.Others
}

// LoadBandwidth reads what was said in an earlier process' time, so that nobody has
// more for a restart, and has changes kept in that file from now on.
func (a *Agent) LoadBandwidth(path string) error {
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var b Bandwidths
	if err == nil {
		if err := json.Unmarshal(data, &b); err != nil {
			return fmt.Errorf("reading %s: %w", path, err)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.bandwidths, a.bandwidthFile = b, path
	return nil
}

// SetBandwidth says what every team's sandboxes may send and receive from now on. When
// it has returned nil, that is durable, and in force unless netd is away.
func (a *Agent) SetBandwidth(ctx context.Context, b Bandwidths) error {
	a.setting.Lock()
	defer a.setting.Unlock()
	a.mu.Lock()
	same, path := reflect.DeepEqual(a.bandwidths, b), a.bandwidthFile
	a.mu.Unlock()
	if same {
		return nil // who was not told then is told by a comparison
	}
	if err := keepBandwidths(path, b); err != nil {
		return err
	}
	changed := a.putBandwidths(b)
	if !a.up.Load() {
		return nil // a comparison tells it
	}
	var errs []error
	for d, slot := range changed {
		if err := a.tellPolicy(ctx, d, slot); err != nil {
			errs = append(errs, fmt.Errorf("bandwidth of %s: %w", slot.ID, err))
		}
	}
	return errors.Join(errs...)
}

// putBandwidths makes them the ones that hold, and returns the sandboxes that netd was told
// something else of, or is being told, and where they are: whoever comes after has them.
func (a *Agent) putBandwidths(b Bandwidths) map[*desired]netdapi.Slot {
	changed := map[*desired]netdapi.Slot{}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, d := range a.want {
		if d.policy != nil && a.bandwidths.of(d.policy.Team) != b.of(d.policy.Team) {
			changed[d] = d.slot
		}
	}
	a.bandwidths = b
	return changed
}

// limited is a policy with the bandwidth that its team has now. It is called with mu held.
func (a *Agent) limited(p netdapi.Policy) netdapi.Policy {
	b := a.bandwidths.of(p.Team)
	p.SandboxBandwidth, p.TeamBandwidth = b.Each, b.Together
	return p
}

// keepBandwidths replaces the file as a whole, durably.
func keepBandwidths(path string, b Bandwidths) error {
	if path == "" {
		return nil
	}
	data, err := json.Marshal(b)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // it is not there any more when all went well
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("keeping bandwidths: %w", err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
