package main

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// recipeFile marks a finished layout with the hash of the recipe it came from.
const recipeFile = "s0-recipe"

// A recipe is everything that decides what an image holds, but for the versions
// that the distribution has at the time.
type recipe struct {
	Format   int               // of what pack and clean make; raise it when they change
	Packages []string          // added to debootstrap's minbase, or to the base
	Env      map[string]string // of the image's configuration
	Workdir  string
	Arch     string

	Base  *recipe           `json:",omitempty"` // what the image adds a layer to; nil: nothing
	Files map[string]string `json:",omitempty"` // programs of ours by path
	Setup [][]string        `json:",omitempty"` // run inside, last: what is worth doing once, not in every sandbox
}

//go:embed browser code-interpreter
var programs embed.FS

// program is a file of ours that goes into an image.
func program(path string) string {
	b, err := fs.ReadFile(programs, path)
	if err != nil {
		panic(err) // it was embedded
	}
	return string(b)
}

// recipes are the images of the builtin templates, by template.
func recipes() map[string]recipe {
	base := defaultRecipe()
	return map[string]recipe{"default": base, "browser": browserRecipe(base), "code-interpreter": interpreterRecipe(base)}
}

// defaultRecipe is the builtin template `default`: what an agent expects to find.
func defaultRecipe() recipe {
	return recipe{
		Format: 2,
		Packages: []string{
			"bash", "ca-certificates", "coreutils", "curl", "diffutils", "file", "findutils", "git", "gzip", "less",
			"nodejs", "openssh-client", "patch", "perl", "procps", "python3", "python3-pip", "python3-venv",
			"redis-tools", "sqlite3", "unzip", "xz-utils",
		},
		Env: map[string]string{
			"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			"LANG": "C.UTF-8",
			"HOME": "/root",
		},
		Workdir: "/workspace",
		Arch:    runtime.GOARCH,
	}
}

// layered is a recipe that adds to another.
func layered(base recipe) recipe {
	return recipe{Format: 1, Env: base.Env, Workdir: base.Workdir, Arch: base.Arch, Base: &base}
}

// browserRecipe is the builtin template `browser`: a headless Chromium behind its
// DevTools port.
func browserRecipe(base recipe) recipe {
	r := layered(base)
	r.Packages = []string{"chromium", "fonts-liberation", "fonts-noto-color-emoji"}
	r.Files = map[string]string{"/usr/local/bin/s0-browser": program("browser/s0-browser")}
	r.Setup = [][]string{{"fc-cache", "-f"}}
	return r
}

// interpreterRecipe is the builtin template `code-interpreter`: Jupyter kernels
// behind a small HTTP server.
func interpreterRecipe(base recipe) recipe {
	r := layered(base)
	r.Packages = []string{"python3-ipykernel", "python3-jupyter-client", "python3-matplotlib", "python3-numpy", "python3-pandas"}
	r.Files = map[string]string{"/usr/local/bin/s0-code-interpreter": program("code-interpreter/s0-code-interpreter")}
	r.Setup = [][]string{{"python3", "-c", "import matplotlib.font_manager"}} // it lists the fonts once, which takes seconds
	return r
}

func (r recipe) hash() string {
	b, err := json.Marshal(r)
	if err != nil {
		panic("a recipe must marshal: " + err.Error())
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// builtIn reports whether dir holds a finished layout of this recipe.
func (r recipe) builtIn(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, recipeFile))
	return err == nil && string(b) == r.hash()
}
