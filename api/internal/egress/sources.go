package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
	"golang.org/x/crypto/ssh"

	"s0.run/api/internal/openapi"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
	"s0.run/internal/policy"
	"s0.run/internal/sealed"
)

const (
	maxValues     = 32
	maxValueBytes = 8 << 10
	maxPEMBytes   = 32 << 10
	maxNameBytes  = 128
)

// ErrNoSources answers while no key is configured that credentials could be sealed
// to.
var ErrNoSources = errdefs.New(errdefs.Unavailable, "credential sources are unavailable in this deployment")

// CreateSource stores a team's new source.
func (k *Keeper) CreateSource(ctx context.Context, team uuid.UUID, name, kind string, spec openapi.CredentialSourceSpec) (store.CredentialSource, error) {
	seal, err := k.sealer(team, name, kind, spec)
	if err != nil {
		return store.CredentialSource{}, err
	}
	return k.cfg.Store.CreateCredentialSource(ctx, team, name, kind, seal)
}

// UpdateSource stores a source's next version; nodes are told of it at once.
func (k *Keeper) UpdateSource(ctx context.Context, team uuid.UUID, name, kind string, spec openapi.CredentialSourceSpec) (store.CredentialSource, error) {
	seal, err := k.sealer(team, name, kind, spec)
	if err != nil {
		return store.CredentialSource{}, err
	}
	updated, err := k.cfg.Store.UpdateCredentialSource(ctx, team, name, kind, seal)
	if err == nil {
		k.Kick()
	}
	return updated, err
}

func (k *Keeper) sealer(team uuid.UUID, name, kind string, spec openapi.CredentialSourceSpec) (store.Seal, error) {
	if k.cfg.Key == nil {
		return nil, ErrNoSources
	}
	if !policy.ValidRef(name) {
		return nil, wrong("name must be from 1 to 128 letters, digits, dots, hyphens and underscores")
	}
	secret, err := secretOf(kind, spec)
	if err != nil {
		return nil, err
	}
	return func(version int64) (sealed.Blob, error) {
		return k.cfg.Key.SealSecret(sealed.Of{Team: team.String(), Source: name, Kind: kind, Version: version}, secret)
	}, nil
}

func wrong(format string, args ...any) error {
	return errdefs.New(errdefs.InvalidArgument, format, args...)
}

// secretOf checks what a source is to hold. Errors never quote it.
func secretOf(kind string, s openapi.CredentialSourceSpec) (sealed.Secret, error) {
	given := map[string]bool{
		policy.StaticHeaders: s.StaticHeaders != nil, policy.StaticTLS: s.StaticTLSClientCertificate != nil,
		policy.StaticUserPass: s.StaticUsernamePassword != nil, policy.StaticSSH: s.StaticSSHPrivateKey != nil,
	}
	if _, known := given[kind]; !known {
		return sealed.Secret{}, wrong("resolverKind must be one of %s, %s, %s, %s", policy.StaticHeaders, policy.StaticTLS, policy.StaticUserPass, policy.StaticSSH)
	}
	for k, is := range given {
		if is != (k == kind) {
			return sealed.Secret{}, wrong("spec must have what resolverKind %s says, and that alone", kind)
		}
	}
	switch kind {
	case policy.StaticHeaders:
		return headers(s.StaticHeaders.Values)
	case policy.StaticTLS:
		return certificate(*s.StaticTLSClientCertificate)
	case policy.StaticUserPass:
		return userPass(*s.StaticUsernamePassword)
	}
	return sshKey(*s.StaticSSHPrivateKey)
}

func headers(values map[string]string) (sealed.Secret, error) {
	if len(values) == 0 || len(values) > maxValues {
		return sealed.Secret{}, wrong("spec.staticHeaders.values must have from 1 to %d", maxValues)
	}
	total := 0
	for name, v := range values {
		if !plainName(name) {
			return sealed.Secret{}, wrong("spec.staticHeaders.values: names are from 1 to %d letters, digits, hyphens and underscores", maxNameBytes)
		}
		if err := plainValue("spec.staticHeaders.values", v); err != nil {
			return sealed.Secret{}, err
		}
		total += len(name) + len(v)
	}
	if total > maxPEMBytes {
		return sealed.Secret{}, wrong("spec.staticHeaders.values must have at most %d bytes in all", maxPEMBytes)
	}
	return sealed.Secret{Values: values}, nil
}

func plainName(s string) bool {
	return s != "" && len(s) <= maxNameBytes && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	})
}

// plainValue wants what can stand in a header: nothing that could end its line.
func plainValue(where, v string) error {
	if v == "" || len(v) > maxValueBytes || !utf8.ValidString(v) || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return wrong("%s: values are from 1 to %d bytes of printable text", where, maxValueBytes)
	}
	return nil
}

func userPass(s openapi.StaticUsernamePasswordSource) (sealed.Secret, error) {
	for where, v := range map[string]string{"spec.staticUsernamePassword.username": s.Username, "spec.staticUsernamePassword.password": s.Password} {
		if err := plainValue(where, v); err != nil {
			return sealed.Secret{}, err
		}
	}
	return sealed.Secret{Values: map[string]string{"username": s.Username, "password": s.Password}}, nil
}

func certificate(s openapi.StaticTLSClientCertificateSource) (sealed.Secret, error) {
	const where = "spec.staticTLSClientCertificate"
	ca := ""
	if s.CaPem != nil {
		ca = *s.CaPem
	}
	if len(s.CertificatePem)+len(s.PrivateKeyPem)+len(ca) > maxPEMBytes {
		return sealed.Secret{}, wrong("%s must have at most %d bytes in all", where, maxPEMBytes)
	}
	if _, err := tls.X509KeyPair([]byte(s.CertificatePem), []byte(s.PrivateKeyPem)); err != nil {
		return sealed.Secret{}, wrong("%s: certificatePem and privateKeyPem must be a certificate and its key, in PEM", where)
	}
	if ca != "" && !certificates(ca) {
		return sealed.Secret{}, wrong("%s.caPem must be certificates in PEM", where)
	}
	return sealed.Secret{CertificatePEM: s.CertificatePem, PrivateKeyPEM: s.PrivateKeyPem, CAPEM: ca}, nil
}

// certificates reports whether a text is certificates and nothing else.
func certificates(text string) bool {
	rest := []byte(text)
	for n := 0; ; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return n > 0 && strings.TrimSpace(string(rest)) == ""
		}
		if _, err := x509.ParseCertificate(block.Bytes); block.Type != "CERTIFICATE" || err != nil {
			return false
		}
	}
}

func sshKey(s openapi.StaticSSHPrivateKeySource) (sealed.Secret, error) {
	const where = "spec.staticSSHPrivateKey"
	phrase := ""
	if s.Passphrase != nil {
		phrase = *s.Passphrase
	}
	if len(s.PrivateKeyPem) > maxPEMBytes || len(phrase) > maxValueBytes {
		return sealed.Secret{}, wrong("%s is too large", where)
	}
	var err error
	if phrase == "" {
		_, err = ssh.ParseRawPrivateKey([]byte(s.PrivateKeyPem))
	} else {
		_, err = ssh.ParseRawPrivateKeyWithPassphrase([]byte(s.PrivateKeyPem), []byte(phrase))
	}
	if err != nil {
		return sealed.Secret{}, wrong("%s: privateKeyPem must be an SSH private key that its passphrase, if it has one, opens", where)
	}
	return sealed.Secret{PrivateKeyPEM: s.PrivateKeyPem, Passphrase: phrase}, nil
}
