-- Children of forks that have no rows among the sandboxes yet: their ids, from before their
-- node is asked to make them. Storing the children takes theirs away.
--
-- given_up is set when nobody will store a child any more: its node is to end it, whenever
-- it says that it has it. A server that died gives nothing up, so others do for it; one that
-- was only slow finds its fork given up, and stores nothing.
CREATE TABLE fork_children (
    sandbox_id text PRIMARY KEY,
    given_up   boolean NOT NULL DEFAULT false,
    begun_at   timestamptz NOT NULL DEFAULT now()
);
