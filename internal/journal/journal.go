// Package journal keeps a daemon's records: a map from string keys to byte
// values, held in memory and written to an append-only file.
//
// It is made for a few thousand small records that are read all the time and
// must be written without delaying a container's start. Reading touches no
// disk. A [Batch] of changes is one frame in the file and takes effect whole or
// not at all. [Journal.Commit] either returns as soon as the kernel has the
// frame (it then survives the death of the process, not of the machine) or
// waits until it is on the disk, as [Journal.Sync] does later; one fdatasync serves all who wait at that
// moment. It is not made for large values, nor for more data than fits in
// memory: everything is.
//
// # The file
//
// DIR/journal starts with a header and continues with frames:
//
//	header  "BERTHJNL"  version u32  salt u64  base u64  crc u32
//	frame   magic u32   length u32   durable u64  crc u32  payload
//	payload { op u8  key (uvarint length, bytes)  [value (same)] }...
//
// Numbers are little-endian, checksums CRC-32C; a frame's covers the salt,
// length, durable and payload, so that bytes of another journal quoted in a
// value are never taken for a frame of this one. "durable" is the offset up to
// which the file was known to be on disk when the frame was written, "base" the
// size the file was created with, which includes all it had at that time.
//
// # After a crash
//
// A power cut may lose or tear, in any order, whatever had not been synced.
// Replay therefore cuts the file at the first bad frame if nothing says that
// this frame had ever been durable: neither base nor the "durable" of any good
// frame behind it. Otherwise the file was damaged later; Open refuses it with a
// fault.DataLoss that names the offset, for silently dropping confirmed records
// would be worse than stopping.
//
// Behind the last frame there may be zeros: room for frames to come, written and synced beforehand. A frame that goes there
// changes neither the size of the file nor where its blocks are, so a sync need not wait for the file system's own
// journal, and for all that others have in it. Only who syncs makes room.
//
// When more than half of a file is overwritten or deleted records it is
// rewritten: a temporary file, fsync, rename, fsync of the directory.
package journal

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"berth/internal/fault"
	"berth/internal/faultpoint"
)

var (
	pointAppended  = faultpoint.Declare("journal.appended", "a batch is in the page cache, its caller not answered")
	pointSynced    = faultpoint.Declare("journal.synced", "a batch is on disk, its caller not answered")
	pointRewritten = faultpoint.Declare("journal.rewritten", "the compacted file is on disk under its temporary name")
	pointRenamed   = faultpoint.Declare("journal.renamed", "the compacted file has replaced the old one, directory not synced")
)

const (
	fileName = "journal"
	tempName = "journal.new"

	lockPatience = 500 * time.Millisecond

	// MaxBatch is the largest encoded batch in bytes that Commit takes.
	MaxBatch = 16 << 20
)

// Options are the knobs of a journal; the zero value is right for daemons.
type Options struct {
	// CompactAbove is the file size in bytes below which garbage is not worth
	// removing. Zero means 1 MiB.
	CompactAbove int64
	// Room is how many bytes are made ready at a time for frames to come, when less than a 64th of that is left. Zero means
	// 1 MiB.
	Room int64
	// Mode of the directory if Open has to create it. Zero means 0700.
	Mode os.FileMode
}

// Journal is an open journal. Its methods may be called from any goroutine.
type Journal struct {
	path string
	opts Options
	dir  *os.File // holds the flock

	// Locks are taken in the order syncMu, writeMu, mapMu.
	syncMu sync.Mutex // held during fdatasync and compaction
	synced uint64     // number of the last batch on disk

	writeMu sync.Mutex // file appends, and compaction
	file    *os.File
	salt    uint64
	size    int64  // end of the last frame
	end     int64  // of the file, of the zeros behind that frame
	durable int64  // the file is on disk up to here
	written uint64 // number of the last batch written

	mapMu sync.RWMutex
	live  map[string][]byte
	bytes int64 // encoded size of live

	broken atomic.Bool // the disk refused a sync: rewrite before trusting the file again
}

