// Package auth says who is calling and what that caller may do.
//
// It owns the formats of passwords, access tokens and API keys, the table from
// roles to permissions, and the memory of keys and users that were looked up
// lately. What it remembers is seconds old, a minute while the database is away,
// and dropped whenever a key, a membership or a user's rights change anywhere. It
// never stores a secret, never logs a token and leaves the rest of identity (who
// exists) to its callers.
package auth

import (
	"slices"
	"strings"
)

// Permission is one thing that a caller may be allowed to do.
type Permission string

// The permissions of the contract.
const (
	SandboxCreate  Permission = "sandbox:create"
	SandboxRead    Permission = "sandbox:read"
	SandboxWrite   Permission = "sandbox:write"
	SandboxDelete  Permission = "sandbox:delete"
	TemplateCreate Permission = "template:create"
	TemplateRead   Permission = "template:read"
	RegistryWrite  Permission = "registry:write"
	TemplateWrite  Permission = "template:write"
	TemplateDelete Permission = "template:delete"
	APIKeyManage   Permission = "apikey:manage"
	AuditRead      Permission = "audit:read"
	QuotaRead      Permission = "quota:read"
	TeamManage     Permission = "team:manage"

	CredentialSourceRead   Permission = "credentialsource:read"
	CredentialSourceWrite  Permission = "credentialsource:write"
	CredentialSourceDelete Permission = "credentialsource:delete"

	VolumeCreate    Permission = "sandboxvolume:create"
	VolumeRead      Permission = "sandboxvolume:read"
	VolumeWrite     Permission = "sandboxvolume:write"
	VolumeDelete    Permission = "sandboxvolume:delete"
	VolumeFileRead  Permission = "sandboxvolumefile:read"
	VolumeFileWrite Permission = "sandboxvolumefile:write"

	everything Permission = "*"
)

// The roles that a team can give.
const (
	RoleAdmin     = "admin"
	RoleDeveloper = "developer"
	RoleBuilder   = "builder"
	RoleViewer    = "viewer"
)

// granted is the contract's table.
var granted = map[string][]Permission{
	RoleAdmin: {
		everything,
	},
	RoleDeveloper: {
		SandboxCreate, SandboxRead, SandboxWrite, SandboxDelete, TemplateRead, RegistryWrite,
		CredentialSourceRead, CredentialSourceWrite, CredentialSourceDelete,
		VolumeCreate, VolumeRead, VolumeWrite, VolumeDelete, VolumeFileRead, VolumeFileWrite, QuotaRead,
	},
	RoleBuilder: {
		TemplateRead, RegistryWrite,
	},
	RoleViewer: {
		SandboxRead, TemplateRead, CredentialSourceRead, VolumeRead, VolumeFileRead, QuotaRead,
	},
}

// ValidRole reports whether a team can give the role.
func ValidRole(role string) bool { return granted[role] != nil }

// Permissions is what the roles grant together, sorted.
func Permissions(roles []string) []Permission {
	var all []Permission
	for _, r := range roles {
		all = append(all, granted[r]...)
	}
	slices.SortFunc(all, func(a, b Permission) int { return strings.Compare(string(a), string(b)) })
	return slices.Compact(all)
}

func grants(roles []string, p Permission) bool {
	for _, r := range roles {
		if list := granted[r]; slices.Contains(list, p) || slices.Contains(list, everything) {
			return true
		}
	}
	return false
}
