package replicasets

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	maxAnswer = 64 << 20 // a list of as many ReplicaSets as there are templates
	maxError  = 4 << 10

	accountDir = "/var/run/secrets/kubernetes.io/serviceaccount"
)

// kube is the few calls of Kubernetes' API that this package makes. client-go would
// double the server and the time it takes to build, for three of them.
type kube struct {
	url    string
	client *http.Client
	token  func() (string, error) // empty: certificates say who we are
}

// kubeconfig is what is read of one.
type kubeconfig struct {
	CurrentContext string `yaml:"current-context"`
	Contexts       []struct {
		Name    string `yaml:"name"`
		Context struct {
			Cluster string `yaml:"cluster"`
			User    string `yaml:"user"`
		} `yaml:"context"`
	} `yaml:"contexts"`
	Clusters []struct {
		Name    string `yaml:"name"`
		Cluster struct {
			Server string `yaml:"server"`
			CA     string `yaml:"certificate-authority"`
			CAText string `yaml:"certificate-authority-data"`
		} `yaml:"cluster"`
	} `yaml:"clusters"`
	Users []struct {
		Name string `yaml:"name"`
		User struct {
			Cert     string `yaml:"client-certificate"`
			CertText string `yaml:"client-certificate-data"`
			Key      string `yaml:"client-key"`
			KeyText  string `yaml:"client-key-data"`
			Token    string `yaml:"token"`
			TokenIn  string `yaml:"tokenFile"`
		} `yaml:"user"`
	} `yaml:"users"`
}

// connect reads how Kubernetes is reached and who we are there.
func connect(path string) (*kube, error) {
	if path == "" {
		return inCluster()
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var c kubeconfig
	if err := yaml.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	k, err := c.current(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

func inCluster() (*kube, error) {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, errors.New("this is no pod of Kubernetes: a kubeconfig is needed")
	}
	ca, err := os.ReadFile(filepath.Join(accountDir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	// The token is replaced before it expires.
	token := func() (string, error) { return readTrimmed(filepath.Join(accountDir, "token")) }
	return newKube("https://"+net.JoinHostPort(host, port), ca, nil, token)
}

func readTrimmed(path string) (string, error) {
	b, err := os.ReadFile(path)
	return strings.TrimSpace(string(b)), err
}

func (c *kubeconfig) current(dir string) (*kube, error) {
	for _, context := range c.Contexts {
		if context.Name != c.CurrentContext {
			continue
		}
		for _, cluster := range c.Clusters {
			for _, user := range c.Users {
				if cluster.Name != context.Context.Cluster || user.Name != context.Context.User {
					continue
				}
				ca, err := content(dir, cluster.Cluster.CAText, cluster.Cluster.CA)
				if err != nil {
					return nil, err
				}
				pair, err := clientPair(dir, user.User.CertText, user.User.Cert, user.User.KeyText, user.User.Key)
				if err != nil {
					return nil, err
				}
				token := func() (string, error) { return user.User.Token, nil }
				if in := user.User.TokenIn; in != "" {
					token = func() (string, error) { return readTrimmed(in) }
				}
				return newKube(cluster.Cluster.Server, ca, pair, token)
			}
		}
	}
	return nil, fmt.Errorf("context %q names no cluster and user", c.CurrentContext)
}

// content is what a kubeconfig holds in itself, or where it says; nil: nothing.
func content(dir, text, file string) ([]byte, error) {
	if text != "" {
		return base64.StdEncoding.DecodeString(text)
	}
	if file == "" {
		return nil, nil
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(dir, file)
	}
	return os.ReadFile(file)
}

func clientPair(dir, certText, certFile, keyText, keyFile string) (*tls.Certificate, error) {
	cert, err := content(dir, certText, certFile)
	if err != nil || cert == nil {
		return nil, err
	}
	key, err := content(dir, keyText, keyFile)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	return &pair, err
}

func newKube(url string, ca []byte, pair *tls.Certificate, token func() (string, error)) (*kube, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != nil {
		if config.RootCAs = x509.NewCertPool(); !config.RootCAs.AppendCertsFromPEM(ca) {
			return nil, errors.New("the cluster's CA is no certificate")
		}
	}
	if pair != nil {
		config.Certificates = []tls.Certificate{*pair}
	}
	return &kube{url: strings.TrimSuffix(url, "/"), token: token, client: &http.Client{Transport: &http.Transport{TLSClientConfig: config, Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true}}}, nil
}

// call makes one call; a PATCH is an apply. What is not there to be deleted is deleted.
func (k *kube) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, k.url+path, body)
	if err != nil {
		return err
	}
	if req.Header.Set("Content-Type", "application/json"); method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/apply-patch+yaml") // JSON is
	}
	token, err := k.token()
	if err != nil {
		return err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch {
	case method == http.MethodDelete && resp.StatusCode == http.StatusNotFound:
		return nil
	case resp.StatusCode/100 != 2:
		b, _ := io.ReadAll(io.LimitReader(resp.Body, maxError))
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, b)
	case out == nil:
		return nil
	}
	return json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out)
}
