-- Snapshots of sandboxes' root filesystems. The files lie on a node; the row is there
-- before them and goes after them, so that what a node keeps has always somebody who
-- wants it, or wants it gone.
--
--   (POST) ──► creating ──► ready ──► deleting ──► (no row)
--                  │ failed, lease over    ▲ deleted, expired, its team deleted
--                  └───────────────────────┘
--
-- The sandbox may end before its snapshots; parent_id may name one that is gone.

CREATE TABLE rootfs_snapshots (
    id          uuid PRIMARY KEY,
    team_id     uuid NOT NULL,
    user_id     uuid NOT NULL,
    sandbox_id  text NOT NULL,
    template_id text NOT NULL,
    parent_id   uuid, -- what the sandbox began with, or went back to last
    node        text NOT NULL,
    state       text NOT NULL CHECK (state IN ('creating', 'ready', 'deleting')),
    name        text NOT NULL,
    description text NOT NULL,
    size_bytes  bigint NOT NULL DEFAULT 0,
    created_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz,
    lease_until timestamptz -- creating: it has failed then; deleting: its node is told again
);
CREATE INDEX rootfs_snapshots_list ON rootfs_snapshots (team_id, sandbox_id, created_at DESC);
CREATE INDEX rootfs_snapshots_due ON rootfs_snapshots (least(expires_at, lease_until)) WHERE least(expires_at, lease_until) IS NOT NULL;

-- The snapshot that a sandbox began with, or went back to last.
ALTER TABLE sandboxes ADD COLUMN snapshot_id uuid;
