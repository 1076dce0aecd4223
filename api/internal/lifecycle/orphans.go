package lifecycle

import (
	"context"
	"maps"
	"slices"
	"time"

	"s0.run/api/internal/placement"
	"s0.run/internal/errdefs"
	"s0.run/internal/sandbox"
)

// orphanShare bounds how many of a node's sandboxes one pass may end for having no row:
// one in ten, and one at least.
const orphanShare = 10

// An orphan is a sandbox without a row: its claim was never acknowledged and could not
// be undone, or the database has lost what it had committed. Nobody reaches it through
// the API; if its row comes back within the grace, it is its tenant's again.
type orphan struct {
	since time.Time // which has a monotonic part: no clock that is set ends it early
	told  bool      // the operator knows
}

// adoptOrEnd looks at the sandboxes of a node that have no row: an ended one's
// node is told again; a fork's child that nobody stores ends, others have the grace to
// get a row.
func (k *Keeper) adoptOrEnd(ctx context.Context, node string, rest map[sandbox.ID]placement.Sandbox, total int) {
	k.forgetOrphansExcept(node, rest)
	budget := max(1, total/orphanShare)
	for _, id := range slices.Sorted(maps.Keys(rest)) {
		sb := rest[id]
		row, err := k.cfg.Store.AnySandbox(ctx, id)
		if err != nil && !errdefs.Is(err, errdefs.NotFound) {
			k.logFailure(ctx, "could not look for a sandbox's row", err)
			return
		}
		mine := err == nil && row.ClaimID.String() == sb.ClaimID
		switch {
		case sb.State == sandbox.Terminating:
		case mine && wentOn(row, sb):
			k.end(ctx, sb, "it went on at another node")
		case mine && row.DeletedAt == nil: // it has got its row meanwhile
		case mine:
			k.end(ctx, sb, row.Reason)
		case err != nil && k.isLostChild(ctx, id):
			k.end(ctx, sb, "fork failed")
		case k.orphanFor(sb) >= k.cfg.Grace && budget > 0:
			budget--
			k.end(ctx, sb, "nobody's sandbox")
		}
	}
}

func (k *Keeper) end(ctx context.Context, sb placement.Sandbox, reason string) {
	k.cfg.Log.Warn("ending a sandbox that is nobody's", "sandbox", sb.ID, "gen", sb.Generation, "team", sb.Team, "node", sb.Node, "reason", reason)
	if err := k.deleteAtNode(ctx, sb.Node, sb.ID, sb.Generation, reason); err != nil {
		k.logFailure(ctx, "could not end a sandbox that is nobody's", err)
	}
}

// isLostChild reports whether a sandbox without a row is a fork's child that nobody will
// ever have: its fork was given up, or has not stored it soon after its node had it.
func (k *Keeper) isLostChild(ctx context.Context, id sandbox.ID) bool {
	age, _ := k.noteOrphan(id, false)
	lost, err := k.cfg.Store.GiveUpFork(ctx, id, age >= k.cfg.Settled)
	if err != nil {
		k.logFailure(ctx, "could not look for a fork", err)
	}
	return lost
}

// orphanFor is for how long a sandbox has been seen without a row, from now on. The
// operator is told, once, when a claim would have had its row.
func (k *Keeper) orphanFor(sb placement.Sandbox) time.Duration {
	age, news := k.noteOrphan(sb.ID, true)
	if news {
		k.cfg.Log.Warn("a sandbox has no row, and ends if it gets none", "sandbox", sb.ID, "gen", sb.Generation, "team", sb.Team, "node", sb.Node,
			"claim", sb.ClaimID, "left", k.cfg.Grace-age)
	}
	return age
}

// noteOrphan reports whether the operator is told now.
func (k *Keeper) noteOrphan(id sandbox.ID, tell bool) (age time.Duration, news bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	o := k.orphans[id]
	if o == nil {
		o = &orphan{since: time.Now()}
		k.orphans[id] = o
	}
	age = time.Since(o.since)
	news = tell && age >= k.cfg.Settled && !o.told
	o.told = o.told || news
	return age, news
}

// Orphans is how many sandboxes this server has told its operator about.
func (k *Keeper) Orphans() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := 0
	for _, o := range k.orphans {
		if o.told {
			n++
		}
	}
	return n
}

// forgetOrphansExcept forgets what is no orphan of the node any more.
func (k *Keeper) forgetOrphansExcept(node string, rest map[sandbox.ID]placement.Sandbox) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id := range k.orphans {
		if _, still := rest[id]; still {
			continue
		}
		if sb, _, known := k.cfg.Table.Lookup(id); !known || sb.Node == node {
			delete(k.orphans, id)
		}
	}
}
