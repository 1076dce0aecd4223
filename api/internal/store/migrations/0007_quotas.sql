-- What teams may use, what they use, and what they have used.
--
-- Quotas. A limit is the team's own or the deployment's default; a team's own NULL
-- stands above a default: no limit. A team whose sandboxes are limited has a row in
-- team_usage, and only such a team: who has no limit shares no row with anybody.
-- Triggers keep that row in the transaction that changes a sandbox, so that it
-- can't drift, and refuse what goes beyond a limit. A batch of claims is refused
-- whole.

CREATE TABLE quota_defaults (
    dimension   text PRIMARY KEY,
    limit_value bigint NOT NULL CHECK (limit_value >= 0),
    interval_ms bigint,
    burst_value bigint
);

CREATE TABLE team_quotas (
    team_id     uuid NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    dimension   text NOT NULL,
    limit_value bigint CHECK (limit_value >= 0), -- NULL: none
    interval_ms bigint,
    burst_value bigint,
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (team_id, dimension)
);

CREATE TABLE team_usage (
    team_id      uuid PRIMARY KEY REFERENCES teams (id) ON DELETE CASCADE,
    sandboxes    bigint NOT NULL,
    memory_bytes bigint NOT NULL
);

CREATE TRIGGER quota_defaults_changed AFTER INSERT OR UPDATE OR DELETE
    ON quota_defaults FOR EACH STATEMENT EXECUTE FUNCTION s0_notify_changed();
CREATE TRIGGER team_quotas_changed AFTER INSERT OR UPDATE OR DELETE
    ON team_quotas FOR EACH STATEMENT EXECUTE FUNCTION s0_notify_changed();

-- s0_limits are the limits that hold for a team.
CREATE FUNCTION s0_limits(team uuid) RETURNS TABLE (dimension text, limit_value bigint) LANGUAGE sql STABLE AS $$
    SELECT q.dimension, q.limit_value FROM team_quotas q WHERE q.team_id = team AND q.limit_value IS NOT NULL
    UNION ALL
    SELECT d.dimension, d.limit_value FROM quota_defaults d
    WHERE NOT EXISTS (SELECT FROM team_quotas q WHERE q.team_id = team AND q.dimension = d.dimension)
$$;

