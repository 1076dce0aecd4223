package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// works are what agents do all day. Each runs in a new directory, with /data/in beside it.
var works = []struct{ name, script string }{
	{"git clone", "git clone -q file:///data/in/repo.git clone"},
	{"git status", "cd clone && git status --short"},
	{"npm ci", "cp /data/in/package*.json . && HOME=/tmp /data/in/node /data/in/npm/bin/npm-cli.js ci --offline --cache /data/in/cache --ignore-scripts --no-audit --no-fund --loglevel=error >&2"},
	{"pip install, of pip itself into a venv", "python3 -m venv venv >&2"},
	{"build: Python's library copied and compiled", "cp -r /usr/lib/python3.11 lib && python3 -m compileall -q lib >&2 || true"},
	{"rm -rf of all that", "cd .. && rm -rf \"$OLDPWD\""},
}

// work measures what agents do, in a volume and beside it, inside a gVisor sandbox.
func (v *volumes) work(ctx context.Context) ([]row, error) {
	in := filepath.Join(v.dir, "work")
	if err := materials(ctx, in); err != nil {
		return nil, err
	}
	w, err := v.workplace(ctx, in)
	if err != nil {
		return nil, err
	}
	took := map[string]map[string][]float64{}
	for place, dir := range w.dirs {
		script := fmt.Sprintf("set -e; exec 3>&1; export LC_ALL=C; cd %s; mkdir work; cd work; git config --global safe.directory '*'; t0=$(date +%%s.%%N)\n", dir)
		for _, one := range works {
			script += fmt.Sprintf("( %s ); t=$(date +%%s.%%N); echo \"$t0 $t\"; t0=$t\n", strings.ReplaceAll(one.script, "$OLDPWD", dir+"/work"))
		}
		out, err := w.sh(ctx, script)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("in %s: %w", place, err), w.leave(ctx))
		}
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if len(lines) != len(works) {
			return nil, errors.Join(fmt.Errorf("in %s: %q", place, out), w.leave(ctx))
		}
		for i, line := range lines {
			var from, to float64
			if _, err := fmt.Sscan(line, &from, &to); err != nil {
				return nil, errors.Join(err, w.leave(ctx))
			}
			if took[works[i].name] == nil {
				took[works[i].name] = map[string][]float64{}
			}
			took[works[i].name][place] = []float64{to - from}
		}
	}
	var rows []row
	for _, one := range works {
		local := took[one.name]["local"][0]
		for _, place := range []string{"local", "rootfs", "volume", "juicefs"} {
			r := row{name: one.name + ", " + place, load: "in gVisor, 1 client", unit: "s", samples: took[one.name][place], note: fmt.Sprintf("%.2f times local", took[one.name][place][0]/local)}
			if place == "volume" {
				r.budget = budget{p50: local / small2local}
			}
			rows = append(rows, r)
		}
	}
	return rows, w.leave(ctx)
}

// materials puts a repository, a lock file with all that it names, and npm into a directory.
func materials(ctx context.Context, in string) error {
	if err := os.MkdirAll(in, 0o755); err != nil {
		return err
	}
	script := `set -e
cp test/compat/client/package.json test/compat/client/package-lock.json "$1"
git clone -q --bare . "$1/repo.git"
(cd "$1" && npm ci --cache "$1/cache" --ignore-scripts --no-audit --no-fund --loglevel=error && rm -rf node_modules)
cp "$(readlink -f "$(command -v node)")" "$1/node"
cp -r "$(npm root -g 2>/dev/null)/npm" "$1/npm"
chmod -R a+rX "$1"`
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "s0.run").Output()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "sh", "-c", script, "sh", in)
	cmd.Dir = strings.TrimSpace(string(root))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("collecting what is worked with: %w: %.500s", err, out)
	}
	return nil
}
