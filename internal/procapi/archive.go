package procapi

// GET /files/archive?path= answers the file or directory as a tar stream, PUT
// unpacks the one that is its body below path and answers an [ArchiveResult].

// Limits of an archive.
const (
	MaxArchiveEntries = 100_000
	MaxArchiveBytes   = 2 << 30      // content of all files
	MaxArchiveFile    = MaxFileBytes // content of one file that is unpacked

	// MaxArchiveBody bounds the archive itself: content, headers and padding.
	MaxArchiveBody = MaxArchiveBytes + MaxArchiveEntries*16<<10
)

// ArchiveType is the media type of an archive.
const ArchiveType = "application/x-tar"

// ArchiveResult counts what was unpacked.
type ArchiveResult struct {
	Files       int   `json:"files"`
	Directories int   `json:"directories"`
	Symlinks    int   `json:"symlinks"`
	Bytes       int64 `json:"bytes"` // content of the files
}
