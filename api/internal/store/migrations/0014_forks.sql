-- Forks. A child's row begins paused: it takes no place in a quota, is not paid for,
-- and its times to live begin when it is resumed first.

-- What a sandbox was forked from; NULL: nothing. For operators, who have to find every
-- copy of what was in a sandbox: the source may be gone by then.
ALTER TABLE sandboxes ADD COLUMN forked_from text;
CREATE INDEX sandboxes_forked_from ON sandboxes (forked_from) WHERE forked_from IS NOT NULL;
