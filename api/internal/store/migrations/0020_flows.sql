-- Records of what sandboxes send are events, too: netd tells them, their sandbox's
-- webhook is not told of them, and of a sandbox the newest stay.
ALTER TABLE sandbox_events DROP CONSTRAINT sandbox_events_source_check;
ALTER TABLE sandbox_events ADD CONSTRAINT sandbox_events_source_check CHECK (source IN ('manager', 'procd', 'netd')) NOT VALID;
CREATE INDEX sandbox_events_flows ON sandbox_events (sandbox_id, seq) WHERE source = 'netd';
