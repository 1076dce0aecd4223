-- Who changed what: one record for each call of an operation that changes the
-- control plane. It is written in the transaction that carries the change out;
-- a call that was refused, or that had nothing to change, is recorded after it.
-- What a request said is in no record: there may be secrets in it.

CREATE TABLE audit_records (
    id         uuid PRIMARY KEY, -- version 7: the order in which calls arrived, by the clock of who took them
    at         timestamptz NOT NULL DEFAULT now(),
    team_id    uuid,          -- NULL: of no team
    user_id    uuid,          -- NULL: nobody known
    key_id     uuid,          -- of an API key; NULL: none
    operation  text NOT NULL, -- the contract's operationId
    resource   text NOT NULL, -- what it changed, by the name that its operation has for it
    outcome    text NOT NULL CHECK (outcome IN ('begun', 'succeeded', 'refused', 'failed')),
    code       text NOT NULL, -- of the error that was answered; empty: none
    address    text NOT NULL, -- of the client
    request_id text NOT NULL
);
CREATE INDEX audit_records_team ON audit_records (team_id, id) WHERE team_id IS NOT NULL;
-- Rows come in the order of their time, and go by it.
CREATE INDEX audit_records_age ON audit_records USING brin (at) WITH (pages_per_range = 32, autosummarize = on);
