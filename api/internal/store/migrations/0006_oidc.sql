-- Sign-ins through OpenID providers: who somebody is there, and what is under way
-- between two requests of theirs, which any replica may get. Of every secret that
-- a client holds only the hash is here, and what must come back is sealed with it.

-- A subject is the issuer's: an operator who gives a provider's name to another
-- issuer must not give its users away.
ALTER TABLE user_identities
    ADD COLUMN issuer text NOT NULL DEFAULT '',
    DROP CONSTRAINT user_identities_provider_subject_key,
    ADD CONSTRAINT user_identities_issuer_subject UNIQUE (issuer, subject);

-- Begun in a browser, which is at the provider now.
CREATE TABLE browser_logins (
    state_hash   bytea PRIMARY KEY,
    browser_hash bytea NOT NULL, -- of the cookie of the browser that began
    provider     text NOT NULL,
    return_url   text NOT NULL,  -- where the browser goes with a code; empty: it is answered tokens
    expires_at   timestamptz NOT NULL
);
CREATE INDEX browser_logins_expiry ON browser_logins (expires_at);

-- Begun on a device, and being confirmed in a browser somewhere else.
CREATE TABLE device_logins (
    id_hash       bytea PRIMARY KEY,
    provider      text NOT NULL,
    sealed_code   bytea NOT NULL, -- the provider's device code, sealed with the id
    poll_interval interval NOT NULL,
    next_poll     timestamptz NOT NULL,
    expires_at    timestamptz NOT NULL
);
CREATE INDEX device_logins_expiry ON device_logins (expires_at);

-- Done: a page has the code and may exchange it for tokens, once.
CREATE TABLE login_codes (
    code_hash  bytea PRIMARY KEY,
    user_id    uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    return_url text NOT NULL,
    expires_at timestamptz NOT NULL
);
CREATE INDEX login_codes_expiry ON login_codes (expires_at);
CREATE INDEX login_codes_user ON login_codes (user_id);
