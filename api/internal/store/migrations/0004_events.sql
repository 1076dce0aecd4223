-- What happened to sandboxes and in them: the one record behind webhooks and
-- behind /observability/events.
--
-- Events of one sandbox are numbered in the order in which they become visible,
-- so that "what is behind seq n" never misses one: whoever stores an event holds
-- the sandbox's row, or that of its webhook if it has one, until it commits.
--
-- An event of a sandbox with a webhook is the webhook's outbox entry, too:
--
--   pending ──► delivered        the receiver said 2xx
--      └──────► parked           retries are used up, or too many were waiting
--
-- payload is JSON, as whoever told it wrote it: text, for what a sandbox wrote is
-- not to be understood here.

CREATE TABLE sandbox_events (
    seq         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    team_id     uuid NOT NULL,
    sandbox_id  text NOT NULL,
    event_id    text NOT NULL,
    type        text NOT NULL,
    source      text NOT NULL CHECK (source IN ('manager', 'procd')), -- who told it
    payload     text NOT NULL,
    occurred_at timestamptz NOT NULL,
    ingested_at timestamptz NOT NULL DEFAULT now(),
    delivery    text NOT NULL CHECK (delivery IN ('none', 'pending', 'delivered', 'parked')),
    attempts    integer NOT NULL DEFAULT 0,
    outcome     text NOT NULL DEFAULT '' -- of the last attempt, as its tenant may know it
);
CREATE UNIQUE INDEX sandbox_events_id ON sandbox_events (sandbox_id, event_id);
CREATE INDEX sandbox_events_list ON sandbox_events (team_id, sandbox_id, seq);
CREATE INDEX sandbox_events_pending ON sandbox_events (sandbox_id, seq) WHERE delivery = 'pending';
CREATE INDEX sandbox_events_age ON sandbox_events (ingested_at);

-- Where a sandbox's events go. One replica at a time delivers a sandbox's events,
-- in their order: it holds a lease, which ends by itself when the replica dies.
-- The secret is written once and never leaves but as a signature.
CREATE TABLE sandbox_webhooks (
    sandbox_id   text PRIMARY KEY REFERENCES sandboxes (id) ON DELETE CASCADE,
    team_id      uuid NOT NULL,
    claim_id     uuid NOT NULL,
    url          text NOT NULL,
    secret       text NOT NULL,
    destination  text NOT NULL,  -- host:port of the URL, by which deliveries are bounded
    watch_dir    text NOT NULL,
    told         bigint NOT NULL DEFAULT 0, -- events from inside so far
    wake_at      timestamptz,    -- when there is something to do; NULL: nothing
    leased_until timestamptz,    -- NULL: nobody has it
    lease        uuid
);
CREATE INDEX sandbox_webhooks_due ON sandbox_webhooks (coalesce(leased_until, wake_at))
    WHERE coalesce(leased_until, wake_at) IS NOT NULL;

-- s0_tell stores one event that happened to a sandbox whose row is locked.
CREATE FUNCTION s0_tell(s sandboxes, id text, kind text, body jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    hooked boolean;
BEGIN
    UPDATE sandbox_webhooks SET wake_at = coalesce(wake_at, now()) WHERE sandbox_id = s.id;
    hooked := FOUND;
    INSERT INTO sandbox_events (team_id, sandbox_id, event_id, type, source, payload, occurred_at, delivery)
    VALUES (s.team_id, s.id, id, kind, 'manager', body, now(), CASE WHEN hooked THEN 'pending' ELSE 'none' END)
    ON CONFLICT (sandbox_id, event_id) DO NOTHING;
    IF hooked THEN
        PERFORM pg_notify('s0_events', s.id);
    END IF;
END $$;

-- A sandbox's change of state and the event that tells it are one write: neither
-- is there without the other, whoever makes the change. That a sandbox ends is
-- told when it is decided or seen, not when the last of it is gone: its node may
-- never come back to say so.
CREATE FUNCTION s0_tell_state() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    body jsonb := jsonb_build_object('sandbox_id', NEW.id, 'generation', NEW.generation);
BEGIN
    CASE NEW.status
    WHEN 'paused' THEN
        PERFORM s0_tell(NEW, 'evt_' || gen_random_uuid(), 'sandbox.paused', body);
    WHEN 'running' THEN
        PERFORM s0_tell(NEW, 'evt_' || gen_random_uuid(), 'sandbox.resumed', body);
    WHEN 'terminating' THEN
        PERFORM s0_tell(NEW, 'evt_sandbox_killed_' || NEW.id, 'sandbox.killed',
            body || '{"signal": "SIGKILL", "reason": "shutdown"}');
        PERFORM s0_tell(NEW, 'evt_sandbox_deleted_' || NEW.id, 'sandbox.deleted',
            body || jsonb_build_object('reason', NEW.reason));
    WHEN 'failed' THEN
        -- Why in detail is for operators: a reason may name what is theirs.
        body := body || jsonb_build_object('reason', CASE WHEN NEW.reason = 'oom' THEN 'oom' ELSE 'failed' END);
        PERFORM s0_tell(NEW, 'evt_sandbox_killed_' || NEW.id, 'sandbox.killed', body || '{"signal": "SIGKILL"}');
        PERFORM s0_tell(NEW, 'evt_sandbox_deleted_' || NEW.id, 'sandbox.deleted', body);
    ELSE
    END CASE;
    RETURN NULL;
END $$;

CREATE TRIGGER sandboxes_tell_state AFTER UPDATE OF status ON sandboxes
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION s0_tell_state();