// Open reads the journal in dir, creating both if need be, and locks it against
// a second opener until Close. Kinds: FailedPrecondition when it is in use or
// was written by a newer version, DataLoss when it is damaged.
func Open(dir string, opts Options) (*Journal, error) {
	if opts.CompactAbove == 0 {
		opts.CompactAbove = 1 << 20
	}
	if opts.Room == 0 {
		opts.Room = 1 << 20
	}
	if opts.Mode == 0 {
		opts.Mode = 0o700
	}
	if err := os.MkdirAll(dir, opts.Mode); err != nil {
		return nil, err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	j := &Journal{path: filepath.Join(dir, fileName), opts: opts, dir: d}
	if err := j.open(); err != nil {
		if j.file != nil {
			j.file.Close()
		}
		d.Close()
		return nil, err
	}
	return j, nil
}

func (j *Journal) open() error {
	// A process that was killed leaves its lock for a moment to a child that has not yet got to its execve(2).
	err := flock(j.dir)
	for deadline := time.Now().Add(lockPatience); err != nil && time.Now().Before(deadline); err = flock(j.dir) {
		time.Sleep(lockPatience / 50)
	}
	if err != nil {
		return fault.FailedPrecondition.Errorf("JOURNAL_IN_USE", "journal %s is in use by another process", j.path).With("path", j.path)
	}
	os.Remove(filepath.Join(filepath.Dir(j.path), tempName)) // of a compaction that did not get to its rename
	data, err := os.ReadFile(j.path)
	if os.IsNotExist(err) {
		j.live = map[string][]byte{}
		return j.rewrite()
	}
	if err != nil {
		return err
	}
	content, err := parse(data)
	if err != nil {
		return fmt.Errorf("journal %s: %w", j.path, err)
	}
	j.live, j.salt, j.size = content.live, content.salt, content.end
	for k, v := range j.live {
		j.bytes += entrySize(k, v)
	}
	if j.file, err = os.OpenFile(j.path, os.O_RDWR, 0); err != nil {
		return err
	}
	if j.end = int64(len(data)); !isZero(data[j.size:]) {
		if err := j.file.Truncate(j.size); err != nil {
			return err
		}
		j.end = j.size
	}
	// What was replayed may be in the page cache only; frames written from now
	// on will say that it is durable.
	if err := j.file.Sync(); err != nil {
		return err
	}
	j.durable = j.size
	return nil
}

// Close syncs what was committed and releases the lock.
func (j *Journal) Close() error {
	j.syncMu.Lock()
	defer j.syncMu.Unlock()
	j.writeMu.Lock()
	defer j.writeMu.Unlock()
	err := j.file.Sync()
	if cerr := j.file.Close(); err == nil {
		err = cerr
	}
	j.dir.Close()
	return err
}

// Get is the value of key. The caller must not change it.
func (j *Journal) Get(key string) ([]byte, bool) {
	j.mapMu.RLock()
	defer j.mapMu.RUnlock()
	v, ok := j.live[key]
	return v, ok
}

// Len is the number of keys.
func (j *Journal) Len() int {
	j.mapMu.RLock()
	defer j.mapMu.RUnlock()
	return len(j.live)
}

// Range yields, in key order, the records whose keys start with prefix, as they
// all were at one moment. The caller must not change the values; it may commit
// while ranging.
func (j *Journal) Range(prefix string) iter.Seq2[string, []byte] {
	type record struct {
		key   string
		value []byte
	}
	return func(yield func(string, []byte) bool) {
		var found []record
		for k, v := range j.Scan(prefix) {
			found = append(found, record{k, v})
		}
		slices.SortFunc(found, func(a, b record) int { return strings.Compare(a.key, b.key) })
		for _, r := range found {
			if !yield(r.key, r.value) {
				return
			}
		}
	}
}

// Scan is Range in no order and without a copy, for a start with very many
// records. Until it ends nothing can be committed, by the caller least of all.
func (j *Journal) Scan(prefix string) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		j.mapMu.RLock()
		defer j.mapMu.RUnlock()
		for k, v := range j.live {
			if strings.HasPrefix(k, prefix) && !yield(k, v) {
				return
			}
		}
	}
}

// Commit applies b, waiting for the disk if durable.
//
// On an error from writing (a full disk, a batch over MaxBatch) nothing has
// changed. On an error from waiting the change is visible but may not outlive a
// power cut; later commits repair the file first.
func (j *Journal) Commit(b *Batch, durable bool) error {
	if len(b.ops) == 0 {
		return nil
	}
	if b.size > MaxBatch {
		return fault.InvalidArgument.Errorf("RECORD_TOO_LARGE", "record of %d bytes is larger than %d", b.size, MaxBatch)
	}
	if j.broken.Load() {
		if err := j.compact(func() bool { return j.broken.Load() }); err != nil {
			return err
		}
	}
	number, err := j.append(b)
	if err != nil {
		return err
	}
	if err := pointAppended.Hit(); err != nil {
		return err
	}
	if durable {
		if err := j.wait(number); err != nil {
			return err
		}
		if err := pointSynced.Hit(); err != nil {
			return err
		}
	}
	// The batch is safe in the file as it is: a rewrite that fails, say for
	// lack of space, is nobody's error and is tried again at the next commit.
	_ = j.compact(j.mostlyGarbage)
	return nil
}

// Sync waits until all that was committed before is on the disk: for who has something else to do between writing and
// waiting. An error is that of a durable Commit.
func (j *Journal) Sync() error {
	if j.broken.Load() {
		if err := j.compact(func() bool { return j.broken.Load() }); err != nil {
			return err
		}
	}
	j.writeMu.Lock()
	last := j.written
	j.writeMu.Unlock()
	if err := j.wait(last); err != nil {
		return err
	}
	return pointSynced.Hit()
}

// Put commits one record; a shorthand.
func (j *Journal) Put(key string, value []byte, durable bool) error {
	var b Batch
	b.Put(key, value)
	return j.Commit(&b, durable)
}

// Delete commits the removal of one record; a shorthand.
func (j *Journal) Delete(key string, durable bool) error {
	var b Batch
	b.Delete(key)
	return j.Commit(&b, durable)
}

