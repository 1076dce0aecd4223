// Package config reads and writes the file in which s0 remembers servers and
// tokens, by default ~/.s0/config.yaml.
//
// The file holds secrets: it is readable by its owner alone and replaced in one
// step, so that a reader or a crash never sees half of it. What a newer s0 wrote
// into it survives an older one. The package talks to nobody and decides nothing.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"go.yaml.in/yaml/v3"
)

// DefaultProfile is the profile of those who never chose one.
const DefaultProfile = "default"

// File is the content of the configuration file.
type File struct {
	CurrentProfile string              `yaml:"current-profile,omitempty"`
	Profiles       map[string]*Profile `yaml:"profiles,omitempty"`
	Output         Output              `yaml:"output,omitempty"`
	Rest           map[string]any      `yaml:",inline"` // not ours to lose
}

// Output is how results are printed.
type Output struct {
	Format string         `yaml:"format,omitempty"` // table, json or yaml
	Rest   map[string]any `yaml:",inline"`
}

// Profile is one server and who we are there.
type Profile struct {
	APIURL                string         `yaml:"api-url,omitempty"`
	GatewayMode           string         `yaml:"gateway-mode,omitempty"` // direct or global
	CurrentTeamID         string         `yaml:"current-team-id,omitempty"`
	CurrentTeamRegionID   string         `yaml:"current-team-region-id,omitempty"`
	CurrentTeamGatewayURL string         `yaml:"current-team-gateway-url,omitempty"`
	Token                 string         `yaml:"token,omitempty"` // may name variables: ${VAR}
	RefreshToken          string         `yaml:"refresh-token,omitempty"`
	ExpiresAt             int64          `yaml:"expires-at,omitempty"` // of Token, seconds since 1970; 0 is never
	Rest                  map[string]any `yaml:",inline"`
}

// DefaultPath is where the file is unless the user says otherwise.
func DefaultPath() (string, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("finding your home directory: %w", err)
	}
	return filepath.Join(home, ".s0", "config.yaml"), nil
}

// Load reads the file; one that does not exist is empty.
func Load(path string) (*File, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &File{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading your configuration: %w", err)
	}
	f := &File{}
	if err := yaml.NewDecoder(bytes.NewReader(b)).Decode(f); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("your configuration %s: %w", path, err)
	}
	return f, nil
}

// Save replaces the file in one step.
func (f *File) Save(path string) error {
	b, err := yaml.Marshal(f)
	if err != nil {
		return fmt.Errorf("encoding your configuration: %w", err)
	}
	if err := replace(path, b); err != nil {
		return fmt.Errorf("saving your configuration: %w", err)
	}
	return nil
}

func replace(path string, content []byte) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".config-*.yaml") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	_, err = tmp.Write(content)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// Profile returns a profile by name, a new one if there is none. An empty name
// stands for the current profile.
func (f *File) Profile(name string) *Profile {
	if name == "" {
		name = f.ProfileName()
	}
	if f.Profiles == nil {
		f.Profiles = map[string]*Profile{}
	}
	if f.Profiles[name] == nil {
		f.Profiles[name] = &Profile{}
	}
	return f.Profiles[name]
}

// ProfileName is the current profile's name.
func (f *File) ProfileName() string {
	if f.CurrentProfile == "" {
		return DefaultProfile
	}
	return f.CurrentProfile
}

var variable = regexp.MustCompile(`\$\{([A-Za-z_][A-Za-z0-9_]*)\}`)

// ExpandedToken is the token with the variables in it replaced. A variable
// that is not set is an error: half a token is none.
func (p *Profile) ExpandedToken(getenv func(string) string) (string, error) {
	var missing error
	token := variable.ReplaceAllStringFunc(p.Token, func(ref string) string {
		name := variable.FindStringSubmatch(ref)[1]
		v := getenv(name)
		if v == "" && missing == nil {
			missing = fmt.Errorf("the token in your configuration needs the environment variable %s", name)
		}
		return v
	})
	return token, missing
}
