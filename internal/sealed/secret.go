package sealed

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
)

// Secret is what a credential source holds. Its kind says which fields are set.
// It shows itself to nobody: what prints, logs or marshals it gets REDACTED.
type Secret struct {
	Values         map[string]string // of headers and templates; `username` and `password` of that kind
	CertificatePEM string
	PrivateKeyPEM  string
	CAPEM          string
	Passphrase     string
}

const redacted = "REDACTED"

// String says nothing.
func (Secret) String() string { return redacted }

// GoString says nothing.
func (Secret) GoString() string { return redacted }

// Format says nothing, whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// LogValue says nothing.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON says nothing.
func (Secret) MarshalJSON() ([]byte, error) { return json.Marshal(redacted) }

// plain is a Secret that marshals, for sealing alone.
type plain struct {
	Values         map[string]string `json:"values,omitempty"`
	CertificatePEM string            `json:"certificate_pem,omitempty"`
	PrivateKeyPEM  string            `json:"private_key_pem,omitempty"`
	CAPEM          string            `json:"ca_pem,omitempty"`
	Passphrase     string            `json:"passphrase,omitempty"`
}

// SealSecret seals what a source holds.
func (k *PublicKey) SealSecret(of Of, s Secret) (Blob, error) {
	b, err := json.Marshal(plain(s))
	if err != nil {
		return Blob{}, errors.New("sealing a credential: it can't be encoded")
	}
	defer clear(b)
	return k.Seal(of, b)
}

// OpenSecret opens it.
func (r *Keyring) OpenSecret(of Of, b Blob) (Secret, error) {
	data, err := r.Open(of, b)
	if err != nil {
		return Secret{}, err
	}
	defer clear(data)
	var p plain
	if json.Unmarshal(data, &p) != nil {
		return Secret{}, ErrOpen // the decoder's error may quote it
	}
	return Secret(p), nil
}
