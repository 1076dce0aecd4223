-- A clock that was ahead of the time, and is set back, has had hours closed that are not
-- over. Their windows stand; what such an hour turns out to have had more is in the next.
--
-- recount_from is the first of these hours until then, and NULL otherwise.
ALTER TABLE metering_progress ADD COLUMN recount_from timestamptz;
