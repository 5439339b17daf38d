package wal

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
)

// A segment file, all integers little-endian:
//
//	header    4,096 bytes
//	  0   8   "STEMEWAL"
//	  8   4   format version (1)
//	  12  4   segment number
//	  16  4   salt
//	  20  4   flags: 1 = the file was reused, so bytes after the end of the log
//	          may be from its earlier use; otherwise they are zero
//	  24  16  incarnation of the node
//	  40  20  zero
//	  60  4   CRC32C of the 60 bytes before
//	  64      zero
//	batches   one after another, without gaps, each
//	  a batch frame, then its entry frames
//	the rest  zero, or stale
//
// A frame begins at a multiple of 8 and is
//
//	0  4  kind in the lowest byte, length of the payload in the upper three
//	4  4  CRC32C of salt (4), position (8), the 4 bytes at 0, payload
//	8     payload, then zeros up to a multiple of 8
//
// The position in the CRC makes a frame invalid anywhere but where it was
// written. The salt, drawn for each segment, makes it invalid in a later use of
// the file. Nor can a payload contain a forged frame.
//
// Kind 0 never occurs, so zeros are never a frame. Kind 0xFF is the batch frame,
// whose payload is
//
//	0   8  position of this frame
//	8   8  durable position: everything below it was durable when the batch
//	       was written
//	16  4  bytes of the whole batch, this frame included
//	20  4  number of entry frames
//
// A batch is written by one write and made durable by one sync, and the next
// batch is written only after that sync. So at most the last batch can be torn,
// and a valid batch frame proves that everything below its durable position was
// durable.
//
// A pack contains the bytes of a segment up to its end, unchanged, and a footer:
//
//	0   8   "STEMEPAK"
//	8   4   format version (1)
//	12  4   segment number
//	16  4   offset of the end (= where the footer begins)
//	20  4   zero
//	24  8   number of entries
//	32  32  BLAKE3-256 of everything before the footer
//	64  4   zero
//	68  4   CRC32C of the 68 bytes before
const (
	formatVersion = 1
	headerSize    = 4096
	footerSize    = 72
	frameHead     = 8
	batchPayload  = 24
	batchFrame    = frameHead + batchPayload
	batchKind     = 0xFF
	batchWord     = batchPayload<<8 | batchKind

	flagRecycled = 1

	segmentMagic = "STEMEWAL"
	packMagic    = "STEMEPAK"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// incarnation identifies one life of a node's volumes.
type incarnation [16]byte

func (i incarnation) String() string { return hex.EncodeToString(i[:]) }

// header is the head of a segment.
type header struct {
	seq, salt uint32
	recycled  bool
	inc       incarnation
}

func (h header) encode(b []byte) {
	clear(b[:headerSize])
	copy(b, segmentMagic)
	binary.LittleEndian.PutUint32(b[8:], formatVersion)
	binary.LittleEndian.PutUint32(b[12:], h.seq)
	binary.LittleEndian.PutUint32(b[16:], h.salt)
	if h.recycled {
		binary.LittleEndian.PutUint32(b[20:], flagRecycled)
	}
	copy(b[24:], h.inc[:])
	binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
}

func decodeHeader(b []byte) (header, error) {
	if len(b) < 64 || string(b[:8]) != segmentMagic {
		return header{}, fmt.Errorf("not a segment: bad magic")
	}
	if crc32.Checksum(b[:60], castagnoli) != binary.LittleEndian.Uint32(b[60:]) {
		return header{}, fmt.Errorf("segment header fails its checksum")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != formatVersion {
		return header{}, fmt.Errorf("segment has format %d, this release reads %d: run the release that wrote it", v, formatVersion)
	}
	h := header{
		seq:      binary.LittleEndian.Uint32(b[12:]),
		salt:     binary.LittleEndian.Uint32(b[16:]),
		recycled: binary.LittleEndian.Uint32(b[20:])&flagRecycled != 0,
	}
	copy(h.inc[:], b[24:])
	return h, nil
}

// frameSize is the size of the frame of a payload of n bytes.
func frameSize(n int) int { return (frameHead + n + 7) &^ 7 }

// frameCRC is the checksum of a frame. The sixteen bytes before the payload go
// through the table by hand: passing them to package crc32 as a slice would
// cost an allocation for each frame.
func frameCRC(salt uint32, pos Position, word uint32, payload []byte) uint32 {
	crc := ^uint32(0)
	crc = crcWord(crc, salt)
	crc = crcWord(crc, uint32(pos))
	crc = crcWord(crc, uint32(pos>>32))
	crc = crcWord(crc, word)
	return crc32.Update(^crc, castagnoli, payload)
}

func crcWord(crc, w uint32) uint32 {
	crc ^= w
	crc = castagnoli[byte(crc)] ^ crc>>8
	crc = castagnoli[byte(crc)] ^ crc>>8
	crc = castagnoli[byte(crc)] ^ crc>>8
	return castagnoli[byte(crc)] ^ crc>>8
}

// appendFrame appends the frame of an entry at pos.
func appendFrame(dst []byte, salt uint32, pos Position, e Entry) []byte {
	word := uint32(len(e.Payload))<<8 | uint32(e.Kind)
	dst = binary.LittleEndian.AppendUint32(dst, word)
	dst = binary.LittleEndian.AppendUint32(dst, frameCRC(salt, pos, word, e.Payload))
	dst = append(dst, e.Payload...)
	for len(dst)&7 != 0 {
		dst = append(dst, 0)
	}
	return dst
}

// batchHead is the payload of a batch frame.
type batchHead struct {
	start, durable Position
	bytes, entries uint32
}

// put writes the frame into the first batchFrame bytes of b.
func (h batchHead) put(b []byte, salt uint32) {
	binary.LittleEndian.PutUint32(b, batchWord)
	p := b[frameHead:batchFrame]
	binary.LittleEndian.PutUint64(p, uint64(h.start))
	binary.LittleEndian.PutUint64(p[8:], uint64(h.durable))
	binary.LittleEndian.PutUint32(p[16:], h.bytes)
	binary.LittleEndian.PutUint32(p[20:], h.entries)
	binary.LittleEndian.PutUint32(b[4:], frameCRC(salt, h.start, batchWord, p))
}

// parseBatchHead reads the payload of a frame with a valid checksum. A head
// that contradicts itself is invalid.
func parseBatchHead(p []byte, pos Position) (batchHead, bool) {
	if len(p) != batchPayload {
		return batchHead{}, false
	}
	h := batchHead{
		start:   Position(binary.LittleEndian.Uint64(p)),
		durable: Position(binary.LittleEndian.Uint64(p[8:])),
		bytes:   binary.LittleEndian.Uint32(p[16:]),
		entries: binary.LittleEndian.Uint32(p[20:]),
	}
	ok := h.start == pos && h.bytes >= batchFrame && h.bytes%8 == 0 &&
		h.durable <= pos && h.durable%8 == 0 && h.durable.Offset() >= headerSize
	return h, ok
}

// footer is the end of a pack.
type footer struct {
	seq, end uint32
	entries  uint64
	hash     [32]byte
}

func (f footer) encode() []byte {
	b := make([]byte, footerSize)
	copy(b, packMagic)
	binary.LittleEndian.PutUint32(b[8:], formatVersion)
	binary.LittleEndian.PutUint32(b[12:], f.seq)
	binary.LittleEndian.PutUint32(b[16:], f.end)
	binary.LittleEndian.PutUint64(b[24:], f.entries)
	copy(b[32:], f.hash[:])
	binary.LittleEndian.PutUint32(b[68:], crc32.Checksum(b[:68], castagnoli))
	return b
}

func decodeFooter(b []byte) (footer, error) {
	if len(b) != footerSize || string(b[:8]) != packMagic {
		return footer{}, fmt.Errorf("no pack footer")
	}
	if crc32.Checksum(b[:68], castagnoli) != binary.LittleEndian.Uint32(b[68:]) {
		return footer{}, fmt.Errorf("pack footer fails its checksum")
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != formatVersion {
		return footer{}, fmt.Errorf("pack has format %d, this release reads %d: run the release that wrote it", v, formatVersion)
	}
	f := footer{
		seq:     binary.LittleEndian.Uint32(b[12:]),
		end:     binary.LittleEndian.Uint32(b[16:]),
		entries: binary.LittleEndian.Uint64(b[24:]),
	}
	copy(f.hash[:], b[32:])
	return f, nil
}
