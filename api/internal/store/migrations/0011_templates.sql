-- Why a public template can't be claimed, for tenants; NULL: it can.
ALTER TABLE templates ADD COLUMN unavailable text;

-- How the making of a template's image from a sandbox goes. One that is creating
-- belongs to the server that renews its lease; when nobody does, it has failed,
-- whatever the row says: template_rows knows. Every change of it changes the
-- template's row as well, which is told to all servers.
CREATE TABLE template_captures (
    template_id  uuid PRIMARY KEY REFERENCES templates (id) ON DELETE CASCADE,
    sandbox_id   text NOT NULL,
    state        text NOT NULL CHECK (state IN ('creating', 'ready', 'failed')),
    stage        text NOT NULL CHECK (stage IN ('capturing', 'publishing', 'reconciling')),
    started_at   timestamptz NOT NULL DEFAULT now(),
    captured_at  timestamptz,
    completed_at timestamptz,
    image        text NOT NULL DEFAULT '', -- by digest, once it is published
    message      text NOT NULL DEFAULT '', -- why it failed, for tenants
    lease_until  timestamptz NOT NULL
);

CREATE VIEW template_rows AS
    SELECT t.id, t.template_id, t.team_id, t.user_id, t.spec, t.created_at, t.updated_at, coalesce(t.unavailable, '') AS unavailable,
           c.sandbox_id AS capture_sandbox,
           CASE WHEN c.state = 'creating' AND c.lease_until < now() THEN 'failed' ELSE c.state END AS capture_state,
           c.stage AS capture_stage, c.started_at, c.captured_at,
           CASE WHEN c.state = 'creating' AND c.lease_until < now() THEN c.lease_until ELSE c.completed_at END AS completed_at,
           c.image AS capture_image,
           CASE WHEN c.state = 'creating' AND c.lease_until < now() THEN 'the server that made it ended' ELSE c.message END AS capture_message,
           coalesce(p.digest, '') AS digest
    FROM templates t LEFT JOIN template_captures c ON c.template_id = t.id
         LEFT JOIN template_pins p ON p.template_id = t.id AND p.image = t.spec->'mainContainer'->>'image';
