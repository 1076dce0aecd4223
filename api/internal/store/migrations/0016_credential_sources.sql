-- Credential sources of teams, sealed to a key that no API server has (package
-- sealed).
CREATE TABLE credential_sources (
    team_id    uuid NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    name       text NOT NULL,
    kind       text NOT NULL,
    version    bigint NOT NULL,
    sealed_key text NOT NULL,  -- the id of the key that opens it
    sealed     bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (team_id, name)
);
