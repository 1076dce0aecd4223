package httpapi

import (
	"net/http"

	"github.com/google/uuid"

	"s0.run/api/internal/dataplane"
	"s0.run/api/internal/openapi"
	"s0.run/internal/errdefs"
)

// volumePlace is the volume whose files a call is about.
func volumePlace(r *http.Request, id string) place {
	parsed, err := volumeID(id)
	return place{dataplane.Target{Team: principalOf(r).TeamID, Volume: parsed}, err}
}

// tooLarge is a refusal of a sandbox's as the place words it: volumes have the gateway's
// codes.
func (p place) tooLarge(ofSandbox *errdefs.Error) error {
	if p.to.Volume == uuid.Nil {
		return ofSandbox
	}
	return errdefs.New(errdefs.TooLarge, "%s", ofSandbox.Message)
}

// ReadVolumeFile implements GET /api/v1/sandboxvolumes/{id}/files.
func (a *API) ReadVolumeFile(w http.ResponseWriter, r *http.Request, id string, params openapi.ReadVolumeFileParams) {
	a.readFile(w, r, volumePlace(r, id), params.Path)
}

// WriteVolumeFile implements POST /api/v1/sandboxvolumes/{id}/files.
func (a *API) WriteVolumeFile(w http.ResponseWriter, r *http.Request, id string, params openapi.WriteVolumeFileParams) {
	a.writeFile(w, r, volumePlace(r, id), openapi.WriteFileParams(params))
}

// DeleteVolumeFile implements DELETE /api/v1/sandboxvolumes/{id}/files.
func (a *API) DeleteVolumeFile(w http.ResponseWriter, r *http.Request, id string, params openapi.DeleteVolumeFileParams) {
	a.deleteFile(w, r, volumePlace(r, id), params.Path)
}

// StatVolumeFile implements GET /api/v1/sandboxvolumes/{id}/files/stat.
func (a *API) StatVolumeFile(w http.ResponseWriter, r *http.Request, id string, params openapi.StatVolumeFileParams) {
	a.statFile(w, r, volumePlace(r, id), params.Path)
}

// ListVolumeFiles implements GET /api/v1/sandboxvolumes/{id}/files/list.
func (a *API) ListVolumeFiles(w http.ResponseWriter, r *http.Request, id string, params openapi.ListVolumeFilesParams) {
	a.listFiles(w, r, volumePlace(r, id), params.Path)
}

// MoveVolumeFile implements POST /api/v1/sandboxvolumes/{id}/files/move.
func (a *API) MoveVolumeFile(w http.ResponseWriter, r *http.Request, id string) {
	a.moveFile(w, r, volumePlace(r, id))
}

// WatchVolumeFiles implements GET /api/v1/sandboxvolumes/{id}/files/watch.
func (a *API) WatchVolumeFiles(w http.ResponseWriter, r *http.Request, id string) {
	a.watchFiles(w, r, volumePlace(r, id))
}

// DownloadVolumeArchive implements GET /api/v1/sandboxvolumes/{id}/files/archive.
func (a *API) DownloadVolumeArchive(w http.ResponseWriter, r *http.Request, id string, params openapi.DownloadVolumeArchiveParams) {
	a.downloadArchive(w, r, volumePlace(r, id), params.Path)
}

// UploadVolumeArchive implements PUT /api/v1/sandboxvolumes/{id}/files/archive.
func (a *API) UploadVolumeArchive(w http.ResponseWriter, r *http.Request, id string, params openapi.UploadVolumeArchiveParams) {
	a.uploadArchive(w, r, volumePlace(r, id), params.Path)
}

// SearchVolumeFiles implements POST /api/v1/sandboxvolumes/{id}/files/search.
func (a *API) SearchVolumeFiles(w http.ResponseWriter, r *http.Request, id string) {
	a.searchFiles(w, r, volumePlace(r, id))
}
