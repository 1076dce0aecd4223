package regauth

// InUsePath is where the registry is told, with a PUT, which images are in use.
const InUsePath = "/s0/in-use"

// InUse is the list of all images that templates name, complete.
type InUse struct {
	Images []UsedImage `json:"images"`
}

// UsedImage is one of them: by digest, by tag, or by both.
type UsedImage struct {
	Repository string `json:"repository"`
	Tag        string `json:"tag,omitempty"`
	Digest     string `json:"digest,omitempty"`
}
