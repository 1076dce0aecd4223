-- The regions that clients are told of: each has an API of its own. The server's
-- own is one of them, which it adds when it starts.
CREATE TABLE regions (
    id                   text PRIMARY KEY,
    display_name         text NOT NULL,
    regional_gateway_url text NOT NULL, -- empty: of this server, until an admin says where it is found
    metering_export_url  text NOT NULL, -- empty: none
    enabled              boolean NOT NULL DEFAULT true
);
CREATE INDEX teams_home_region ON teams (home_region_id);
