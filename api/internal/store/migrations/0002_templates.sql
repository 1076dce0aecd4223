-- What sandboxes are made from. A public template belongs to nobody and is seen
-- by every team; a team's own of the same name comes first.

CREATE TABLE templates (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    template_id text NOT NULL, -- the name that clients use
    team_id     uuid REFERENCES teams (id) ON DELETE CASCADE, -- NULL: public
    user_id     uuid REFERENCES users (id),
    spec        jsonb NOT NULL, -- the contract's TemplateSpec
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX templates_public ON templates (template_id) WHERE team_id IS NULL;
CREATE UNIQUE INDEX templates_team ON templates (team_id, template_id) WHERE team_id IS NOT NULL;

CREATE TRIGGER templates_changed AFTER INSERT OR UPDATE OR DELETE
    ON templates FOR EACH STATEMENT EXECUTE FUNCTION s0_notify_changed();
