package bandwidth

import (
	"testing"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"s0.run/api/internal/store"
	"s0.run/internal/nodeapi"
)

func quota(team *uuid.UUID, dimension string, limit, interval, burst *int64) store.TeamQuota {
	return store.TeamQuota{TeamID: team, Quota: store.Quota{Dimension: dimension, Limit: limit, IntervalMS: interval, Burst: burst}}
}

func n(v int64) *int64 { return &v }

func TestWhatNodesAreTold(t *testing.T) {
	t.Parallel()
	a, b := uuid.MustParse("aaaaaaaa-0000-4000-8000-000000000000"), uuid.MustParse("bbbbbbbb-0000-4000-8000-000000000000")
	got := Request([]store.TeamQuota{
		quota(nil, store.QuotaEgress, n(1000), n(1000), nil),
		quota(nil, store.QuotaSandboxEgress, n(100), n(1000), nil),
		quota(nil, store.QuotaIngress, n(5), nil, nil), // a month's
		quota(&b, store.QuotaEgress, nil, nil, nil),    // no limit, whatever the default
		quota(&a, store.QuotaEgress, n(600), n(60_000), n(7)),
		quota(&a, store.QuotaSandboxIngress, n(0), n(1000), nil),
		quota(&a, store.QuotaIngress, n(9), n(60_001), nil), // too long for a rate
	}, nil)
	rate := func(bytes, burst uint64) *nodeapi.Rate { return &nodeapi.Rate{Bytes: bytes, Burst: burst} }
	want := &nodeapi.SetBandwidthRequest{
		Teams: []*nodeapi.TeamBandwidth{
			{Team: a.String(), Together: &nodeapi.Bandwidth{Egress: rate(10, 7)}, Each: &nodeapi.Bandwidth{Egress: rate(100, 0), Ingress: rate(1, 0)}},
			{Team: b.String(), Together: &nodeapi.Bandwidth{}, Each: &nodeapi.Bandwidth{Egress: rate(100, 0)}},
		},
		Others: &nodeapi.TeamBandwidth{Together: &nodeapi.Bandwidth{Egress: rate(1000, 0)}, Each: &nodeapi.Bandwidth{Egress: rate(100, 0)}},
	}
	if !proto.Equal(got, want) {
		t.Errorf("told %v,\nwant %v", got, want)
	}
	if got := Request(nil, nil); !proto.Equal(got, &nodeapi.SetBandwidthRequest{Others: &nodeapi.TeamBandwidth{Together: &nodeapi.Bandwidth{}, Each: &nodeapi.Bandwidth{}}}) {
		t.Errorf("without limits: %v", got)
	}
}

// What is used up is let through no more, whatever else is limited; the other direction,
// and others, are what they were.
func TestWhatIsUsedUpIsTold(t *testing.T) {
	t.Parallel()
	a, b := uuid.MustParse("aaaaaaaa-0000-4000-8000-000000000000"), uuid.MustParse("bbbbbbbb-0000-4000-8000-000000000000")
	got := Request([]store.TeamQuota{
		quota(nil, store.QuotaIngress, n(5), nil, nil),
		quota(nil, store.QuotaEgress, n(1000), n(1000), nil),
		quota(&a, store.QuotaEgress, n(9), n(3_600_000), nil),
	}, []store.TeamTraffic{{Team: a, Dimension: store.QuotaEgress}, {Team: b, Dimension: store.QuotaIngress}})
	rate := func(bytes uint64) *nodeapi.Rate { return &nodeapi.Rate{Bytes: bytes} }
	want := &nodeapi.SetBandwidthRequest{
		Teams: []*nodeapi.TeamBandwidth{
			{Team: a.String(), Together: &nodeapi.Bandwidth{Egress: rate(1)}, Each: &nodeapi.Bandwidth{}},
			{Team: b.String(), Together: &nodeapi.Bandwidth{Egress: rate(1000), Ingress: rate(1)}, Each: &nodeapi.Bandwidth{}},
		},
		Others: &nodeapi.TeamBandwidth{Together: &nodeapi.Bandwidth{Egress: rate(1000)}, Each: &nodeapi.Bandwidth{}},
	}
	if !proto.Equal(got, want) {
		t.Errorf("told %v,\nwant %v", got, want)
	}
}
