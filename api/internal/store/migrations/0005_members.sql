-- People: how they sign in, what they have in a team, and who is told when what
-- they may do has changed.

-- An email is verified when its owner, or the operator, vouched for it: an
-- identity of another provider may join a user by email only then.
ALTER TABLE users
    ADD COLUMN avatar_url     text NOT NULL DEFAULT '',
    ADD COLUMN email_verified boolean NOT NULL DEFAULT false;
UPDATE users SET email_verified = true; -- only the operator has made users so far

-- An account elsewhere that signs a user in. A password is no row here: it is
-- users.password_hash, which is empty for a user who has none.
CREATE TABLE user_identities (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id    uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    provider   text NOT NULL, -- as configured, such as the name of an OpenID provider
    subject    text NOT NULL, -- the provider's own, stable name of the account
    email      text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (provider, subject)
);
CREATE INDEX user_identities_user ON user_identities (user_id);

-- A public key stands for one person in one team, and goes with the membership.
CREATE TABLE ssh_keys (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    team_id     uuid NOT NULL,
    user_id     uuid NOT NULL,
    name        text NOT NULL,
    public_key  text NOT NULL, -- type and base64, without the comment
    key_type    text NOT NULL,
    fingerprint text NOT NULL, -- SHA256:…
    comment     text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (team_id, fingerprint),
    FOREIGN KEY (team_id, user_id) REFERENCES team_members ON DELETE CASCADE
);
CREATE INDEX ssh_keys_member ON ssh_keys (team_id, user_id);

CREATE INDEX teams_owner ON teams (owner_id);
CREATE INDEX api_keys_creator ON api_keys (created_by);

-- What a person may do is read from here and remembered for seconds; a change
-- tells every replica (A06).
CREATE TRIGGER team_members_changed AFTER INSERT OR DELETE OR UPDATE OF role
    ON team_members FOR EACH STATEMENT EXECUTE FUNCTION s0_notify_changed();
CREATE TRIGGER teams_changed AFTER UPDATE OF owner_id
    ON teams FOR EACH STATEMENT EXECUTE FUNCTION s0_notify_changed();
CREATE TRIGGER users_changed AFTER DELETE OR UPDATE OF is_admin, disabled_at
    ON users FOR EACH STATEMENT EXECUTE FUNCTION s0_notify_changed();

-- Teams that were. A claim that was under way when its team went may leave a
-- sandbox behind: whatever is found of these teams is ended.
CREATE TABLE deleted_teams (
    team_id    uuid PRIMARY KEY,
    slug       text NOT NULL,
    owner_id   uuid NOT NULL,
    deleted_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX deleted_teams_time ON deleted_teams (deleted_at);
