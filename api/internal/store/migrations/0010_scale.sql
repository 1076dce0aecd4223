-- What a list costs must not grow with what a team has.
--
-- A page is found in an index alone: one ordered range for each status, merged.
-- What it is filtered by is in it.
CREATE INDEX sandboxes_page ON sandboxes (team_id, status, created_at DESC, id) INCLUDE (template_id)
    WHERE deleted_at IS NULL;
DROP INDEX sandboxes_list;

-- Reconciliation pages through one node's rows by their ids.
CREATE INDEX sandboxes_on_node ON sandboxes (node, id) WHERE deleted_at IS NULL;
DROP INDEX sandboxes_node;

-- An index alone answers only for pages that a vacuum has seen since they changed.
ALTER TABLE sandboxes SET (autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_vacuum_scale_factor = 0.05);

-- sandbox_counts is how many sandboxes a team has, without its tombstones. Triggers
-- keep it in the transaction that changes a sandbox, so that it can't drift. Each
-- session counts in a share of its own, lest claims of one team wait for each
-- other's commit: the sum over the shares is the number, one of them alone may be
-- negative.
CREATE TABLE sandbox_counts (
    team_id     uuid NOT NULL,
    template_id text NOT NULL,
    status      text NOT NULL,
    share       integer NOT NULL,
    n           bigint NOT NULL,
    PRIMARY KEY (team_id, template_id, status, share)
) WITH (fillfactor = 50, autovacuum_vacuum_threshold = 1000);

CREATE FUNCTION s0_count_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO sandbox_counts AS c (team_id, template_id, status, share, n)
    SELECT team_id, template_id, status, pg_backend_pid() % 8, count(*)
    FROM new_rows WHERE deleted_at IS NULL GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    ON CONFLICT (team_id, template_id, status, share) DO UPDATE SET n = c.n + excluded.n;
    RETURN NULL;
END $$;

CREATE FUNCTION s0_count_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO sandbox_counts AS c (team_id, template_id, status, share, n)
    SELECT team_id, template_id, status, pg_backend_pid() % 8, -count(*)
    FROM old_rows WHERE deleted_at IS NULL GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    ON CONFLICT (team_id, template_id, status, share) DO UPDATE SET n = c.n + excluded.n;
    RETURN NULL;
END $$;

CREATE FUNCTION s0_count_updated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO sandbox_counts AS c (team_id, template_id, status, share, n)
    SELECT r.team_id, r.template_id, r.status, pg_backend_pid() % 8, sum(r.n)
    FROM (SELECT team_id, template_id, status, 1 AS n FROM new_rows WHERE deleted_at IS NULL
        UNION ALL SELECT team_id, template_id, status, -1 FROM old_rows WHERE deleted_at IS NULL) r
    GROUP BY 1, 2, 3 HAVING sum(r.n) <> 0 ORDER BY 1, 2, 3
    ON CONFLICT (team_id, template_id, status, share) DO UPDATE SET n = c.n + excluded.n;
    RETURN NULL;
END $$;

CREATE TRIGGER sandboxes_count_inserted AFTER INSERT ON sandboxes
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION s0_count_inserted();
CREATE TRIGGER sandboxes_count_updated AFTER UPDATE ON sandboxes
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION s0_count_updated();
CREATE TRIGGER sandboxes_count_deleted AFTER DELETE ON sandboxes
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION s0_count_deleted();

-- The triggers hold off every change of a sandbox until this is committed.
INSERT INTO sandbox_counts (team_id, template_id, status, share, n)
SELECT team_id, template_id, status, 0, count(*) FROM sandboxes WHERE deleted_at IS NULL GROUP BY 1, 2, 3;
