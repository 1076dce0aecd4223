package quota

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"s0.run/api/internal/bandwidth"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

// kind is how a dimension is limited.
type kind string

const (
	capacity kind = "capacity" // so much at any time
	rate     kind = "rate"     // so much in an interval
)

// dimension is something that a team uses.
type dimension struct {
	name   string
	stored string // under which name its limit is kept; "": none is
	kind   kind
	unit   string
	listed bool // in the list of clients that know no other names

	// uses is how much of it a team uses; nil: what it is now is not known.
	uses func(store.Usage) int64
}

func ingressBytes(u store.Usage) int64  { return u.IngressBytes }
func egressBytes(u store.Usage) int64   { return u.EgressBytes }
func sandboxesUsed(u store.Usage) int64 { return u.Sandboxes }

// dimensions are those of both generations of clients. Traffic is the same under
// its older and its newer name; that of each of a team's sandboxes can be limited, too.
var dimensions = []dimension{
	{store.QuotaSandboxes, store.QuotaSandboxes, capacity, "count", true, sandboxesUsed},
	{store.QuotaCPU, store.QuotaCPU, capacity, "millicpu", false, store.Usage.CPUMillis},
	{store.QuotaMemory, store.QuotaMemory, capacity, "MiB", false, store.Usage.MemoryMiB},
	{"sandbox_claims", "", rate, "claims", true, nil},
	{"api_requests", "", rate, "requests", true, nil},
	{store.QuotaVolumes, store.QuotaVolumes, capacity, "GB", true, store.Usage.VolumeUnits},
	{store.QuotaSnapshots, store.QuotaSnapshots, capacity, "GB", true, store.Usage.SnapshotUnits},
	{"egress", store.QuotaEgress, rate, "bytes", false, egressBytes},
	{"ingress", store.QuotaIngress, rate, "bytes", false, ingressBytes},
	{"network_egress_bytes", store.QuotaEgress, rate, "bytes", true, egressBytes},
	{"network_ingress_bytes", store.QuotaIngress, rate, "bytes", true, ingressBytes},
	{"sandbox_network_egress_bytes", store.QuotaSandboxEgress, rate, "bytes", false, nil},
	{"sandbox_network_ingress_bytes", store.QuotaSandboxIngress, rate, "bytes", false, nil},
}

func find(name string) (dimension, error) {
	for _, d := range dimensions {
		if d.name == name {
			return d, nil
		}
	}
	return dimension{}, errdefs.New(errdefs.InvalidArgument, "unknown quota dimension")
}

// View shows what a team may use and uses.
type View struct {
	Team   uuid.UUID
	Limits []store.Quota
	Usage  store.Usage

	// Requests is the bound of requests that every team has.
	RequestsPerSecond float64
	RequestBurst      int
}

// List shows the dimensions: all, or those that every client knows.
func (v View) List(all bool) []openapi.TeamQuota {
	list := []openapi.TeamQuota{}
	for _, d := range dimensions {
		if d.listed || all {
			list = append(list, v.show(d))
		}
	}
	return list
}

// One shows one dimension.
func (v View) One(name string) (openapi.TeamQuota, error) {
	d, err := find(name)
	if err != nil {
		return openapi.TeamQuota{}, err
	}
	return v.show(d), nil
}

func (v View) show(d dimension) openapi.TeamQuota {
	q := openapi.TeamQuota{
		TeamID: v.Team.String(), Dimension: d.name, Kind: openapi.TeamQuotaKind(d.kind), Unit: d.unit,
		Source: openapi.TeamQuotaSourceUnlimited, Unlimited: true,
	}
	if d.uses != nil {
		q.Current = new(d.uses(v.Usage))
	}
	if limit, ok := v.limit(d); ok {
		q.Unlimited, q.LimitValue, q.IntervalMs, q.BurstValue = false, limit.Limit, limit.IntervalMS, limit.Burst
		q.Source = openapi.TeamQuotaSourceRegionDefault
		if limit.Own {
			q.Source = openapi.TeamQuotaSourceTeamOverride
		}
		if q.Current != nil {
			q.Remaining = new(max(0, *q.LimitValue-*q.Current))
		}
	}
	return q
}

