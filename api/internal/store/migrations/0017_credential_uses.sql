-- Which sandboxes' bindings name which credential sources: the network policy in a
-- sandbox's config says so, and a trigger keeps these rows with it. pending: it is not
-- known that the sandbox's node has the newest version. So is each that is new: who told
-- the node may have read the version before.
CREATE TABLE credential_uses (
    sandbox_id text NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    team_id    uuid NOT NULL,
    source     text NOT NULL,
    pending    boolean NOT NULL DEFAULT true,
    PRIMARY KEY (sandbox_id, source),
    CONSTRAINT credential_uses_source FOREIGN KEY (team_id, source) REFERENCES credential_sources (team_id, name)
);
CREATE INDEX credential_uses_of ON credential_uses (team_id, source);
CREATE INDEX credential_uses_pending ON credential_uses (sandbox_id) WHERE pending;
CREATE TRIGGER credential_uses_changed AFTER INSERT OR UPDATE OF pending ON credential_uses
    FOR EACH STATEMENT EXECUTE FUNCTION s0_notify_changed();

CREATE FUNCTION s0_bindings(config jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE jsonb_typeof(config #> '{network,credentialBindings}')
        WHEN 'array' THEN config #> '{network,credentialBindings}' ELSE '[]'::jsonb END
$$;

CREATE FUNCTION s0_keep_uses() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM credential_uses WHERE sandbox_id = NEW.id AND (NEW.deleted_at IS NOT NULL
        OR source NOT IN (SELECT b ->> 'sourceRef' FROM jsonb_array_elements(s0_bindings(NEW.config)) b));
    IF NEW.deleted_at IS NULL THEN
        INSERT INTO credential_uses (sandbox_id, team_id, source)
        SELECT DISTINCT NEW.id, NEW.team_id, b ->> 'sourceRef' FROM jsonb_array_elements(s0_bindings(NEW.config)) b
        ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER sandboxes_begin_uses AFTER INSERT ON sandboxes
    FOR EACH ROW WHEN (NEW.config #> '{network,credentialBindings}' IS NOT NULL)
    EXECUTE FUNCTION s0_keep_uses();
CREATE TRIGGER sandboxes_keep_uses AFTER UPDATE OF config, deleted_at ON sandboxes
    FOR EACH ROW WHEN (coalesce(OLD.config #> '{network,credentialBindings}', NEW.config #> '{network,credentialBindings}') IS NOT NULL
        AND (OLD.config -> 'network' IS DISTINCT FROM NEW.config -> 'network' OR OLD.deleted_at IS DISTINCT FROM NEW.deleted_at))
    EXECUTE FUNCTION s0_keep_uses();
