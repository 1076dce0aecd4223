package erofs

import (
	"errors"
	"io"
)

const (
	// chunkSlot is what a chunk costs in the image whether it is a hole or not.
	chunkSlot      = 4
	maxChunk       = 18 // 1 GiB: an empty file of 16 TiB has 2^14 of them
	chunkedFeature = 4
)

// Extent is where a file has data.
type Extent struct{ Offset, Length int64 }

// Sparse says how a file with holes is best kept, and what the image has of it then: at
// most its data, a 1024th of its size, and less where larger chunks cost less.
func Sparse(size int64, extents []Extent) (chunk uint8, cost int64) {
	cost = -1
	for bits := range uint8(maxChunk + 1) {
		length := int64(blockSize) << bits
		all := (size + length - 1) / length
		c := all * chunkSlot
		last := int64(-1)
		for _, e := range extents {
			from, to := e.Offset/length, (e.Offset+e.Length-1)/length
			c += (to - max(from, last+1) + 1) * length
			last = to
		}
		if cost < 0 || c < cost {
			chunk, cost = bits, c
		}
	}
	return chunk, cost
}

// SparseFile adds a regular file of size bytes that has data in extents, which are in
// order and apart, and holes else. What of the data is not there any more is zeros.
func (w *Writer) SparseFile(path string, attr Attr, size int64, extents []Extent, data io.ReaderAt) error {
	attr.Mode = attr.Mode&^TypeMask | Regular
	n, err := w.add(path, attr)
	if err != nil {
		return err
	}
	n.chunk, _ = Sparse(size, extents)
	n.size = uint64(size)
	length := int64(blockSize) << n.chunk
	n.chunks = make([]uint32, (size+length-1)/length)
	for i := range n.chunks {
		n.chunks[i] = hole
	}
	w.chunked = true
	next := int64(0) // the first chunk that is not written
	for _, e := range extents {
		from, to := max(e.Offset/length, next), (e.Offset+e.Length-1)/length
		if from > to {
			continue
		}
		for i := from; i <= to; i++ {
			n.chunks[i] = uint32((w.offset + (i-from)*length) >> blockBits)
		}
		if err := w.copy(data, from*length, min((to+1)*length, size)); err != nil {
			return err
		}
		next = to + 1
	}
	w.bytes += size
	return nil
}

// copy writes what lies between two places of a file.
func (w *Writer) copy(data io.ReaderAt, from, to int64) error {
	for from < to {
		part := w.buffer[:min(int64(len(w.buffer)), to-from)]
		n, err := data.ReadAt(part, from)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		clear(part[n:])
		if err := w.append(part); err != nil {
			return err
		}
		from += int64(len(part))
	}
	return nil
}
