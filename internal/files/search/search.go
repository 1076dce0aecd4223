// Package search finds files by name and lines by content in a tree.
//
// A search is bounded in time, results, and the size of a file and of a line; memory
// does not grow with what is searched. Patterns are RE2 and globs become RE2, so that
// none takes exponential time. Symlinks are not followed, only regular files are
// opened, and binary ones, which hold a NUL byte, are left out: of one whose NUL comes
// late the lines before it have been told. It keeps no state.
package search

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"regexp/syntax"
	"strings"

	"golang.org/x/sys/unix"

	"s0.run/internal/errdefs"
	"s0.run/internal/files"
	"s0.run/internal/files/walk"
	"s0.run/internal/procapi"
)

// maxInstructions bounds a compiled expression; hand-written ones have tens.
const maxInstructions = 5000

// Query is a checked search.
type Query struct {
	path             string
	pattern          *pattern // nil: by name alone
	include, exclude *globs
	maxResults       int
	maxFileBytes     int64
}

// Compile checks what is asked for in a tree.
func Compile(in files.Tree, req procapi.Search) (*Query, error) {
	if req.Path == "" {
		req.Path = "."
	}
	p, err := in.Resolve(req.Path)
	if err != nil {
		return nil, err
	}
	q := &Query{path: p, maxResults: procapi.DefaultSearchResults, maxFileBytes: procapi.DefaultSearchFileBytes}
	if err := q.bounds(req); err != nil {
		return nil, err
	}
	if req.Pattern == "" && len(req.Include) == 0 {
		return nil, invalid("pattern or include is required")
	}
	if q.include, err = compileGlobs("include", req.Include); err != nil {
		return nil, err
	}
	if q.exclude, err = compileGlobs("exclude", req.Exclude); err != nil {
		return nil, err
	}
	if req.Pattern != "" {
		q.pattern, err = compilePattern(req)
	}
	return q, err
}

func (q *Query) bounds(req procapi.Search) error {
	switch {
	case req.MaxResults < 0 || req.MaxResults > procapi.MaxSearchResults:
		return invalid("max_results: want 1 to %d", procapi.MaxSearchResults)
	case req.MaxFileBytes < 0 || req.MaxFileBytes > procapi.MaxSearchFileBytes:
		return invalid("max_file_bytes: want 1 to %d", procapi.MaxSearchFileBytes)
	case len(req.Pattern) > procapi.MaxSearchPattern:
		return invalid("pattern: at most %d bytes", procapi.MaxSearchPattern)
	case strings.Contains(req.Pattern, "\n"):
		return invalid("pattern: matches are within a line")
	}
	if req.MaxResults > 0 {
		q.maxResults = req.MaxResults
	}
	if req.MaxFileBytes > 0 {
		q.maxFileBytes = req.MaxFileBytes
	}
	return nil
}

func compilePattern(req procapi.Search) (*pattern, error) {
	expr := req.Pattern
	if !req.Regexp {
		if !req.IgnoreCase {
			return &pattern{literal: []byte(expr)}, nil
		}
		expr = regexp.QuoteMeta(expr)
	}
	if req.IgnoreCase {
		expr = "(?i)" + expr
	}
	if err := simple(expr); err != nil {
		return nil, err
	}
	re, err := regexp.Compile(expr)
	if err != nil {
		return nil, invalid("pattern: %s", err)
	}
	return &pattern{re: re}, nil
}

// simple refuses an expression that is a short way to write a huge one: the time
// that a line takes grows with both.
func simple(expr string) error {
	tree, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return invalid("pattern: %s", err)
	}
	prog, err := syntax.Compile(tree.Simplify())
	if err != nil || len(prog.Inst) > maxInstructions {
		return invalid("pattern: the expression is too large")
	}
	return nil
}

// Run searches and hands over the matches as they are found. The summary says
// whether there may be more; an error means that the search was given up.
func (q *Query) Run(ctx context.Context, found func(procapi.SearchMatch) error) (procapi.SearchSummary, error) {
	ctx, cancel := context.WithTimeout(ctx, procapi.MaxSearchTime)
	defer cancel()
	r := &run{Query: q, ctx: ctx, found: found, buf: make([]byte, blockBytes)}
	err := q.check()
	switch {
	case err == nil:
		err = walk.Walk(q.path, r.visit)
	case errors.Is(err, unix.ENOTDIR):
		err = r.single()
	}
	switch {
	case errors.Is(err, errStop):
		err = nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded) && errors.Is(err, context.DeadlineExceeded):
		r.summary.Stopped, err = procapi.SearchTime, nil
	}
	return r.summary, files.Failure(err, "searching")
}

// Check reports whether there is something to search.
func (q *Query) Check() error {
	if err := q.check(); err != nil && !errors.Is(err, unix.ENOTDIR) {
		return files.Failure(err, "searching")
	}
	return nil
}

func (q *Query) check() error {
	info, err := os.Stat(q.path)
	if err == nil && !info.IsDir() {
		return unix.ENOTDIR
	}
	return err
}

// errStop ends a walk that has found enough.
var errStop = errors.New("enough was found")

type run struct {
	*Query
	ctx     context.Context
	found   func(procapi.SearchMatch) error
	buf     []byte
	summary procapi.SearchSummary
}

func (r *run) visit(e *walk.Entry) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	if e.Path == "." {
		return nil
	}
	if files.Staged(path.Base(e.Path)) || r.exclude.match(e.Path) {
		return walk.SkipDir
	}
	if r.include.empty() || r.include.match(e.Path) {
		if err := r.look(e); err != nil {
			return err
		}
	}
	if e.IsDir() && e.Depth == walk.MaxDepth {
		r.summary.Stopped = procapi.SearchDepth
		return walk.SkipDir
	}
	return nil
}

// look at something whose name matches.
func (r *run) look(e *walk.Entry) error {
	full := filepath.Join(r.path, e.Path)
	if r.pattern == nil {
		r.summary.Files++
		return r.tell(procapi.SearchMatch{Path: full, Type: kind(e)})
	}
	if !e.IsRegular() {
		return nil
	}
	r.summary.Files++
	f, err := e.Open()
	if err != nil || e.Stat.Size > r.maxFileBytes {
		r.summary.Skipped++
		if err == nil {
			f.Close()
		}
		return nil
	}
	defer f.Close()
	return r.file(full, f, e.Stat.Size)
}

func kind(e *walk.Entry) string {
	switch {
	case e.IsDir():
		return "dir"
	case e.IsSymlink():
		return "symlink"
	}
	return "file"
}

// single searches one file, that the request names.
func (r *run) single() error {
	f, size, err := files.Open(r.path)
	if err != nil {
		return err
	}
	defer f.Close()
	name := filepath.Base(r.path)
	if r.exclude.match(name) || !r.include.empty() && !r.include.match(name) {
		return nil
	}
	r.summary.Files++
	switch {
	case r.pattern == nil:
		return r.tell(procapi.SearchMatch{Path: r.path, Type: "file"})
	case size > r.maxFileBytes:
		r.summary.Skipped++
		return nil
	}
	return r.file(r.path, f, size)
}

func (r *run) tell(m procapi.SearchMatch) error {
	if r.summary.Matches == r.maxResults {
		r.summary.Stopped = procapi.SearchResults
		return errStop
	}
	r.summary.Matches++
	if err := r.found(m); err != nil {
		return fmt.Errorf("telling a match: %w", err)
	}
	return nil
}

func invalid(format string, args ...any) error {
	return errdefs.WithCode(errdefs.InvalidArgument, "invalid_request", format, args...)
}