-- s0_uses reports whether a sandbox takes compute. Its team pays for it as long.
CREATE FUNCTION s0_uses(status text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT status IN ('starting', 'running')
$$;

-- s0_limit_teams gives every team that is limited its row in team_usage, and takes
-- it from the others. No sandbox changes meanwhile: a change that had looked for
-- the row before there was one would be missing in it for good.
CREATE FUNCTION s0_limit_teams() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    LOCK TABLE teams, sandboxes IN SHARE ROW EXCLUSIVE MODE;
    DELETE FROM team_usage u WHERE NOT EXISTS (
        SELECT FROM s0_limits(u.team_id) l WHERE l.dimension IN ('active_sandboxes', 'cpu_millicpu', 'memory_mib'));
    INSERT INTO team_usage (team_id, sandboxes, memory_bytes)
    SELECT t.id, count(s.id), coalesce(sum(s.memory_bytes), 0)
    FROM teams t LEFT JOIN sandboxes s ON s.team_id = t.id AND s.deleted_at IS NULL AND s0_uses(s.status)
    WHERE NOT EXISTS (SELECT FROM team_usage u WHERE u.team_id = t.id)
    AND EXISTS (SELECT FROM s0_limits(t.id) l WHERE l.dimension IN ('active_sandboxes', 'cpu_millicpu', 'memory_mib'))
    GROUP BY t.id;
END $$;

-- A team that is made while there are defaults begins with nothing.
CREATE FUNCTION s0_limit_team() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO team_usage (team_id, sandboxes, memory_bytes)
    SELECT NEW.id, 0, 0
    WHERE EXISTS (SELECT FROM quota_defaults WHERE dimension IN ('active_sandboxes', 'cpu_millicpu', 'memory_mib'));
    RETURN NULL;
END $$;

CREATE TRIGGER teams_limited AFTER INSERT ON teams FOR EACH ROW EXECUTE FUNCTION s0_limit_team();

-- s0_charge changes what a limited team uses, and refuses what is too much. The
-- refusal's detail is JSON for the API server. A CPU comes with 4 GiB.
CREATE FUNCTION s0_charge(team uuid, more_sandboxes bigint, more_bytes bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    used team_usage;
    l    record;
BEGIN
    UPDATE team_usage SET sandboxes = sandboxes + more_sandboxes, memory_bytes = memory_bytes + more_bytes
    WHERE team_id = team RETURNING * INTO used;
    IF NOT FOUND OR more_sandboxes <= 0 AND more_bytes <= 0 THEN
        RETURN;
    END IF;
    FOR l IN
        SELECT x.dimension, x.limit_value, CASE x.dimension
                WHEN 'active_sandboxes' THEN used.sandboxes
                WHEN 'memory_mib' THEN ceil(used.memory_bytes / 1048576.0)
                WHEN 'cpu_millicpu' THEN ceil(used.memory_bytes * 1000 / 4294967296.0)
            END::bigint AS total,
            CASE x.dimension WHEN 'active_sandboxes' THEN more_sandboxes ELSE more_bytes END AS more
        FROM s0_limits(team) x
    LOOP
        IF l.more > 0 AND l.total > l.limit_value THEN
            RAISE EXCEPTION 'team % is beyond its quota of %', team, l.dimension USING
                ERRCODE = 'S0Q01',
                DETAIL = jsonb_build_object('dimension', l.dimension, 'limit', l.limit_value, 'requested_total', l.total);
        END IF;
    END LOOP;
END $$;

-- Teams are charged in the order of their ids: two statements that charge several
-- never wait for each other.
CREATE FUNCTION s0_charge_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM s0_charge(c.team_id, c.sandboxes, c.bytes) FROM (
        SELECT n.team_id, count(*) AS sandboxes, sum(n.memory_bytes)::bigint AS bytes
        FROM new_rows n JOIN team_usage USING (team_id) WHERE s0_uses(n.status)
        GROUP BY n.team_id ORDER BY n.team_id) c;
    RETURN NULL;
END $$;

CREATE FUNCTION s0_charge_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM s0_charge(c.team_id, c.sandboxes, c.bytes) FROM (
        SELECT o.team_id, -count(*) AS sandboxes, -sum(o.memory_bytes)::bigint AS bytes
        FROM old_rows o JOIN team_usage USING (team_id) WHERE s0_uses(o.status)
        GROUP BY o.team_id ORDER BY o.team_id) c;
    RETURN NULL;
END $$;

CREATE FUNCTION s0_charge_updated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM s0_charge(c.team_id, c.sandboxes, c.bytes) FROM (
        SELECT r.team_id, sum(r.sandboxes)::bigint AS sandboxes, sum(r.bytes)::bigint AS bytes FROM (
            SELECT team_id, 1 AS sandboxes, memory_bytes AS bytes FROM new_rows WHERE s0_uses(status)
            UNION ALL
            SELECT team_id, -1, -memory_bytes FROM old_rows WHERE s0_uses(status)) r
        JOIN team_usage USING (team_id)
        GROUP BY r.team_id HAVING sum(r.sandboxes) <> 0 OR sum(r.bytes) <> 0 ORDER BY r.team_id) c;
    RETURN NULL;
END $$;

CREATE TRIGGER sandboxes_charge_inserted AFTER INSERT ON sandboxes
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION s0_charge_inserted();
CREATE TRIGGER sandboxes_charge_updated AFTER UPDATE ON sandboxes
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION s0_charge_updated();
CREATE TRIGGER sandboxes_charge_deleted AFTER DELETE ON sandboxes
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION s0_charge_deleted();

-- Metering. Everything is derived from what is durable anyway: since when a sandbox
-- runs stands in its row, and each change of that is a row of
-- metering_changes, written with it by a trigger. A claim writes nothing beside its
-- row. A pass of any one replica turns both into events and, hour by hour, into
-- windows that never change again; how far it has come is a row that the pass
-- moves in its transaction.

-- runs_since is when the present stretch of running began, with the present memory;
-- NULL while there is none. Whoever inserts a sandbox that does not run says so. A
-- sandbox that is starting takes its place in the quota and is not paid for.
ALTER TABLE sandboxes ADD COLUMN runs_since timestamptz DEFAULT now();
UPDATE sandboxes SET runs_since = NULL WHERE status <> 'running';
CREATE INDEX sandboxes_claimed ON sandboxes USING brin (claimed_at);

CREATE TABLE metering_changes (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at           timestamptz NOT NULL,
    kind         text NOT NULL CHECK (kind IN ('paused', 'resumed', 'resized', 'terminated')),
    team_id      uuid NOT NULL,
    user_id      uuid NOT NULL,
    sandbox_id   text NOT NULL,
    template_id  text NOT NULL,
    since        timestamptz, -- of the stretch that ended; NULL: there was none
    memory_bytes bigint NOT NULL -- during it
);
CREATE INDEX metering_changes_at ON metering_changes (at);

CREATE FUNCTION s0_meter_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    -- A transaction that waited for the one that began the stretch may be older.
    moment timestamptz := greatest(now(), OLD.runs_since);
    change text := CASE
        WHEN NEW.status = 'running' THEN CASE OLD.status WHEN 'running' THEN 'resized' ELSE 'resumed' END
        WHEN NEW.status = 'paused' AND OLD.status = 'running' THEN 'paused'
        WHEN NEW.status IN ('terminating', 'failed') AND OLD.status NOT IN ('terminating', 'failed') THEN 'terminated' END;
BEGIN
    IF change IS NULL THEN
        RETURN NEW;
    END IF;
    INSERT INTO metering_changes (at, kind, team_id, user_id, sandbox_id, template_id, since, memory_bytes)
    VALUES (moment, change, NEW.team_id, NEW.user_id, NEW.id, NEW.template_id, OLD.runs_since, OLD.memory_bytes);
    NEW.runs_since := CASE NEW.status WHEN 'running' THEN moment END;
    RETURN NEW;
END $$;

CREATE TRIGGER sandboxes_meter_change BEFORE UPDATE OF status, memory_bytes ON sandboxes FOR EACH ROW
    WHEN (OLD.status IS DISTINCT FROM NEW.status OR OLD.memory_bytes IS DISTINCT FROM NEW.memory_bytes)
    EXECUTE FUNCTION s0_meter_change();

-- What nodes counted. A reading is a counter, not a difference, so that one taken
-- twice counts once; it begins anew with a generation.
CREATE TABLE metering_readings (
    sandbox_id    text PRIMARY KEY,
    generation    bigint NOT NULL,
    taken_at      timestamptz NOT NULL,
    ingress_bytes bigint NOT NULL,
    egress_bytes  bigint NOT NULL,
    rootfs_bytes  bigint NOT NULL
);

-- What readings came to in an hour that is not closed.
CREATE TABLE metering_counts (
    sandbox_id     text NOT NULL,
    hour           timestamptz NOT NULL,
    team_id        uuid NOT NULL,
    ingress_bytes  bigint NOT NULL,
    egress_bytes   bigint NOT NULL,
    rootfs_byte_ms numeric NOT NULL,
    PRIMARY KEY (hour, sandbox_id)
);

CREATE TABLE metering_progress (
    one           boolean PRIMARY KEY DEFAULT true CHECK (one),
    events_until  timestamptz NOT NULL, -- everything before it is in metering_events
    windows_until timestamptz NOT NULL, -- a full hour: every window before it is closed
    read_at       timestamptz NOT NULL  -- when a replica last began to read what nodes counted
);
INSERT INTO metering_progress (events_until, windows_until, read_at) VALUES (now(), date_trunc('hour', now(), 'UTC'), '-infinity');

CREATE TABLE metering_events (
    seq         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id    text NOT NULL UNIQUE,
    event_type  text NOT NULL,
    team_id     uuid NOT NULL,
    user_id     uuid NOT NULL,
    sandbox_id  text NOT NULL,
    template_id text NOT NULL,
    occurred_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX metering_events_age ON metering_events (recorded_at);

CREATE TABLE metering_windows (
    seq          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    window_type  text NOT NULL,
    team_id      uuid NOT NULL,
    sandbox_id   text NOT NULL,
    window_start timestamptz NOT NULL,
    window_end   timestamptz NOT NULL,
    value        bigint NOT NULL,
    unit         text NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (sandbox_id, window_type, window_start)
);
CREATE INDEX metering_windows_team ON metering_windows (team_id, seq);
CREATE INDEX metering_windows_age ON metering_windows (recorded_at);
