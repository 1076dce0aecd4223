package httpapi

import "s0.run/api/internal/auth"

// access is who may call an operation.
type access struct {
	who  caller
	perm auth.Permission // what the caller's roles in the team must grant; "": nothing
}

type caller int

const (
	nobody      caller = iota // not even a token is looked at
	user                      // a person: an API key is refused
	userTeam                  // a person who acts in a team
	keyAlone                  // an API key: a person is refused
	anyInTeam                 // a person or a key, in a team
	systemAdmin               // an admin of the whole system, or a platform key

	// Of the team that the path names. To everybody else it does not exist.
	member       // a person in it
	memberOrSelf // a person in it, who needs the permission for another than himself
	owner        // the person who owns it
)

// operations says of every route who may call it. A route that is not listed is
// served to nobody. A test holds this table against openapi.yaml.
var operations = map[string]access{
	"GET /healthz":  {who: nobody},
	"GET /readyz":   {who: nobody},
	"GET /metadata": {who: nobody},
	"GET /metrics":  {who: nobody},

	"GET /docs":         {who: nobody},
	"GET /openapi.yaml": {who: nobody},
	"GET /openapi.json": {who: nobody},

	"GET /api/v1/audit":      {anyInTeam, auth.AuditRead},
	"GET /internal/v1/audit": {who: systemAdmin},

	"GET /api/v1/quotas":                                     {anyInTeam, auth.QuotaRead},
	"GET /api/v1/quotas/{dimension}":                         {anyInTeam, auth.QuotaRead},
	"GET /api/v1/usage/windows":                              {anyInTeam, auth.QuotaRead},
	"PUT /internal/v1/teams/{team_id}/quotas/{dimension}":    {who: systemAdmin},
	"DELETE /internal/v1/teams/{team_id}/quotas/{dimension}": {who: systemAdmin},
	"GET /internal/v1/metering/status":                       {who: systemAdmin},
	"GET /internal/v1/metering/events":                       {who: systemAdmin},
	"GET /internal/v1/metering/windows":                      {who: systemAdmin},

	"GET /auth/providers": {who: nobody},
	"POST /auth/login":    {who: nobody},
	"POST /auth/refresh":  {who: nobody},

	"GET /auth/oidc/{provider}/login":         {who: nobody},
	"GET /auth/oidc/{provider}/callback":      {who: nobody},
	"POST /auth/oidc/{provider}/device/start": {who: nobody},
	"POST /auth/oidc/{provider}/device/poll":  {who: nobody},
	"POST /auth/web-login/exchange":           {who: nobody},

	"POST /auth/logout":          {who: user},
	"POST /auth/change-password": {who: user},
	"POST /auth/register":        {who: nobody},
	"POST /auth/region-token":    {who: user},
	"GET /tenant/active":         {who: user},

	"GET /users/me":                    {who: user},
	"PUT /users/me":                    {who: user},
	"GET /users/me/identities":         {who: user},
	"DELETE /users/me/identities/{id}": {who: user},
	"GET /users/me/ssh-keys":           {who: userTeam},
	"POST /users/me/ssh-keys":          {who: userTeam},
	"DELETE /users/me/ssh-keys/{id}":   {who: userTeam},

	"GET /teams":                           {who: user},
	"POST /teams":                          {who: user},
	"GET /teams/{id}":                      {who: member},
	"PUT /teams/{id}":                      {member, auth.TeamManage},
	"DELETE /teams/{id}":                   {who: owner},
	"PUT /teams/{id}/owner":                {who: owner},
	"GET /teams/{id}/members":              {who: member},
	"POST /teams/{id}/members":             {member, auth.TeamManage},
	"PUT /teams/{id}/members/{user_id}":    {member, auth.TeamManage},
	"DELETE /teams/{id}/members/{user_id}": {memberOrSelf, auth.TeamManage},

	"GET /regions":         {who: systemAdmin},
	"POST /regions":        {who: systemAdmin},
	"GET /regions/{id}":    {who: systemAdmin},
	"PUT /regions/{id}":    {who: systemAdmin},
	"DELETE /regions/{id}": {who: systemAdmin},

	"GET /internal/v1/users":      {who: systemAdmin},
	"PUT /internal/v1/users/{id}": {who: systemAdmin},

	"GET /api-keys":                  {userTeam, auth.APIKeyManage},
	"POST /api-keys":                 {userTeam, auth.APIKeyManage},
	"GET /api-keys/current":          {who: keyAlone},
	"DELETE /api-keys/{id}":          {userTeam, auth.APIKeyManage},
	"POST /api-keys/{id}/deactivate": {userTeam, auth.APIKeyManage},

	"GET /api/v1/credential-sources":           {anyInTeam, auth.CredentialSourceRead},
	"POST /api/v1/credential-sources":          {anyInTeam, auth.CredentialSourceWrite},
	"GET /api/v1/credential-sources/{name}":    {anyInTeam, auth.CredentialSourceRead},
	"PUT /api/v1/credential-sources/{name}":    {anyInTeam, auth.CredentialSourceWrite},
	"DELETE /api/v1/credential-sources/{name}": {anyInTeam, auth.CredentialSourceDelete},

	"POST /api/v1/registry/credentials": {anyInTeam, auth.RegistryWrite},

	"GET /api/v1/templates":                  {anyInTeam, auth.TemplateRead},
	"POST /api/v1/templates":                 {anyInTeam, auth.TemplateCreate},
	"POST /api/v1/templates/from-sandbox":    {anyInTeam, auth.TemplateCreate},
	"GET /api/v1/templates/{template_id}":    {anyInTeam, auth.TemplateRead},
	"PUT /api/v1/templates/{template_id}":    {anyInTeam, auth.TemplateWrite},
	"DELETE /api/v1/templates/{template_id}": {anyInTeam, auth.TemplateDelete},

	"GET /api/v1/sandboxes":               {anyInTeam, auth.SandboxRead},
	"POST /api/v1/sandboxes":              {anyInTeam, auth.SandboxCreate},
	"GET /api/v1/sandboxes/{id}":          {anyInTeam, auth.SandboxRead},
	"PUT /api/v1/sandboxes/{id}":          {anyInTeam, auth.SandboxWrite},
	"DELETE /api/v1/sandboxes/{id}":       {anyInTeam, auth.SandboxDelete},
	"GET /api/v1/sandboxes/{id}/status":   {anyInTeam, auth.SandboxRead},
	"POST /api/v1/sandboxes/{id}/refresh": {anyInTeam, auth.SandboxWrite},
	"POST /api/v1/sandboxes/{id}/pause":   {anyInTeam, auth.SandboxWrite},
	"POST /api/v1/sandboxes/{id}/fork":    {anyInTeam, auth.SandboxCreate},
	"POST /api/v1/sandboxes/{id}/resume":  {anyInTeam, auth.SandboxWrite},

	"POST /api/v1/sandboxes/{id}/snapshots":                 {anyInTeam, auth.SandboxWrite},
	"GET /api/v1/sandboxes/{id}/snapshots":                  {anyInTeam, auth.SandboxRead},
	"POST /api/v1/sandboxes/{id}/rootfs/restore":            {anyInTeam, auth.SandboxWrite},
	"GET /api/v1/sandbox-rootfs-snapshots/{snapshot_id}":    {anyInTeam, auth.SandboxRead},
	"DELETE /api/v1/sandbox-rootfs-snapshots/{snapshot_id}": {anyInTeam, auth.SandboxWrite},

	"POST /api/v1/sandboxes/{id}/sandboxvolumes/mount":   {anyInTeam, auth.SandboxWrite},
	"POST /api/v1/sandboxes/{id}/sandboxvolumes/unmount": {anyInTeam, auth.SandboxWrite},
	"GET /api/v1/sandboxes/{id}/sandboxvolumes/status":   {anyInTeam, auth.SandboxRead},

	"GET /api/v1/sandboxvolumes":                                       {anyInTeam, auth.VolumeRead},
	"POST /api/v1/sandboxvolumes":                                      {anyInTeam, auth.VolumeCreate},
	"GET /api/v1/sandboxvolumes/{id}":                                  {anyInTeam, auth.VolumeRead},
	"DELETE /api/v1/sandboxvolumes/{id}":                               {anyInTeam, auth.VolumeDelete},
	"POST /api/v1/sandboxvolumes/{id}/fork":                            {anyInTeam, auth.VolumeWrite},
	"GET /api/v1/sandboxvolumes/{id}/snapshots":                        {anyInTeam, auth.VolumeRead},
	"POST /api/v1/sandboxvolumes/{id}/snapshots":                       {anyInTeam, auth.VolumeWrite},
	"GET /api/v1/sandboxvolumes/{id}/snapshots/{snapshot_id}":          {anyInTeam, auth.VolumeRead},
	"DELETE /api/v1/sandboxvolumes/{id}/snapshots/{snapshot_id}":       {anyInTeam, auth.VolumeWrite},
	"POST /api/v1/sandboxvolumes/{id}/snapshots/{snapshot_id}/restore": {anyInTeam, auth.VolumeWrite},

	"GET /api/v1/sandboxvolumes/{id}/files":         {anyInTeam, auth.VolumeFileRead},
	"POST /api/v1/sandboxvolumes/{id}/files":        {anyInTeam, auth.VolumeFileWrite},
	"DELETE /api/v1/sandboxvolumes/{id}/files":      {anyInTeam, auth.VolumeFileWrite},
	"GET /api/v1/sandboxvolumes/{id}/files/stat":    {anyInTeam, auth.VolumeFileRead},
	"GET /api/v1/sandboxvolumes/{id}/files/list":    {anyInTeam, auth.VolumeFileRead},
	"POST /api/v1/sandboxvolumes/{id}/files/move":   {anyInTeam, auth.VolumeFileWrite},
	"GET /api/v1/sandboxvolumes/{id}/files/watch":   {anyInTeam, auth.VolumeFileRead},
	"GET /api/v1/sandboxvolumes/{id}/files/archive": {anyInTeam, auth.VolumeFileRead},
	"PUT /api/v1/sandboxvolumes/{id}/files/archive": {anyInTeam, auth.VolumeFileWrite},
	"POST /api/v1/sandboxvolumes/{id}/files/search": {anyInTeam, auth.VolumeFileRead},

	"PUT /api/v1/sandboxvolumes/{id}/sync/replicas/{replica_id}":          {anyInTeam, auth.VolumeFileWrite},
	"GET /api/v1/sandboxvolumes/{id}/sync/replicas/{replica_id}":          {anyInTeam, auth.VolumeFileRead},
	"PUT /api/v1/sandboxvolumes/{id}/sync/replicas/{replica_id}/cursor":   {anyInTeam, auth.VolumeFileWrite},
	"POST /api/v1/sandboxvolumes/{id}/sync/replicas/{replica_id}/changes": {anyInTeam, auth.VolumeFileWrite},
	"GET /api/v1/sandboxvolumes/{id}/sync/changes":                        {anyInTeam, auth.VolumeFileRead},
	"GET /api/v1/sandboxvolumes/{id}/sync/replay-payload":                 {anyInTeam, auth.VolumeFileRead},
	"POST /api/v1/sandboxvolumes/{id}/sync/bootstrap":                     {anyInTeam, auth.VolumeWrite},
	"GET /api/v1/sandboxvolumes/{id}/sync/bootstrap/archive":              {anyInTeam, auth.VolumeFileRead},
	"GET /api/v1/sandboxvolumes/{id}/sync/conflicts":                      {anyInTeam, auth.VolumeFileRead},
	"PUT /api/v1/sandboxvolumes/{id}/sync/conflicts/{conflict_id}":        {anyInTeam, auth.VolumeFileWrite},

	"GET /api/v1/sandboxes/{id}/network":                 {anyInTeam, auth.SandboxRead},
	"PUT /api/v1/sandboxes/{id}/network":                 {anyInTeam, auth.SandboxWrite},
	"GET /api/v1/sandboxes/{id}/services":                {anyInTeam, auth.SandboxRead},
	"PUT /api/v1/sandboxes/{id}/services":                {anyInTeam, auth.SandboxWrite},
	"GET /api/v1/sandboxes/{id}/exposed-ports":           {anyInTeam, auth.SandboxRead},
	"PUT /api/v1/sandboxes/{id}/exposed-ports":           {anyInTeam, auth.SandboxWrite},
	"DELETE /api/v1/sandboxes/{id}/exposed-ports":        {anyInTeam, auth.SandboxWrite},
	"DELETE /api/v1/sandboxes/{id}/exposed-ports/{port}": {anyInTeam, auth.SandboxWrite},

	"GET /api/v1/sandboxes/{id}/contexts":                       {anyInTeam, auth.SandboxRead},
	"POST /api/v1/sandboxes/{id}/contexts":                      {anyInTeam, auth.SandboxWrite},
	"GET /api/v1/sandboxes/{id}/contexts/{context_id}":          {anyInTeam, auth.SandboxRead},
	"DELETE /api/v1/sandboxes/{id}/contexts/{context_id}":       {anyInTeam, auth.SandboxWrite},
	"POST /api/v1/sandboxes/{id}/contexts/{context_id}/restart": {anyInTeam, auth.SandboxWrite},
	"POST /api/v1/sandboxes/{id}/contexts/{context_id}/input":   {anyInTeam, auth.SandboxWrite},
	"POST /api/v1/sandboxes/{id}/contexts/{context_id}/exec":    {anyInTeam, auth.SandboxWrite},
	"POST /api/v1/sandboxes/{id}/contexts/{context_id}/resize":  {anyInTeam, auth.SandboxWrite},
	"POST /api/v1/sandboxes/{id}/contexts/{context_id}/signal":  {anyInTeam, auth.SandboxWrite},
	"GET /api/v1/sandboxes/{id}/contexts/{context_id}/stats":    {anyInTeam, auth.SandboxRead},
	"GET /api/v1/sandboxes/{id}/contexts/{context_id}/ws":       {anyInTeam, auth.SandboxWrite},

	"GET /api/v1/sandboxes/{id}/observability/events":  {anyInTeam, auth.SandboxRead},
	"GET /api/v1/sandboxes/{id}/observability/logs":    {anyInTeam, auth.SandboxRead},
	"GET /api/v1/sandboxes/{id}/logs":                  {anyInTeam, auth.SandboxRead},
	"GET /api/v1/sandboxes/{id}/observability/metrics": {anyInTeam, auth.SandboxRead},
	"GET /api/v1/sandboxes/{id}/metrics":               {anyInTeam, auth.SandboxRead},
	"GET /api/v1/sandboxes/{id}/metrics/catalog":       {anyInTeam, auth.SandboxRead},

	"GET /api/v1/sandboxes/{id}/sessions":                            {anyInTeam, auth.SandboxRead},
	"POST /api/v1/sandboxes/{id}/sessions":                           {anyInTeam, auth.SandboxWrite},
	"GET /api/v1/sandboxes/{id}/sessions/{session_id}":               {anyInTeam, auth.SandboxRead},
	"PUT /api/v1/sandboxes/{id}/sessions/{session_id}":               {anyInTeam, auth.SandboxWrite},
	"DELETE /api/v1/sandboxes/{id}/sessions/{session_id}":            {anyInTeam, auth.SandboxWrite},
	"PUT /api/v1/sandboxes/{id}/sessions/{session_id}/desired-state": {anyInTeam, auth.SandboxWrite},
	"POST /api/v1/sandboxes/{id}/sessions/{session_id}/attempts":     {anyInTeam, auth.SandboxWrite},
	"POST /api/v1/sandboxes/{id}/sessions/{session_id}/inputs":       {anyInTeam, auth.SandboxWrite},
	"POST /api/v1/sandboxes/{id}/sessions/{session_id}/signals":      {anyInTeam, auth.SandboxWrite},
	"PUT /api/v1/sandboxes/{id}/sessions/{session_id}/terminal":      {anyInTeam, auth.SandboxWrite},
	"GET /api/v1/sandboxes/{id}/sessions/{session_id}/events":        {anyInTeam, auth.SandboxRead},
	"GET /api/v1/sandboxes/{id}/sessions/{session_id}/events/stream": {anyInTeam, auth.SandboxRead},
	"GET /api/v1/sandboxes/{id}/sessions/{session_id}/ws":            {anyInTeam, auth.SandboxWrite},

	"GET /api/v1/sandboxes/{id}/files":       {anyInTeam, auth.SandboxRead},
	"POST /api/v1/sandboxes/{id}/files":      {anyInTeam, auth.SandboxWrite},
	"DELETE /api/v1/sandboxes/{id}/files":    {anyInTeam, auth.SandboxWrite},
	"GET /api/v1/sandboxes/{id}/files/stat":  {anyInTeam, auth.SandboxRead},
	"GET /api/v1/sandboxes/{id}/files/list":  {anyInTeam, auth.SandboxRead},
	"POST /api/v1/sandboxes/{id}/files/move": {anyInTeam, auth.SandboxWrite},
	"GET /api/v1/sandboxes/{id}/files/watch": {anyInTeam, auth.SandboxRead},

	"GET /api/v1/sandboxes/{id}/files/archive": {anyInTeam, auth.SandboxRead},
	"PUT /api/v1/sandboxes/{id}/files/archive": {anyInTeam, auth.SandboxWrite},
	"POST /api/v1/sandboxes/{id}/files/search": {anyInTeam, auth.SandboxRead},
}
