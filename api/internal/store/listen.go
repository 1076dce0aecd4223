package store

import "context"

// Tables whose changes are told to listeners.
const (
	TableAPIKeys   = "api_keys"
	TableTemplates = "templates"
	TableUsers     = "users"        // who is disabled, who is an admin of the system
	TableTeams     = "teams"        // who owns a team
	TableMembers   = "team_members" // who is what in a team
	TableQuotas    = "team_quotas"
	TableDefaults  = "quota_defaults"
	TableUses      = "credential_uses" // which sandboxes' nodes have to be told of newer credentials
	TableNodes     = "nodes"           // which nodes there are, where, and which of them is drained
)

// Listen calls changed with a table's name after each change of it that any
// replica made, and with "" once at the start: whatever the caller remembered
// before that may be stale. It returns when the connection or ctx ends; the
// caller decides when to listen again.
func (s *Store) Listen(ctx context.Context, changed func(table string)) error {
	return s.listen(ctx, "s0_changed", changed)
}