func (v View) limit(d dimension) (store.Quota, bool) {
	if d.name == "api_requests" {
		return store.Quota{
			Limit: new(int64(v.RequestsPerSecond)), IntervalMS: new(time.Second.Milliseconds()), Burst: new(int64(v.RequestBurst)),
		}, true
	}
	for _, l := range v.Limits {
		if l.Dimension == d.stored && l.Limit != nil {
			return l, true
		}
	}
	return store.Quota{}, false
}

// Bounds of what an operator may set. The largest keeps every sum in 64 bits.
const (
	maxLimit    = 1_000_000_000_000_000
	maxCPU      = 1_000_000_000
	maxInterval = 31 * 24 * time.Hour
)

// Parse checks a limit that an operator sets. A rate says in which interval: a
// month when it says nothing, which is nil.
func Parse(name string, r openapi.SetQuotaRequest) (store.Quota, error) {
	d, err := find(name)
	if err != nil {
		return store.Quota{}, err
	}
	most := int64(maxLimit)
	if d.stored == store.QuotaCPU || d.stored == store.QuotaMemory {
		most = maxCPU
	}
	invalid := func(format string, args ...any) (store.Quota, error) {
		return store.Quota{}, errdefs.New(errdefs.InvalidArgument, format, args...)
	}
	switch {
	case d.stored == "":
		return invalid("%s can't be limited for a team", d.name)
	case (r.LimitValue == nil) != (r.Unlimited != nil && *r.Unlimited):
		return invalid("want either limit_value or unlimited")
	case r.LimitValue != nil && (*r.LimitValue < 0 || *r.LimitValue > most):
		return invalid("limit_value: want 0 to %d", most)
	case d.kind != rate && (r.IntervalMs != nil || r.BurstValue != nil):
		return invalid("%s is no rate: it has no interval_ms and no burst_value", d.name)
	case r.IntervalMs != nil && (*r.IntervalMs < 1 || *r.IntervalMs > maxInterval.Milliseconds()):
		return invalid("interval_ms: want 1 to %d", maxInterval.Milliseconds())
	case isOfSandbox(d) && r.IntervalMs != nil && *r.IntervalMs > bandwidth.MaxInterval.Milliseconds():
		return invalid("interval_ms: want 1 to %d of what each sandbox may", bandwidth.MaxInterval.Milliseconds())
	case r.BurstValue != nil && (*r.BurstValue < 0 || *r.BurstValue > maxLimit):
		return invalid("burst_value: want 0 to %d", int64(maxLimit))
	}
	if isOfSandbox(d) && r.LimitValue != nil && r.IntervalMs == nil {
		r.IntervalMs = new(time.Second.Milliseconds())
	}
	return store.Quota{Dimension: d.stored, Limit: r.LimitValue, IntervalMS: r.IntervalMs, Burst: r.BurstValue, Own: true}, nil
}

// isOfSandbox says whether a dimension limits each sandbox, and so is a rate by the
// second unless it says otherwise.
func isOfSandbox(d dimension) bool {
	return d.stored == store.QuotaSandboxEgress || d.stored == store.QuotaSandboxIngress
}

// Stored is the name under which a dimension's limit is kept.
func Stored(name string) (string, error) {
	d, err := find(name)
	if err == nil && d.stored == "" {
		err = errdefs.New(errdefs.InvalidArgument, "%s can't be limited for a team", d.name)
	}
	return d.stored, err
}

// Defaults reads the limits of teams that have none of their own.
func Defaults(limits map[string]int64) ([]store.Quota, error) {
	byName := map[string]store.Quota{}
	for name, limit := range limits {
		q, err := Parse(name, openapi.SetQuotaRequest{LimitValue: &limit})
		if err != nil {
			return nil, fmt.Errorf("quota %s: %w", name, err)
		}
		if _, twice := byName[q.Dimension]; twice {
			return nil, fmt.Errorf("quota %s is there under two names", name)
		}
		q.Own = false
		byName[q.Dimension] = q
	}
	return slices.Collect(maps.Values(byName)), nil
}
