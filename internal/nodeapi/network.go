package nodeapi

import "s0.run/internal/sealed"

// CredentialsToWire puts sealed credentials into messages.
func CredentialsToWire(list []sealed.Credential) []*SealedCredential {
	out := make([]*SealedCredential, 0, len(list))
	for _, c := range list {
		out = append(out, &SealedCredential{Source: c.Source, Kind: c.Kind, Version: c.Version, Key: c.Blob.Key, Data: c.Blob.Data})
	}
	return out
}

// CredentialsFromWire reads them again.
func CredentialsFromWire(list []*SealedCredential) (out []sealed.Credential) {
	for _, c := range list {
		out = append(out, sealed.Credential{
			Source: c.GetSource(), Kind: c.GetKind(), Version: c.GetVersion(), Blob: sealed.Blob{Key: c.GetKey(), Data: c.GetData()},
		})
	}
	return out
}
