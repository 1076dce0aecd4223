package httpapi

import (
	"context"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"s0.run/api/internal/identity"
	"s0.run/api/internal/openapi"
	"s0.run/api/internal/store"
	"s0.run/internal/errdefs"
)

// Regions are a list that clients read: this server calls none of their addresses.

const maxRegionBytes = 63

// regionPattern is a provider's name and the region's there, such as aws-us-east-1.
var regionPattern = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)+$`)

// ListRegions implements GET /regions.
func (a *API) ListRegions(w http.ResponseWriter, r *http.Request) {
	list, err := a.cfg.Store.Regions(r.Context())
	out := openapi.RegionList{Regions: []openapi.Region{}}
	for _, region := range list {
		out.Regions = append(out.Regions, regionOut(region))
	}
	a.answer(w, r, http.StatusOK, out, err)
}

func regionOut(r store.Region) openapi.Region {
	return openapi.Region{
		ID: r.ID, DisplayName: r.DisplayName, RegionalGatewayURL: r.GatewayURL, MeteringExportURL: unlessEmpty(r.MeteringURL), Enabled: r.Enabled,
	}
}

// GetRegion implements GET /regions/{id}.
func (a *API) GetRegion(w http.ResponseWriter, r *http.Request, id string) {
	err := a.knownRegion(id)
	var region store.Region
	if err == nil {
		region, err = a.cfg.Store.Region(r.Context(), id)
	}
	a.answer(w, r, http.StatusOK, regionOut(region), err)
}

// knownRegion is the gate for the id of a region; one that can't be is like one that is not.
func (a *API) knownRegion(id string) error {
	if a.checkRegionID(id) != nil {
		return errdefs.New(errdefs.NotFound, "region not found")
	}
	return nil
}

// checkRegionID takes this server's own, too, whose name its operator chose.
func (a *API) checkRegionID(id string) error {
	if id != a.cfg.RegionID && (len(id) > maxRegionBytes || !regionPattern.MatchString(id)) {
		return errdefs.New(errdefs.InvalidArgument, "id must be <provider>-<region> in at most %d lower-case letters, digits and hyphens, such as aws-us-east-1", maxRegionBytes)
	}
	return nil
}

// CreateRegion implements POST /regions.
func (a *API) CreateRegion(w http.ResponseWriter, r *http.Request) {
	var req openapi.CreateRegionRequest
	err := decode(w, r, controlBytes, &req, "id", "regional_gateway_url")
	if err == nil {
		err = a.checkRegionID(req.ID)
	}
	change := store.RegionChange{
		DisplayName: req.DisplayName, GatewayURL: &req.RegionalGatewayURL, MeteringURL: req.MeteringExportURL, Enabled: req.Enabled,
	}
	if err == nil {
		err = checkRegion(change)
	}
	var region store.Region
	if err == nil {
		region, err = a.cfg.Store.CreateRegion(r.Context(), newRegion(req))
	}
	a.answer(w, r, http.StatusCreated, regionOut(region), err)
}

// newRegion is what was asked for: by default with its id for a name, and enabled.
func newRegion(req openapi.CreateRegionRequest) store.Region {
	r := store.Region{ID: req.ID, DisplayName: req.ID, GatewayURL: req.RegionalGatewayURL, MeteringURL: value(req.MeteringExportURL), Enabled: true}
	if req.DisplayName != nil {
		r.DisplayName = *req.DisplayName
	}
	if req.Enabled != nil {
		r.Enabled = *req.Enabled
	}
	return r
}

// checkRegion refuses what can't be shown, and what is no address of an API.
func checkRegion(c store.RegionChange) error {
	if c.DisplayName != nil {
		if err := identity.CheckName("display_name", *c.DisplayName); err != nil {
			return err
		}
	}
	if c.GatewayURL != nil && !isBase(*c.GatewayURL) {
		return errdefs.New(errdefs.InvalidArgument, "regional_gateway_url must be an http or https URL without user, query and fragment")
	}
	if m := value(c.MeteringURL); m != "" && !isBase(m) {
		return errdefs.New(errdefs.InvalidArgument, "metering_export_url must be an http or https URL without user, query and fragment, or empty")
	}
	return nil
}

// isBase reports whether paths can be put below a URL.
func isBase(s string) bool {
	u, err := url.Parse(s)
	return err == nil && len(s) <= maxURLBytes && plain(s) && !strings.ContainsAny(s, "?#") &&
		(u.Scheme == "https" || u.Scheme == "http") && u.Hostname() != "" && u.User == nil
}

// UpdateRegion implements PUT /regions/{id}.
func (a *API) UpdateRegion(w http.ResponseWriter, r *http.Request, id string) {
	err := a.knownRegion(id)
	var req openapi.UpdateRegionRequest
	if err == nil {
		err = decode(w, r, controlBytes, &req)
	}
	change := store.RegionChange{
		DisplayName: req.DisplayName, GatewayURL: req.RegionalGatewayURL, MeteringURL: req.MeteringExportURL, Enabled: req.Enabled,
	}
	if err == nil {
		err = checkRegion(change)
	}
	if err == nil && id == a.cfg.RegionID && req.Enabled != nil && !*req.Enabled {
		err = errdefs.New(errdefs.Conflict, "this server's own region can't be disabled")
	}
	var region store.Region
	if err == nil {
		region, err = a.cfg.Store.UpdateRegion(r.Context(), id, change)
	}
	a.answer(w, r, http.StatusOK, regionOut(region), err)
}

// DeleteRegion implements DELETE /regions/{id}.
func (a *API) DeleteRegion(w http.ResponseWriter, r *http.Request, id string) {
	err := a.knownRegion(id)
	if err == nil && id == a.cfg.RegionID {
		err = errdefs.New(errdefs.Conflict, "this server's own region can't be deleted")
	}
	if err == nil {
		err = a.cfg.Store.DeleteRegion(r.Context(), id)
	}
	a.answer(w, r, http.StatusOK, openapi.Message{Message: "region deleted"}, err)
}

// gatewayURL is where a region is served, if anybody has said so.
func (a *API) gatewayURL(ctx context.Context, region string) (*string, error) {
	found, err := a.cfg.Store.Region(ctx, region)
	if errdefs.Is(err, errdefs.NotFound) {
		return nil, nil
	}
	return unlessEmpty(found.GatewayURL), err
}
