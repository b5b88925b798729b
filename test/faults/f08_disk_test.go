//go:build e2e

package faults

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"berth/test/harness"
)

// TestF08Disk is about the rig of TestF08PowerCut: what was synced before a cut is there afterwards, and what was only
// written is not. It also counts what the rig must not count, syncs that end well while the power goes and whose data is
// lost: a machine without power would not have told anybody.
func TestF08Disk(t *testing.T) {
	const cuts, writers = 20, 4
	disk := harness.NewDisk(t, 64)
	var going atomic.Bool
	before, during, wrong, forgotten := 0, 0, 0, 0
	for round := range cuts {
		going.Store(false)
		var logs [writers]syncLog
		var working sync.WaitGroup
		for i := range logs {
			logs[i].path = filepath.Join(disk.Dir, strconv.Itoa(i))
			working.Go(func() { logs[i].fill(&going) })
		}
		time.Sleep(time.Duration(10+rand.IntN(80)) * time.Millisecond)
		unsynced := filepath.Join(disk.Dir, "unsynced"+strconv.Itoa(round))
		writeFile(t, unsynced, "x")
		going.Store(true)
		disk.Cut(t)
		working.Wait()
		disk.Unmount(t)
		disk.Mount(t)
		for i := range logs {
			l := &logs[i]
			have := l.records()
			if have < l.before {
				t.Errorf("log %d has %d records, of %d that were synced before the power went", i, have, l.before)
			}
			before += l.before
			during += l.during
			wrong += max(0, l.before+l.during-max(have, l.before))
		}
		if b, _ := os.ReadFile(unsynced); len(b) == 0 {
			forgotten++ // otherwise a commit of others took it along
		}
	}
	if before == 0 || forgotten == 0 {
		t.Errorf("%d records were synced before the cuts, and %d of %d unsynced files forgotten: this was no test", before, forgotten, cuts)
	}
	t.Logf("%d cuts: %d syncs before, none lost; %d more ended well while the power went, %d of them wrongly", cuts, before, during, wrong)
}

// TestF08DiskHeld: a mount namespace that goes later than its disk is not in the way of mounting that again.
func TestF08DiskHeld(t *testing.T) {
	disk := harness.NewDisk(t, 64)
	holder := exec.Command("unshare", "--mount", "sh", "-c", "echo; exec sleep 0.5")
	out, err := holder.StdoutPipe()
	if err == nil {
		err = holder.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Wait()
	out.Read(make([]byte, 1)) // it has its namespace
	disk.Cut(t)
	disk.Unmount(t)
	disk.Mount(t)
	writeFile(t, filepath.Join(disk.Dir, "file"), "x")
}

// syncLog is a file of numbered records, each synced before the next is written.
type syncLog struct {
	path           string
	before, during int // records whose sync ended well before the power began to go, and after
}

const recordSize = 600

func (l *syncLog) fill(going *atomic.Bool) {
	f, err := os.Create(l.path)
	if err != nil {
		return
	}
	defer f.Close()
	dir, err := os.Open(filepath.Dir(l.path))
	if err != nil {
		return
	}
	defer dir.Close()
	if f.Sync() != nil || dir.Sync() != nil {
		return
	}
	record := make([]byte, recordSize)
	for i := 0; ; i++ {
		binary.LittleEndian.PutUint32(record, uint32(i+1))
		if _, err := f.WriteAt(record, int64(i)*recordSize); err != nil {
			return
		}
		if syscall.Fdatasync(int(f.Fd())) != nil {
			return
		}
		if going.Load() {
			l.during++
		} else {
			l.before++
		}
	}
}

// records counts those that are whole, up to the first that is not.
func (l *syncLog) records() (n int) {
	b, _ := os.ReadFile(l.path)
	for ; len(b) >= recordSize && binary.LittleEndian.Uint32(b) == uint32(n+1); n++ {
		b = b[recordSize:]
	}
	return n
}
