package pods

import (
	"context"
	"maps"
	"slices"
	"strings"
)

// fill writes the files of a pod's volumes into its sandbox; false: the pod is to go.
func (p *Pods) fill(ctx context.Context, pod *pod, files map[string]string) bool {
	p.mu.Lock()
	sb := pod.sandbox
	p.mu.Unlock()
	return p.attempt(ctx, pod, func() bool {
		for _, name := range slices.Sorted(maps.Keys(files)) {
			var err error
			if dir, ok := strings.CutSuffix(name, "/"); ok {
				err = p.cfg.Node.MakeDir(ctx, instance(sb), dir)
			} else {
				err = p.cfg.Node.WriteFile(ctx, instance(sb), name, strings.NewReader(files[name]))
			}
			if err != nil {
				p.notYet(ctx, pod, "FailedMount", err)
				return true
			}
		}
		return false
	})
}
