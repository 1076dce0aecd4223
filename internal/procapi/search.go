package procapi

import "time"

// POST /files/search takes a [Search] and answers a stream of [SearchLine]s, one
// JSON object a line: the matches as they are found, and at last the summary, without
// which the answer is not whole.

// Limits of a search.
const (
	MaxSearchResults   = 10_000
	MaxSearchPattern   = 1 << 10          // bytes of a pattern
	MaxSearchGlob      = 512              // bytes of a glob
	MaxSearchGlobs     = 64               // of each list
	MaxSearchText      = 512              // bytes of a line that are shown
	MaxSearchFileBytes = 1 << 30          // the largest file that is ever read
	MaxSearchTime      = 30 * time.Second // of a whole search
	MaxSearchLine      = 64 << 10         // bytes of a [SearchLine]
)

// What is taken when a [Search] does not say.
const (
	DefaultSearchResults   = 1000
	DefaultSearchFileBytes = 16 << 20
)

// Search is the contract's FileSearchRequest.
type Search struct {
	Path         string   `json:"path,omitempty"`           // the directory, or one file; the workspace when empty
	Pattern      string   `json:"pattern,omitempty"`        // what lines must contain; empty: names alone decide
	Regexp       bool     `json:"regexp,omitempty"`         // Pattern is a regular expression (RE2)
	IgnoreCase   bool     `json:"ignore_case,omitempty"`    // of Pattern
	Include      []string `json:"include,omitempty"`        // globs, one of which must match; empty: all
	Exclude      []string `json:"exclude,omitempty"`        // globs, none of which may match, nor for a directory above
	MaxResults   int      `json:"max_results,omitempty"`    // at most MaxSearchResults
	MaxFileBytes int64    `json:"max_file_bytes,omitempty"` // larger files are not read; at most MaxSearchFileBytes
}

// SearchMatch is a line, or a file when no pattern was given.
type SearchMatch struct {
	Path string `json:"path"`
	Type string `json:"type"` // file, dir, symlink

	Line      int    `json:"line,omitempty"`      // from 1
	Column    int    `json:"column,omitempty"`    // of the match's first byte in its line, from 1
	Text      string `json:"text,omitempty"`      // the line, or what is around the match of a long one
	Truncated bool   `json:"truncated,omitempty"` // Text is not the whole line
}

// Why a search has stopped before its end.
const (
	SearchResults = "results"
	SearchTime    = "time"
	SearchDepth   = "depth" // it went on, but directories nested too deep were left out
)

// SearchSummary ends a search.
type SearchSummary struct {
	Matches int    `json:"matches"`
	Files   int    `json:"files"`             // that were looked at
	Bytes   int64  `json:"bytes"`             // that were read
	Skipped int    `json:"skipped"`           // files that are binary, too large or can't be read
	Stopped string `json:"stopped,omitempty"` // why matches may be missing
}

// SearchLine is one line of the answer: one of the two.
type SearchLine struct {
	Match   *SearchMatch   `json:"match,omitempty"`
	Summary *SearchSummary `json:"summary,omitempty"`
}
