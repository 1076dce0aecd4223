package procapi

// Calls by which a volume's files are kept alike with copies of them elsewhere. What serves
// the files of a volume has them; a sandbox's procd does not.
//
// POST /files/tree answers a stream of [TreeLine]s: everything that there is, a directory
// before what is in it, and last a summary. POST /files/digests takes [DigestRequest] and
// answers the same for the files that it names. POST /files/put?path=&mode=&expect= makes
// its body a file, POST /files/alter takes an [AlterRequest]; both change what is as it is
// expected and nothing else: path_exists says that it is not.
//
// Paths are relative to the root of the tree, and no part of one is a symlink.

// Limits of a tree that is kept alike.
const (
	MaxMirrorEntries = MaxArchiveEntries // files and directories
	MaxMirrorFile    = 1 << 30           // bytes of one file; a larger one is told as [TreeOther]
	MaxMirrorPath    = 1 << 10           // bytes; what is longer is left out
	MaxDigests       = 256               // of one call
	MaxAlterations   = 1000              // of one call
	MaxTreeLine      = 16 << 10          // bytes of a [TreeLine]
)

// What a [TreeEntry] is.
const (
	TreeFile  = "file"
	TreeDir   = "dir"
	TreeOther = "other" // anything else: it takes its name, and is not kept alike
)

// What is expected at a path before it is changed, beside a file's stamp.
const (
	ExpectAbsent = "absent"
	ExpectDir    = "dir"
)

// TreeEntry is a path of the tree.
type TreeEntry struct {
	Path    string `json:"path"`
	Type    string `json:"type"`
	Mode    uint32 `json:"mode,omitempty"`    // permission bits
	Size    int64  `json:"size,omitempty"`    // of a file
	Stamp   string `json:"stamp,omitempty"`   // of a file: a change of it makes another
	SHA256  string `json:"sha256,omitempty"`  // of a digest; empty: the file was being written to
	Settled bool   `json:"settled,omitempty"` // of a digest: a later change can't have the same stamp
}

// Why a tree is not whole.
const (
	TreeEntries = "entries" // there are more than MaxMirrorEntries
	TreeDepth   = "depth"
)

// TreeSummary ends a tree.
type TreeSummary struct {
	LeftOut int    `json:"left_out,omitempty"` // names that are no UTF-8, or too long
	Stopped string `json:"stopped,omitempty"`
}

// TreeLine is one line of the answer: one of the two.
type TreeLine struct {
	Entry   *TreeEntry   `json:"entry,omitempty"`
	Summary *TreeSummary `json:"summary,omitempty"`
}

// DigestRequest names at most MaxDigests files. What is none any more has no line.
type DigestRequest struct {
	Paths []string `json:"paths"`
}

// What an [Alteration] does.
const (
	AlterMkdir  = "mkdir"  // Path, which is absent
	AlterRemove = "remove" // Path: a file, or a directory in which nothing is
	AlterRename = "rename" // Path to To; a directory only to what is absent
	AlterChmod  = "chmod"  // Path
)

// Alteration changes a path without a content of its own.
type Alteration struct {
	Op       string `json:"op"`
	Path     string `json:"path"`
	To       string `json:"to,omitempty"`
	Mode     uint32 `json:"mode,omitempty"`
	Expect   string `json:"expect,omitempty"`    // at Path
	ExpectTo string `json:"expect_to,omitempty"` // at To
}

// AlterRequest has alterations made in order, at most MaxAlterations. The first that can't
// be made ends it, with those before it made.
type AlterRequest struct {
	Alterations []Alteration `json:"alterations"`
}

// AlterResult has what is at each path, or To, afterwards: nothing for what was removed.
type AlterResult struct {
	Entries []*TreeEntry `json:"entries"`
}
