package store

import (
	"context"

	"github.com/jackc/pgx/v5"

	"s0.run/api/internal/audit"
	"s0.run/internal/errdefs"
)

// maxRegions bounds the regions, which are listed whole.
const maxRegions = 200

// Region is a part of the world with an API of its own.
type Region struct {
	ID          string
	DisplayName string
	GatewayURL  string // where its API is; empty: of this server, nobody has said
	MeteringURL string // where it gives what is metered; empty: nowhere
	Enabled     bool
}

const regionColumns = "id, display_name, regional_gateway_url, metering_export_url, enabled"

// EnsureRegion adds a server's own region when it is not there.
func (s *Store) EnsureRegion(ctx context.Context, id string) error {
	_, err := s.pool.Exec(ctx, `
		INSERT INTO regions (id, display_name, regional_gateway_url, metering_export_url) VALUES ($1, $1, '', '')
		ON CONFLICT (id) DO NOTHING`, id)
	return classify(err, "adding the server's own region")
}

// Regions lists the regions.
func (s *Store) Regions(ctx context.Context) ([]Region, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+regionColumns+" FROM regions ORDER BY id")
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Region])
	return list, classify(err, "listing regions")
}

// Region reads one region.
func (s *Store) Region(ctx context.Context, id string) (Region, error) {
	rows, _ := s.pool.Query(ctx, "SELECT "+regionColumns+" FROM regions WHERE id = $1", id)
	r, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Region])
	return r, found(err, "reading a region", "region")
}

// CreateRegion adds a region. One that is there already, or one too many, is a
// conflict.
func (s *Store) CreateRegion(ctx context.Context, r Region) (created Region, err error) {
	err = s.inTx(ctx, "creating a region", func(ctx context.Context, tx pgx.Tx) error {
		// Two that are created at once count each other.
		if _, err := tx.Exec(ctx, "LOCK TABLE regions IN SHARE ROW EXCLUSIVE MODE"); err != nil {
			return err
		}
		var have int
		if err := tx.QueryRow(ctx, "SELECT count(*) FROM regions").Scan(&have); err != nil {
			return err
		}
		if have >= maxRegions {
			return errdefs.New(errdefs.Conflict, "there are %d regions, and can be no more: delete one first", have)
		}
		rows, _ := tx.Query(ctx, "INSERT INTO regions ("+regionColumns+") VALUES ($1, $2, $3, $4, $5) RETURNING "+regionColumns,
			r.ID, r.DisplayName, r.GatewayURL, r.MeteringURL, r.Enabled)
		created, err = pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Region])
		if violates(err, "regions_pkey") {
			return errdefs.New(errdefs.Conflict, "the region %q exists", r.ID)
		}
		audit.Resource(ctx, r.ID)
		return err
	})
	return created, err
}

// RegionChange is what changes of a region: nil stays as it is.
type RegionChange struct {
	DisplayName, GatewayURL, MeteringURL *string
	Enabled                              *bool
}

// UpdateRegion changes a region.
func (s *Store) UpdateRegion(ctx context.Context, id string, c RegionChange) (Region, error) {
	rows, _ := s.pool.Query(ctx, `
		UPDATE regions SET display_name = coalesce($2, display_name), regional_gateway_url = coalesce($3, regional_gateway_url),
			metering_export_url = coalesce($4, metering_export_url), enabled = coalesce($5, enabled)
		WHERE id = $1 RETURNING `+regionColumns, id, c.DisplayName, c.GatewayURL, c.MeteringURL, c.Enabled)
	r, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByPos[Region])
	return r, found(err, "changing a region", "region")
}

// DeleteRegion deletes a region that is no team's home.
func (s *Store) DeleteRegion(ctx context.Context, id string) error {
	return s.inTx(ctx, "deleting a region", func(ctx context.Context, tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, "DELETE FROM regions WHERE id = $1", id)
		if err == nil && tag.RowsAffected() == 0 {
			return notFound("region")
		}
		if err != nil {
			return err
		}
		var home bool
		if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM teams WHERE home_region_id = $1)", id).Scan(&home); err != nil {
			return err
		}
		if home {
			return errdefs.New(errdefs.Conflict, "the region %q is the home of teams", id)
		}
		return nil
	})
}
