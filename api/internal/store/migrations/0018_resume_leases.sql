-- Who resumes a sandbox that is in the object store, and until when that is believed.
--
-- Such a sandbox may be resumed by any node, so whoever began its resume is alone with it:
-- resume_by is that attempt and renews resume_until. When that is over another one takes its
-- place. An attempt of an older server has neither, and its change of the status clears what
-- an earlier one left.
ALTER TABLE sandboxes ADD COLUMN resume_by uuid, ADD COLUMN resume_until timestamptz;

CREATE FUNCTION s0_forget_resume() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.resume_by := NULL;
    NEW.resume_until := NULL;
    RETURN NEW;
END $$;
CREATE TRIGGER sandboxes_forget_resume BEFORE UPDATE OF status ON sandboxes
    FOR EACH ROW WHEN (NEW.status <> OLD.status AND OLD.resume_by IS NOT NULL AND NEW.resume_by IS NOT DISTINCT FROM OLD.resume_by)
    EXECUTE FUNCTION s0_forget_resume();
