-- Paused sandboxes in the object store.
--
-- stored_generation is set while the object store has what a paused sandbox is: the
-- image of that generation, with everything that was asked of it since. Another node may
-- then resume it. The row's own generation is never behind, and ahead where a resume was
-- moved to another node: whatever the earlier node still has, or may have begun, counts
-- for nothing. stored_generation is forgotten here, not by whoever changes a row, so that nobody can
-- forget to. Of a change it is that to what the node keeps and stores with the image: the
-- rest of the config is the row's alone.
--
-- images_due is when to look for images of the sandbox in the object store that nobody
-- wants any more: those of earlier generations once it runs, all once it is deleted. It
-- is set when the sandbox is paused, because its node may store the image and fail to
-- tell, and null when there is nothing to look for. The minute after each change is for
-- an upload to end that nobody wants any more: what it stores until then goes, too.
ALTER TABLE sandboxes ADD COLUMN stored_generation bigint, ADD COLUMN images_due timestamptz;
CREATE INDEX sandboxes_images_due ON sandboxes (images_due) WHERE images_due IS NOT NULL AND (deleted_at IS NOT NULL OR status = 'running');

CREATE FUNCTION s0_forget_stored() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status = 'running' OR NEW.status = 'paused' AND NEW.generation > OLD.generation
        OR NEW.config -> 'env_vars' IS DISTINCT FROM OLD.config -> 'env_vars'
        OR NEW.config -> 'network' IS DISTINCT FROM OLD.config -> 'network'
        OR NEW.memory_bytes <> OLD.memory_bytes THEN
        NEW.stored_generation := NULL;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER sandboxes_forget_stored BEFORE UPDATE ON sandboxes
    FOR EACH ROW WHEN (OLD.stored_generation IS NOT NULL) EXECUTE FUNCTION s0_forget_stored();

CREATE FUNCTION s0_images_due() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.images_due := now() + interval '1 minute';
    RETURN NEW;
END $$;
CREATE TRIGGER sandboxes_images_due BEFORE UPDATE OF status ON sandboxes
    FOR EACH ROW WHEN (NEW.status = 'paused' OR OLD.images_due IS NOT NULL AND NEW.status <> OLD.status) EXECUTE FUNCTION s0_images_due();
CREATE TRIGGER sandboxes_images_due_forked BEFORE INSERT ON sandboxes
    FOR EACH ROW WHEN (NEW.status = 'paused') EXECUTE FUNCTION s0_images_due();
