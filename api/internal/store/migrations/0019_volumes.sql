-- Volumes, which outlive sandboxes. Their files lie in a store that one node has for
-- itself or several share; a row is there before them and goes after them, so that what a
-- store keeps has always somebody who wants it, or wants it gone.
--
--   (POST) ──► creating ──► ready ──► deleting ──► (no row)
--                  │ failed, lease over    ▲ deleted, its team deleted
--                  └───────────────────────┘
--
-- One node at a time may write to a volume: the one that the row names, at the row's
-- epoch. Every new writer, a sandbox or another node, has an epoch of its own, which is
-- decided here before anybody is asked: a node refuses what is of an older one. nodes are
-- all that have ever had to do with the volume, and are told when it goes.

CREATE TABLE volumes (
    id              uuid PRIMARY KEY,
    team_id         uuid NOT NULL,
    user_id         uuid NOT NULL,
    source_id       uuid,          -- the volume that it was made from; it may be gone
    state           text NOT NULL CHECK (state IN ('creating', 'ready', 'deleting')),
    backend         text NOT NULL CHECK (backend IN ('s0fs', 's3')),
    access_mode     text NOT NULL CHECK (access_mode IN ('RWO', 'ROX', 'RWX')),
    uid             integer NOT NULL,
    gid             integer NOT NULL,
    bucket          jsonb,         -- of backend s3, without its credential
    sealed_key      text,          -- of that
    sealed          bytea,
    store           text NOT NULL, -- as nodes name it
    node            text NOT NULL,
    nodes           text[] NOT NULL,
    epoch           bigint NOT NULL DEFAULT 1,
    bytes           bigint NOT NULL DEFAULT 0,
    counted_at      timestamptz NOT NULL DEFAULT now(), -- bytes
    idempotency_key text,
    request_hash    bytea,
    lease_until     timestamptz,   -- creating: it has failed then; deleting: nodes are told again
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    CHECK ((backend = 's3') = (bucket IS NOT NULL AND sealed IS NOT NULL AND sealed_key IS NOT NULL))
);
CREATE INDEX volumes_list ON volumes (team_id, created_at DESC, id);
CREATE INDEX volumes_due ON volumes (lease_until) WHERE lease_until IS NOT NULL;
CREATE UNIQUE INDEX volumes_idempotency ON volumes (team_id, idempotency_key) WHERE idempotency_key IS NOT NULL;

-- What a volume was at an instant. It goes with its volume; what was made from it needs
-- neither. That one was deleted is remembered for a day: deleting it again succeeds.
CREATE TABLE volume_snapshots (
    id          uuid PRIMARY KEY,
    volume_id   uuid NOT NULL REFERENCES volumes (id) ON DELETE CASCADE,
    team_id     uuid NOT NULL,
    user_id     uuid NOT NULL,
    state       text NOT NULL CHECK (state IN ('creating', 'ready', 'deleting', 'deleted')),
    name        text NOT NULL,
    description text NOT NULL,
    size_bytes  bigint NOT NULL DEFAULT 0,
    created_at  timestamptz NOT NULL DEFAULT now(),
    expires_at  timestamptz,
    lease_until timestamptz -- as above; deleted: when that is forgotten
);
CREATE INDEX volume_snapshots_list ON volume_snapshots (volume_id, created_at DESC);
CREATE INDEX volume_snapshots_team ON volume_snapshots (team_id);
CREATE INDEX volume_snapshots_due ON volume_snapshots (least(expires_at, lease_until)) WHERE least(expires_at, lease_until) IS NOT NULL;

-- Who has a volume. A claim, or a mount into a running sandbox, takes it under a lease,
-- before its node is asked. The lease becomes the sandbox's in the transaction that
-- stores the claim, or with the node's answer, and ends with the sandbox.
CREATE TABLE volume_mounts (
    id          uuid PRIMARY KEY,
    volume_id   uuid NOT NULL REFERENCES volumes (id) ON DELETE CASCADE,
    team_id     uuid NOT NULL,
    claim_id    uuid NOT NULL,       -- whose it is
    sandbox_id  text REFERENCES sandboxes (id) ON DELETE CASCADE, -- NULL: its claim is under way
    mount_point text NOT NULL,
    read_only   boolean NOT NULL,
    lease_until timestamptz,         -- NULL: mounted
    created_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (claim_id, mount_point),
    UNIQUE (claim_id, volume_id)
);
CREATE INDEX volume_mounts_volume ON volume_mounts (volume_id);
CREATE INDEX volume_mounts_sandbox ON volume_mounts (sandbox_id);
CREATE INDEX volume_mounts_lease ON volume_mounts (lease_until) WHERE lease_until IS NOT NULL;

