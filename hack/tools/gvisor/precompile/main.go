// Precompile prints the system call filter of the sandboxes that we run as a file of
// gVisor's package runsc/boot/filter: without it every start and every restore compiles it.
package main

import (
	"bytes"
	"fmt"
	"go/format"
	"log"
	"maps"
	"os"
	"slices"

	"gvisor.dev/gvisor/pkg/seccomp"
	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
	"gvisor.dev/gvisor/pkg/sentry/platform"
	_ "gvisor.dev/gvisor/pkg/sentry/platform/systrap"
	"gvisor.dev/gvisor/runsc/boot/filter/config"
)

func main() {
	systrap, err := platform.Lookup("systrap")
	if err != nil {
		log.Fatal(err)
	}
	var out bytes.Buffer
	out.WriteString("package filter\n\nimport \"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp\"\n\n")
	out.WriteString("func init() {\n\tregisterPrecompiledProgramsOnce.Do(func() {\n\t\tprecompiledPrograms = map[string]precompiledseccomp.Program{\n")
	for _, info := range systrap.PrecompiledSeccompInfo() {
		p, err := compile(config.Options{Platform: info, HostFilesystem: true})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Fprintf(&out, "\t\t\t%q: %#v,\n", p.Name, p)
	}
	out.WriteString("\t\t}\n\t})\n}\n")
	src, err := format.Source(out.Bytes())
	if err != nil {
		log.Fatal(err)
	}
	if _, err := os.Stdout.Write(src); err != nil {
		log.Fatal(err)
	}
}

// compile compiles the filter that runsc would at run time.
func compile(opt config.Options) (precompiledseccomp.Program, error) {
	names := slices.Collect(maps.Keys(opt.Vars()))
	return precompiledseccomp.Precompile(opt.ConfigKey(), names, func(vars precompiledseccomp.Values) *seccomp.Program {
		with := opt
		with.Platform = placeholder{opt.Platform, vars}
		allow, deny := config.Rules(with)
		return &seccomp.Program{
			RuleSets: []seccomp.RuleSet{{Rules: deny}, {Rules: allow, Action: seccomp.Allow}},
			Options:  config.SeccompOptions(with),
		}
	})
}

// placeholder is a platform whose variables, and so all of a program's, have the
// values that the compiler looks for in its output.
type placeholder struct {
	platform.SeccompInfo
	vars precompiledseccomp.Values
}

func (p placeholder) Variables() precompiledseccomp.Values { return p.vars }
