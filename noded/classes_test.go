package noded

import (
	"errors"
	"slices"
	"testing"
)

func TestC04_RuncBelowTheFloorIsRefused(t *testing.T) {
	t.Parallel()
	for answer, old := range map[string]bool{
		"runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\n": true,
		"runc version 1.2.7\n": true, "runc version 1.2.8\n": false, "runc version 1.2.10\n": false,
		"runc version 1.3.2\n": true, "runc version 1.3.3\n": false,
		"runc version 1.4.0-rc.3\n": false, "runc version 2.0.0\n": false, "runc version 0.9.9\n": true,
	} {
		if err := checkRuncVersion(answer); errors.Is(err, errOldRunc) != old || !old && err != nil {
			t.Errorf("%q: %v", answer, err)
		}
	}
	for _, odd := range []string{"", "crun version 1.8\n", "runc version x\n", "runc version 1.2\n"} {
		if err := checkRuncVersion(odd); err == nil {
			t.Errorf("%q: a version that can't be read passes", odd)
		}
	}
}

func TestC01_RuncIsOfferedWhereItIsAllowedAlone(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		cfg  Config
		want []string
	}{
		{Config{}, []string{"gvisor"}},
		{Config{AllowOldRunc: true}, []string{"gvisor"}},
		{Config{AllowRunc: true, AllowOldRunc: true}, []string{"gvisor", "runc"}},
	} {
		c.cfg.Simulate = true // whether there is kata is the machine's matter
		if got, err := runtimeClasses(t.Context(), c.cfg); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v, %v", c.cfg, got, err)
		}
	}
}