CREATE FUNCTION s0_free_volumes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM volume_mounts WHERE sandbox_id = NEW.id;
    RETURN NULL;
END $$;
CREATE TRIGGER sandboxes_free_volumes AFTER UPDATE OF status, deleted_at ON sandboxes FOR EACH ROW
    WHEN (NEW.status = 'failed' AND OLD.status <> 'failed' OR NEW.deleted_at IS NOT NULL AND OLD.deleted_at IS NULL)
    EXECUTE FUNCTION s0_free_volumes();

-- What snapshots of a team take: of sandboxes' files and of volumes.
CREATE FUNCTION s0_snapshot_bytes(team uuid) RETURNS numeric LANGUAGE sql STABLE AS $$
    SELECT coalesce((SELECT sum(size_bytes) FROM rootfs_snapshots WHERE team_id = team AND state <> 'deleting'), 0)
        + coalesce((SELECT sum(size_bytes) FROM volume_snapshots WHERE team_id = team AND state IN ('creating', 'ready')), 0)
$$;

-- What a team's volumes may grow to, in bytes, by its quota; NULL: to anything.
CREATE FUNCTION s0_volume_quota(team uuid) RETURNS numeric LANGUAGE sql STABLE AS $$
    SELECT l.limit_value * 1000000000::numeric FROM s0_limits(team) l WHERE l.dimension = 'volume_storage_gb'
$$;

-- What one may grow to while its team's others stay as they are; 0: to anything.
CREATE FUNCTION s0_volume_limit(team uuid, volume uuid) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT coalesce(greatest(1, s0_volume_quota(team)
        - (SELECT coalesce(sum(bytes), 0) FROM volumes WHERE team_id = team AND id <> volume AND state <> 'deleting')), 0)::bigint
$$;

-- Metering, as of sandboxes: what happened to volumes becomes events, and what nodes
-- counted of them hours; the volume's id is in the column of the sandbox's.
CREATE TABLE metering_volume_changes (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at        timestamptz NOT NULL DEFAULT now(),
    type      text NOT NULL CHECK (type IN ('volume.created', 'volume.deleted', 'volume.forked', 'snapshot.created', 'snapshot.deleted', 'snapshot.restored')),
    team_id   uuid NOT NULL,
    user_id   uuid NOT NULL,
    volume_id uuid NOT NULL
);
CREATE INDEX metering_volume_changes_at ON metering_volume_changes (at);

CREATE TABLE metering_volume_counts (
    volume_id uuid NOT NULL,
    hour      timestamptz NOT NULL,
    team_id   uuid NOT NULL,
    byte_ms   numeric NOT NULL,
    PRIMARY KEY (hour, volume_id)
);

CREATE FUNCTION s0_volume_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.state = 'ready' THEN
        INSERT INTO metering_volume_changes (type, team_id, user_id, volume_id)
        VALUES (CASE WHEN NEW.source_id IS NULL THEN 'volume.created' ELSE 'volume.forked' END, NEW.team_id, NEW.user_id, NEW.id);
    ELSIF OLD.state = 'ready' THEN
        INSERT INTO metering_volume_changes (type, team_id, user_id, volume_id) VALUES ('volume.deleted', NEW.team_id, NEW.user_id, NEW.id);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER volumes_changed AFTER UPDATE OF state ON volumes FOR EACH ROW
    WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION s0_volume_changed();

CREATE FUNCTION s0_volume_snapshot_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.state = 'ready' THEN
        INSERT INTO metering_volume_changes (type, team_id, user_id, volume_id) VALUES ('snapshot.created', NEW.team_id, NEW.user_id, NEW.volume_id);
    ELSIF OLD.state = 'ready' THEN
        INSERT INTO metering_volume_changes (type, team_id, user_id, volume_id) VALUES ('snapshot.deleted', NEW.team_id, NEW.user_id, NEW.volume_id);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER volume_snapshots_changed AFTER UPDATE OF state ON volume_snapshots FOR EACH ROW
    WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION s0_volume_snapshot_changed();

CREATE FUNCTION s0_with(list text[], item text) RETURNS text[] LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN item = ANY (list) THEN list ELSE list || item END
$$;
