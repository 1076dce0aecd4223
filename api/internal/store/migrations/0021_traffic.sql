-- Traffic is added up several times a minute for every team that may send or receive only
-- so much in a month: from this index alone.
CREATE INDEX metering_windows_sum ON metering_windows (team_id, window_type, window_start) INCLUDE (value);
