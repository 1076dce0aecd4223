-- Every acknowledged sandbox, and what was asked for it. The node's journal is
-- the truth about the instance; this row is the truth about what it is for.
--
--   (claim) ──► running ──► failed          the node says that it ended by itself
--                  │           │
--                  └─────┬─────┘
--                        ▼
--                   terminating ──► deleted_at set, kept as a tombstone
--
-- claim_id is the claim's identity: a node's sandbox belongs to a row only when
-- both carry the same one.

CREATE TABLE sandboxes (
    id               text PRIMARY KEY,
    team_id          uuid NOT NULL,
    user_id          uuid NOT NULL,
    claim_id         uuid NOT NULL,
    template_id      text NOT NULL,
    node             text NOT NULL,
    generation       bigint NOT NULL,
    status           text NOT NULL CHECK (status IN ('starting', 'running', 'paused', 'terminating', 'failed')),
    reason           text NOT NULL DEFAULT '', -- why it failed or ends; for operators
    config           jsonb NOT NULL,           -- the contract's SandboxConfig, as asked and updated
    memory_bytes     bigint NOT NULL,
    ttl_seconds      integer NOT NULL,         -- 0: none
    hard_ttl_seconds integer NOT NULL,         -- 0: none
    expires_at       timestamptz,
    hard_expires_at  timestamptz,
    idempotency_key  text,
    request_hash     bytea, -- of the request that came with the key
    claimed_at       timestamptz NOT NULL DEFAULT now(),
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    deleted_at       timestamptz
);
CREATE INDEX sandboxes_list ON sandboxes (team_id, created_at DESC, id) WHERE deleted_at IS NULL;
CREATE INDEX sandboxes_node ON sandboxes (node) WHERE deleted_at IS NULL;
CREATE INDEX sandboxes_expiry ON sandboxes (least(expires_at, hard_expires_at))
    WHERE deleted_at IS NULL AND least(expires_at, hard_expires_at) IS NOT NULL;
CREATE INDEX sandboxes_deleted ON sandboxes (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE UNIQUE INDEX sandboxes_idempotency ON sandboxes (team_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
