package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
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
	Packages []string          // added to debootstrap's minbase
	Env      map[string]string // of the image's configuration
	Workdir  string
	Arch     string
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
