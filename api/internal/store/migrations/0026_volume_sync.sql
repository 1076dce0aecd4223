-- Volumes that are kept alike with directories on people's machines, their replicas. A
-- volume without replicas has no row in any of these tables.
--
-- The journal is what happened to the volume's files, by numbers without gaps. What a
-- replica sends is an entry when it is done; what a sandbox did becomes entries when
-- somebody looks: the files are the truth, and volume_sync_paths what the journal says of
-- them. So a change that was made and not stored is found by the next look.
--
-- One at a time looks or changes, who has the lock: every write of the journal names it.

CREATE TABLE volume_syncs (
    volume_id          uuid PRIMARY KEY REFERENCES volumes (id) ON DELETE CASCADE,
    team_id            uuid NOT NULL,
    head_seq           bigint NOT NULL DEFAULT 0,
    retained_after_seq bigint NOT NULL DEFAULT 0, -- entries up to this one are forgotten
    looked             bytea,                     -- at this tree; NULL: it may have changed since
    looked_at          timestamptz,
    lock_token         uuid,
    lock_until         timestamptz,
    created_at         timestamptz NOT NULL DEFAULT now(),
    CHECK (retained_after_seq <= head_seq)
);

CREATE TABLE volume_sync_replicas (
    volume_id                uuid NOT NULL REFERENCES volume_syncs (volume_id) ON DELETE CASCADE,
    id                       text NOT NULL,
    display_name             text NOT NULL,
    platform                 text NOT NULL,
    root_path                text NOT NULL,
    case_sensitive           boolean NOT NULL,
    unicode_insensitive      boolean NOT NULL,
    windows_compatible_paths boolean NOT NULL,
    last_applied_seq         bigint NOT NULL DEFAULT 0,
    last_seen_at             timestamptz NOT NULL DEFAULT now(),
    lease_until              timestamptz NOT NULL,
    created_at               timestamptz NOT NULL DEFAULT now(),
    updated_at               timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (volume_id, id)
);

CREATE TABLE volume_sync_entries (
    volume_id      uuid NOT NULL REFERENCES volume_syncs (volume_id) ON DELETE CASCADE,
    seq            bigint NOT NULL,
    source         text NOT NULL CHECK (source IN ('replica', 'sandbox')),
    replica_id     text NOT NULL,          -- empty: no replica's
    event          text NOT NULL CHECK (event IN ('create', 'write', 'remove', 'chmod')),
    path           text NOT NULL,
    kind           text NOT NULL CHECK (kind IN ('file', 'directory')),
    mode           integer NOT NULL,
    sha256         text NOT NULL,          -- of a file that is there
    size_bytes     bigint NOT NULL,
    metadata       json,                   -- the replica's own
    created_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (volume_id, seq)
);

-- What the last entry about a path says. One that is gone is remembered as long as that
-- entry is.
CREATE TABLE volume_sync_paths (
    volume_id  uuid NOT NULL REFERENCES volume_syncs (volume_id) ON DELETE CASCADE,
    path       text NOT NULL,
    seq        bigint NOT NULL,
    source     text NOT NULL,
    replica_id text NOT NULL,
    gone       boolean NOT NULL,
    kind       text NOT NULL,
    mode       integer NOT NULL,
    sha256     text NOT NULL,
    size_bytes bigint NOT NULL,
    stamp      text NOT NULL,              -- of the file when it was read; empty: a later change may have the same
    PRIMARY KEY (volume_id, path)
);
CREATE INDEX volume_sync_paths_content ON volume_sync_paths (volume_id, sha256) WHERE NOT gone AND sha256 <> '';
CREATE INDEX volume_sync_paths_gone ON volume_sync_paths (volume_id, seq) WHERE gone;

-- What was answered to a replica's changes, for the same request comes again when the
-- answer was lost.
CREATE TABLE volume_sync_requests (
    volume_id  uuid NOT NULL,
    replica_id text NOT NULL,
    id         text NOT NULL,
    hash       bytea NOT NULL,
    answer     json NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (volume_id, replica_id, id),
    FOREIGN KEY (volume_id, replica_id) REFERENCES volume_sync_replicas (volume_id, id) ON DELETE CASCADE
);

CREATE TABLE volume_sync_conflicts (
    id            uuid PRIMARY KEY,
    volume_id     uuid NOT NULL REFERENCES volume_syncs (volume_id) ON DELETE CASCADE,
    replica_id    text NOT NULL,
    event         text NOT NULL,           -- that was not carried out
    path          text NOT NULL,
    old_path      text NOT NULL,
    artifact_path text NOT NULL,           -- where its content is; empty: it had none
    existing_seq  bigint NOT NULL,         -- of what was in its way; 0: nothing of the journal
    base_seq      bigint NOT NULL,
    reason        text NOT NULL,
    status        text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'resolved', 'ignored')),
    resolution    text NOT NULL DEFAULT '',
    note          text NOT NULL DEFAULT '',
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX volume_sync_conflicts_list ON volume_sync_conflicts (volume_id, created_at DESC, id);
