package erofs

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"s0.run/internal/errdefs"
)

// Close writes what describes the tree, and the superblock. The image's size in bytes is
// what it returns; making that durable is the caller's.
func (w *Writer) Close() (int64, error) {
	meta := w.offset
	w.number(meta)
	if err := w.placeDirs(meta); err != nil {
		return 0, err
	}
	if err := w.writeInodes(meta); err != nil {
		return 0, err
	}
	return w.offset, w.writeSuper(uint32(meta >> blockBits))
}

// number gives every inode its place behind meta, from which its number follows. None
// crosses the end of a block.
func (w *Writer) number(meta int64) {
	next := meta
	for _, n := range w.inodes {
		if next>>blockBits != (next+inodeSize-1)>>blockBits {
			next = (next + blockSize - 1) &^ (blockSize - 1)
		}
		n.nid = uint64(next-meta) / slotSize
		next += inodeSize + int64(len(n.xattrs)) + chunkSlot*int64(len(n.chunks))
		next = (next + slotSize - 1) &^ (slotSize - 1)
	}
	w.offset = (next + blockSize - 1) &^ (blockSize - 1)
}

// placeDirs writes the directories' entries.
func (w *Writer) placeDirs(int64) error {
	for _, n := range w.inodes {
		if n.names == nil {
			continue
		}
		n.links++ // its own "."
		blocks, size := dirBlocks(n)
		n.block, n.size = uint32(w.offset>>blockBits), size
		for _, child := range n.names {
			if child.names != nil {
				n.links++
			}
		}
		if err := w.append(blocks); err != nil {
			return err
		}
	}
	return nil
}

// dirBlocks packs a directory: in each block the entries, then their names, all sorted.
func dirBlocks(dir *inode) (all []byte, size uint64) {
	names := append(slices.Collect(maps.Keys(dir.names)), ".", "..")
	slices.Sort(names)
	for len(names) > 0 {
		fits, used := 0, 0
		for fits < len(names) && used+direntSize+len(names[fits]) <= blockSize {
			used += direntSize + len(names[fits])
			fits++
		}
		block := make([]byte, blockSize)
		at := fits * direntSize
		for i, name := range names[:fits] {
			n := dir.lookup(name)
			entry := block[i*direntSize:]
			le.PutUint64(entry, n.nid)
			le.PutUint16(entry[8:], uint16(at))
			entry[10] = fileType(n.attr.Mode)
			at += copy(block[at:], name)
		}
		names = names[fits:]
		size = uint64(len(all) + at)
		all = append(all, block...)
	}
	return all, size
}

func (n *inode) lookup(name string) *inode {
	switch name {
	case ".":
		return n
	case "..":
		return n.parent
	}
	return n.names[name]
}

func fileType(mode uint32) byte {
	switch mode & TypeMask {
	case Regular:
		return 1
	case Dir:
		return 2
	case Char:
		return 3
	case Fifo:
		return 5
	}
	return 7 // a symlink
}

// writeInodes writes the inodes, some at a time.
func (w *Writer) writeInodes(meta int64) error {
	const chunk = 1 << 20
	begin := meta
	var b []byte
	flush := func(next int64) error {
		if len(b) > 0 {
			if _, err := w.w.WriteAt(b, begin); err != nil {
				return err
			}
		}
		begin, b = next, b[:0]
		return nil
	}
	for _, n := range w.inodes {
		at := meta + int64(n.nid)*slotSize
		if len(b) > chunk {
			if err := flush(at); err != nil {
				return err
			}
		}
		b = append(b, make([]byte, at-begin-int64(len(b)))...)
		b = append(b, n.encode()...)
		b = append(b, n.xattrs...)
		for _, at := range n.chunks {
			b = le.AppendUint32(b, at)
		}
	}
	return flush(0)
}

func (n *inode) encode() []byte {
	b := make([]byte, inodeSize)
	le.PutUint16(b, extended)
	if len(n.xattrs) > 0 {
		le.PutUint16(b[2:], uint16((len(n.xattrs)-xattrHeader)/4+1))
	}
	le.PutUint16(b[4:], uint16(n.attr.Mode))
	le.PutUint64(b[8:], n.size)
	le.PutUint32(b[16:], n.block) // of a whiteout: device 0:0
	if n.chunks != nil {
		le.PutUint16(b, extended|chunked)
		le.PutUint32(b[16:], uint32(n.chunk))
	}
	le.PutUint32(b[20:], n.number)
	le.PutUint32(b[24:], n.attr.UID)
	le.PutUint32(b[28:], n.attr.GID)
	le.PutUint64(b[32:], uint64(n.attr.Seconds))
	le.PutUint32(b[40:], n.attr.Nanos)
	le.PutUint32(b[44:], n.links)
	return b
}

func (w *Writer) writeSuper(meta uint32) error {
	b := make([]byte, blockSize)
	s := b[superOffset:]
	le.PutUint32(s, superMagic)
	s[12] = blockBits
	le.PutUint16(s[14:], uint16(w.inodes[0].nid)) // the root is the first: 0
	le.PutUint64(s[16:], uint64(len(w.inodes)))
	le.PutUint32(s[36:], uint32(w.offset>>blockBits))
	le.PutUint32(s[40:], meta)
	if w.chunked {
		le.PutUint32(s[80:], chunkedFeature)
	}
	_, err := w.w.WriteAt(b, 0)
	return err
}

const xattrHeader = 12

// xattrPrefixes are the spaces of names that the format has numbers for.
var xattrPrefixes = []struct {
	prefix string
	index  byte
}{{"user.", 1}, {"trusted.", 4}, {"security.", 6}}

func encodeXattrs(all map[string]string) ([]byte, error) {
	if len(all) == 0 {
		return nil, nil
	}
	b := make([]byte, xattrHeader)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		index, rest := splitXattr(name)
		value := all[name]
		if index == 0 || rest == "" || len(rest) > MaxName || len(value) > 0xFFFF {
			return nil, fmt.Errorf("extended attribute %.64q of %d bytes", name, len(value))
		}
		b = append(b, byte(len(rest)), index)
		b = le.AppendUint16(b, uint16(len(value)))
		b = append(append(b, rest...), value...)
		b = append(b, make([]byte, -len(b)&3)...)
	}
	if len(b) > maxXattrs {
		return nil, errdefs.New(errdefs.Exhausted, "extended attributes of more than %d bytes", maxXattrs)
	}
	return b, nil
}

func splitXattr(name string) (index byte, rest string) {
	for _, p := range xattrPrefixes {
		if rest, ok := strings.CutPrefix(name, p.prefix); ok {
			return p.index, rest
		}
	}
	return 0, ""
}
