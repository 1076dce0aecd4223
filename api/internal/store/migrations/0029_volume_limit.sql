-- What a volume may grow to while its team's others stay as they are; 0: to anything, where
-- the team has no quota: greatest() leaves NULL out, so that was a byte.
CREATE OR REPLACE FUNCTION s0_volume_limit(team uuid, volume uuid) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN q.quota IS NULL THEN 0 ELSE greatest(1, q.quota
        - (SELECT coalesce(sum(bytes), 0) FROM volumes WHERE team_id = team AND id <> volume AND state <> 'deleting')) END::bigint
    FROM (SELECT s0_volume_quota(team) AS quota) q
$$;
