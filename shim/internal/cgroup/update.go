package cgroup

import (
	"errors"
	"fmt"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// errNoGroup is returned for limits of a container that has no group.
var errNoGroup = errors.New("container has no cgroup")

// limit is one file to write.
type limit struct{ controller, name, value string }

// Update changes the limits that res names and leaves all others alone. It
// writes files and starts nothing, so that a claim can afford it.
func (g Group) Update(res *specs.LinuxResources) error {
	if g.path == "" {
		return errNoGroup
	}
	plan := planV1
	if g.unified {
		plan = planV2
	}
	limits, err := plan(res)
	if err != nil {
		return err
	}
	for _, l := range limits {
		if err := g.write(l.controller, l.name, l.value); err != nil {
			return err
		}
	}
	return nil
}

func planV1(res *specs.LinuxResources) ([]limit, error) {
	var plan []limit
	add := func(controller, name string, v int64) {
		plan = append(plan, limit{controller, name, strconv.FormatInt(v, 10)})
	}
	if m := res.Memory; m != nil && m.Limit != nil {
		add("memory", "memory.limit_in_bytes", *m.Limit)
	}
	if c := res.CPU; c != nil {
		if c.Period != nil {
			add("cpu", "cpu.cfs_period_us", int64(*c.Period))
		}
		if c.Quota != nil {
			add("cpu", "cpu.cfs_quota_us", *c.Quota)
		}
		if c.Shares != nil {
			add("cpu", "cpu.shares", int64(*c.Shares))
		}
	}
	if p := res.Pids; p != nil && p.Limit != nil {
		plan = append(plan, limit{"pids", "pids.max", orMax(*p.Limit)})
	}
	return plan, nil
}

func planV2(res *specs.LinuxResources) ([]limit, error) {
	var plan []limit
	if m := res.Memory; m != nil && m.Limit != nil {
		plan = append(plan, limit{"memory", "memory.max", orMax(*m.Limit)})
	}
	if c := res.CPU; c != nil {
		if (c.Quota == nil) != (c.Period == nil) {
			return nil, errors.New("cgroup: cpu quota and period are changed together")
		}
		if c.Quota != nil {
			plan = append(plan, limit{"cpu", "cpu.max", fmt.Sprintf("%s %d", orMax(*c.Quota), *c.Period)})
		}
		if c.Shares != nil {
			plan = append(plan, limit{"cpu", "cpu.weight", strconv.FormatUint(weight(*c.Shares), 10)})
		}
	}
	if p := res.Pids; p != nil && p.Limit != nil {
		plan = append(plan, limit{"pids", "pids.max", orMax(*p.Limit)})
	}
	return plan, nil
}

func orMax(v int64) string {
	if v <= 0 {
		return "max"
	}
	return strconv.FormatInt(v, 10)
}

// weight maps v1's shares (2 to 262144) to v2's weight (1 to 10000), as every
// OCI runtime does.
func weight(shares uint64) uint64 {
	shares = min(max(shares, 2), 262144)
	return 1 + (shares-2)*9999/262142
}
