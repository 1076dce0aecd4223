-- The nodes that have joined, and what opens the cluster to others. One machine's node,
-- which is reached over a unix socket, is not here.
--
-- membership is what a node's certificates say beside its name: it is made anew when the
-- node joins, so that those of before are nobody's. A node that was removed keeps its row:
-- that it is gone for good is known, not guessed from its absence.
CREATE TABLE nodes (
    name text PRIMARY KEY,
    membership uuid NOT NULL,
    endpoint text NOT NULL,
    key_sha256 bytea NOT NULL,
    held_key_sha256 bytea, -- of the key that the last one was asked for with: all that the node has if the answer was lost
    certified_until timestamptz NOT NULL,
    joined_at timestamptz NOT NULL DEFAULT now(),
    renewed_at timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz,
    draining_at timestamptz,
    removed_at timestamptz
);
CREATE TRIGGER nodes_changed AFTER INSERT OR UPDATE OF membership, endpoint, draining_at, removed_at ON nodes
    FOR EACH STATEMENT EXECUTE FUNCTION s0_notify_changed();

-- A token is stored as its hash: 160 random bits can't be guessed from it.
CREATE TABLE node_tokens (
    id text PRIMARY KEY,
    secret_sha256 bytea NOT NULL,
    node text,
    uses_left integer NOT NULL CHECK (uses_left >= 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
);
