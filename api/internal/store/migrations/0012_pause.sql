-- Pause and resume. A row says what a sandbox was decided to be: a resume is decided
-- by 'starting', which a team's quota may refuse, before its node is asked; a pause is
-- written when its node has the image.
--
--   running ──► paused ──► starting ──► running, next generation
--                  ▲           │ failed
--                  └───────────┘
--
-- A resume that failed is nothing that happened to the sandbox.
DROP TRIGGER sandboxes_tell_state ON sandboxes;
CREATE TRIGGER sandboxes_tell_state AFTER UPDATE OF status ON sandboxes
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status AND NOT (OLD.status = 'starting' AND NEW.status = 'paused'))
    EXECUTE FUNCTION s0_tell_state();
