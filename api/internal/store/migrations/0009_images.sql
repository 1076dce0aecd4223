-- Whose images are where, and which bytes a template means.

-- What a team's images' names begin with in the registry. A prefix is its team's
-- for good: what another team once pushed must never become a new one's, so rows
-- outlive their team.
CREATE TABLE registry_prefixes (
    team_id    uuid PRIMARY KEY,
    prefix     text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Which image a template's reference means: the digest that it had when the
-- template was stored, so that every node runs the same bytes. One that could not
-- be asked for then has no row yet. A row counts while the template names its image.
CREATE TABLE template_pins (
    template_id uuid NOT NULL REFERENCES templates (id) ON DELETE CASCADE,
    image       text NOT NULL, -- as the spec names it
    digest      text NOT NULL, -- sha256:…
    pinned_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (template_id, image)
);