// append writes b's frame behind the last one and applies b to the map.
func (j *Journal) append(b *Batch) (number uint64, err error) {
	j.writeMu.Lock()
	defer j.writeMu.Unlock()
	frame := appendFrame(nil, j.salt, uint64(j.durable), b.payload())
	if _, err := j.file.WriteAt(frame, j.size); err != nil {
		// Part of the frame may be there. The next one overwrites it; should
		// we die before that, replay cuts it off.
		j.file.Truncate(j.size)
		j.end = j.size
		return 0, err
	}
	j.size += int64(len(frame))
	j.end = max(j.end, j.size)
	j.written++
	j.mapMu.Lock()
	defer j.mapMu.Unlock()
	j.bytes += b.apply(j.live)
	return j.written, nil
}

// wait returns once batch number is on disk. Of all who wait, the one that gets
// the lock syncs what everybody has written by then; the others find it done.
func (j *Journal) wait(number uint64) error {
	j.syncMu.Lock()
	defer j.syncMu.Unlock()
	if j.synced >= number {
		return nil
	}
	j.writeMu.Lock()
	j.makeRoom()
	last, size := j.written, j.size
	j.writeMu.Unlock()
	if err := fdatasync(j.file); err != nil {
		// After a failed sync the kernel may have dropped the dirty pages, and
		// the next sync would succeed without them: only a rewrite is honest.
		j.broken.Store(true)
		return err
	}
	j.synced = last
	j.writeMu.Lock()
	j.durable = size
	j.writeMu.Unlock()
	return nil
}

// makeRoom writes zeros behind the last frame, for the sync that follows. It needs writeMu. On a full disk there is none:
// frames then need the space that they take, as without it.
func (j *Journal) makeRoom() {
	if j.end-j.size >= j.opts.Room/64 {
		return
	}
	if n, err := j.file.WriteAt(make([]byte, j.opts.Room), j.end); err != nil {
		j.file.Truncate(j.end) // what was had of it, somebody else may need
	} else {
		j.end += int64(n)
	}
}

func isZero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }

// mostlyGarbage needs writeMu.
func (j *Journal) mostlyGarbage() bool {
	j.mapMu.RLock()
	defer j.mapMu.RUnlock()
	return j.size > j.opts.CompactAbove && j.size > 2*j.bytes
}

// compact rewrites the file if due says so.
func (j *Journal) compact(due func() bool) error {
	j.writeMu.Lock()
	yes := due()
	j.writeMu.Unlock()
	if !yes {
		return nil
	}
	j.syncMu.Lock()
	defer j.syncMu.Unlock()
	j.writeMu.Lock()
	defer j.writeMu.Unlock()
	if !due() { // another did it
		return nil
	}
	return j.rewrite()
}

// rewrite replaces the file by one that holds the live records only. It needs
// syncMu and writeMu, or a journal nobody else has yet.
func (j *Journal) rewrite() (err error) {
	dir := filepath.Dir(j.path)
	temp := filepath.Join(dir, tempName)
	f, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(temp)
		}
	}()
	salt := newSalt()
	image := encodeImage(salt, j.live)
	if _, err := f.Write(image); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := pointRewritten.Hit(); err != nil {
		return err
	}
	if err := os.Rename(temp, j.path); err != nil {
		return err
	}
	// From here on the new file is the journal, whatever happens.
	if j.file != nil {
		j.file.Close()
	}
	j.file, j.salt, j.size, j.durable, j.synced = f, salt, int64(len(image)), int64(len(image)), j.written
	j.end = j.size
	j.broken.Store(false)
	if err := pointRenamed.Hit(); err != nil {
		j.broken.Store(true)
		return nil
	}
	if err := j.dir.Sync(); err != nil {
		// The old file may come back after a power cut: its last batches are
		// not durable until a rename is.
		j.broken.Store(true)
	}
	return nil
}

// encodeImage is a whole file with nothing but live in it.
func encodeImage(salt uint64, live map[string][]byte) []byte {
	const perFrame = 1 << 20
	out := make([]byte, headerSize)
	var b Batch
	for _, k := range slices.Sorted(maps.Keys(live)) {
		b.Put(k, live[k])
		if b.size >= perFrame {
			out = appendFrame(out, salt, 0, b.payload())
			b = Batch{}
		}
	}
	if len(b.ops) > 0 {
		out = appendFrame(out, salt, 0, b.payload())
	}
	putHeader(out, salt, uint64(len(out)))
	return out
}

func newSalt() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return binary.LittleEndian.Uint64(b[:])
}

func flock(f *os.File) error {
	return control(f, func(fd int) error { return syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB) })
}

func fdatasync(f *os.File) error {
	if err := control(f, syscall.Fdatasync); err != nil {
		return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
	}
	return nil
}

func control(f *os.File, call func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var callErr error
	err = raw.Control(func(fd uintptr) {
		for {
			if callErr = call(int(fd)); callErr != syscall.EINTR {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	return callErr
}
