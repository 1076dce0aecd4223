package noded

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"strings"
)

// registryAuth reads the node's credentials for registries from a file in the
// format of docker's config.json, each time anew: they change under a node that
// runs. A registry that the file does not name is asked as anybody.
func registryAuth(path string, log *slog.Logger) func(registry string) (user, password string) {
	return func(registry string) (user, password string) {
		if path == "" {
			return "", ""
		}
		auths, err := readRegistryAuth(path)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				log.Warn("can't read the registries' credentials", "file", path, "error", err)
			}
			return "", ""
		}
		return auths[registry].split()
	}
}

// auth is base64 of user:password.
type auth struct {
	Auth string `json:"auth"`
}

func (a auth) split() (user, password string) {
	raw, err := base64.StdEncoding.DecodeString(a.Auth)
	if err != nil {
		return "", ""
	}
	user, password, _ = strings.Cut(string(raw), ":")
	return user, password
}

func readRegistryAuth(path string) (map[string]auth, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var file struct {
		Auths map[string]auth `json:"auths"`
	}
	err = json.Unmarshal(raw, &file)
	return file.Auths, err
}
