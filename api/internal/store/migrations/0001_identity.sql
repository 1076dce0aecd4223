-- Who may do what: users, teams, what a user is in a team, and the two kinds of
-- credentials that outlive a request. Nothing here can be turned back into a
-- password or a token.

CREATE TABLE users (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    email         text NOT NULL,
    name          text NOT NULL,
    password_hash text NOT NULL, -- argon2id, PHC format
    is_admin      boolean NOT NULL DEFAULT false,
    disabled_at   timestamptz,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX users_email ON users (lower(email));

CREATE TABLE teams (
    id             uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name           text NOT NULL,
    slug           text NOT NULL UNIQUE,
    owner_id       uuid NOT NULL REFERENCES users (id),
    home_region_id text NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE team_members (
    team_id    uuid NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    user_id    uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    role       text NOT NULL CHECK (role IN ('admin', 'developer', 'builder', 'viewer')),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (team_id, user_id)
);
CREATE INDEX team_members_user ON team_members (user_id);

-- A refresh token is used once; its successor carries the family on. A second
-- use means that one of two holders is a thief: the family ends.
CREATE TABLE refresh_tokens (
    hash       bytea PRIMARY KEY, -- SHA-256
    family     uuid NOT NULL,
    user_id    uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    used_at    timestamptz
);
CREATE INDEX refresh_tokens_family ON refresh_tokens (family);
CREATE INDEX refresh_tokens_user ON refresh_tokens (user_id);
CREATE INDEX refresh_tokens_expiry ON refresh_tokens (expires_at);

CREATE TABLE api_keys (
    id             uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    team_id        uuid NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    created_by     uuid NOT NULL REFERENCES users (id),
    name           text NOT NULL,
    scope          text NOT NULL CHECK (scope IN ('team', 'platform')),
    roles          text[] NOT NULL,
    prefix         text NOT NULL UNIQUE, -- the public part, by which a key is found
    hash           bytea NOT NULL,       -- SHA-256 of the whole key
    expires_at     timestamptz,          -- NULL: never
    deactivated_at timestamptz,
    last_used_at   timestamptz,
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX api_keys_team ON api_keys (team_id, created_at DESC);

-- Replicas keep keys and templates in memory; each change tells them. The
-- payload is the table's name: a listener drops what it has of that table.
CREATE FUNCTION s0_notify_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('s0_changed', TG_TABLE_NAME);
    RETURN NULL;
END $$;

CREATE TRIGGER api_keys_changed AFTER INSERT OR DELETE OR UPDATE OF roles, hash, expires_at, deactivated_at
    ON api_keys FOR EACH STATEMENT EXECUTE FUNCTION s0_notify_changed();
