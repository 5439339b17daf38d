package memfs

import "math/rand/v2"

const (
	sectorSize = 512
	pageSize   = 4096
)

// content is the bytes of a file. Pages that were never written, or only with
// zeros, use no memory, so zero-filled files are cheap.
type content struct {
	pages []*[pageSize]byte
	size  int64
	// durableSize is the size that a crash may restore.
	durableSize int64
	// dirty holds the durable bytes (nil = zeros) of each sector written since the
	// last Sync. A sector that is not in it is durable.
	dirty map[int64]*[sectorSize]byte
	// lost is like dirty, for sectors whose Sync failed: the kernel marks them
	// clean, so no later Sync writes them.
	lost map[int64]*[sectorSize]byte
}

func (c *content) page(i int64, create bool) *[pageSize]byte {
	if i >= int64(len(c.pages)) {
		if !create {
			return nil
		}
		c.pages = append(c.pages, make([]*[pageSize]byte, i+1-int64(len(c.pages)))...)
	}
	if c.pages[i] == nil && create {
		c.pages[i] = new([pageSize]byte)
	}
	return c.pages[i]
}

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// touch saves the durable bytes of a sector before it changes.
func (c *content) touch(sector int64) {
	if _, ok := c.dirty[sector]; ok {
		return
	}
	if c.dirty == nil {
		c.dirty = map[int64]*[sectorSize]byte{}
	}
	if old, ok := c.lost[sector]; ok {
		delete(c.lost, sector)
		c.dirty[sector] = old
		return
	}
	p := c.page(sector*sectorSize/pageSize, false)
	at := sector * sectorSize % pageSize
	if p == nil || allZero(p[at:at+sectorSize]) {
		c.dirty[sector] = nil
		return
	}
	c.dirty[sector] = (*[sectorSize]byte)(append([]byte(nil), p[at:at+sectorSize]...))
}

func (c *content) write(b []byte, off int64) {
	for s := off / sectorSize; s*sectorSize < off+int64(len(b)); s++ {
		c.touch(s)
	}
	c.put(b, off)
	c.size = max(c.size, off+int64(len(b)))
}

func (c *content) put(b []byte, off int64) {
	for len(b) > 0 {
		i, at := off/pageSize, off%pageSize
		n := min(int64(len(b)), pageSize-at)
		if c.page(i, false) != nil || !allZero(b[:n]) {
			copy(c.page(i, true)[at:], b[:n])
		}
		b, off = b[n:], off+n
	}
}

func (c *content) read(b []byte, off int64) int {
	if off >= c.size {
		return 0
	}
	b = b[:min(int64(len(b)), c.size-off)]
	total := len(b)
	for len(b) > 0 {
		i, at := off/pageSize, off%pageSize
		n := min(int64(len(b)), pageSize-at)
		if p := c.page(i, false); p != nil {
			copy(b[:n], p[at:])
		} else {
			clear(b[:n])
		}
		b, off = b[n:], off+n
	}
	return total
}

func (c *content) truncate(size int64) {
	if size < c.size {
		// Truncated bytes must read as zero when the file grows again.
		for at := size; at < c.size; {
			n := min(c.size-at, pageSize-at%pageSize)
			if p := c.page(at/pageSize, false); p != nil {
				for s := at / sectorSize; s*sectorSize < at+n; s++ {
					c.touch(s)
				}
				clear(p[at%pageSize : at%pageSize+n])
			}
			at += n
		}
	}
	c.size = size
}

func (c *content) sync() {
	clear(c.dirty)
	c.durableSize = c.size
}

// syncFailed imitates a kernel that could not write pages.
func (c *content) syncFailed() {
	if c.lost == nil {
		c.lost = map[int64]*[sectorSize]byte{}
	}
	for s, old := range c.dirty {
		c.lost[s] = old
	}
	clear(c.dirty)
}

// crash keeps each unsynced sector with probability keep.
func (c *content) crash(rng *rand.Rand, keep float64) {
	restore := func(s int64, old *[sectorSize]byte) {
		if old == nil {
			old = new([sectorSize]byte)
		}
		c.put(old[:], s*sectorSize)
	}
	for _, s := range sortedKeys(c.dirty) {
		if rng.Float64() >= keep {
			restore(s, c.dirty[s])
		}
	}
	for s, old := range c.lost {
		restore(s, old)
	}
	size := c.durableSize
	if keep == 1 {
		size = c.size
	} else if c.size != size && rng.Float64() < keep {
		lo, hi := min(c.size, size), max(c.size, size)
		size = lo + rng.Int64N(hi-lo+1)
	}
	c.dirty, c.lost = nil, nil
	c.truncate(size)
	// Sectors beyond the end hold nothing that later growth could expose.
	c.size, c.durableSize, c.dirty = size, size, nil
}
