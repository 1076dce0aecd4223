-- A claim's volume in one round trip, where all is as it is most of the time: one volume
-- that one sandbox alone may have, which the node had last where the claim has its slot.
-- Nothing is taken and nothing answered where it is not so. Each statement sees what was
-- committed before it began: who waited for the row sees who had it.
--
-- Nobody waits until that is on the disk: the claim's row, which is behind it in the log,
-- makes both durable, and until then the claim is not answered. A server that dies in
-- between has given an epoch that it gives again, and the row that would have had it fails.
CREATE FUNCTION s0_take_volume(team uuid, volume uuid, at_node text, claim uuid, mount uuid, point text, ro boolean, lease interval)
RETURNS SETOF volumes LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    PERFORM FROM volumes WHERE team_id = team AND id = volume AND state = 'ready' AND access_mode = 'RWO' AND node = at_node FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    PERFORM FROM volume_mounts WHERE volume_id = volume; -- one whose lease is over may be becoming its sandbox's
    IF FOUND THEN
        RETURN;
    END IF;
    INSERT INTO volume_mounts (id, volume_id, team_id, claim_id, mount_point, read_only, lease_until)
    VALUES (mount, volume, team, claim, point, ro, now() + lease);
    RETURN QUERY UPDATE volumes SET epoch = epoch + 1, nodes = s0_with(nodes, at_node), updated_at = now()
    WHERE id = volume RETURNING *;
END $$;
