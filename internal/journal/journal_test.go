package journal

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"berth/internal/fault"
	"berth/internal/faultpoint"
)

func open(t testing.TB, dir string, opts Options) *Journal {
	t.Helper()
	j, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func snapshot(j *Journal) map[string]string {
	m := map[string]string{}
	for k, v := range j.Range("") {
		m[k] = string(v)
	}
	return m
}

func TestRecordsSurviveReopening(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, Options{})
	var b Batch
	b.Put("container/a", []byte("1"))
	b.Put("container/b", nil)
	b.Put("volume/x", []byte("2"))
	if err := j.Commit(&b, true); err != nil {
		t.Fatal(err)
	}
	if err := j.Delete("container/a", false); err != nil {
		t.Fatal(err)
	}
	j.Close()

	j = open(t, dir, Options{})
	if got, want := snapshot(j), (map[string]string{"container/b": "", "volume/x": "2"}); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	var keys []string
	for k := range j.Range("container/") {
		keys = append(keys, k)
	}
	if fmt.Sprint(keys) != "[container/b]" {
		t.Errorf("Range = %v", keys)
	}
}

// history makes a journal of n committed batches and returns its file without the
// room for more, the offset behind each batch and the state at each.
func history(t *testing.T, n int, durable bool) (file []byte, ends []int64, states []map[string]string) {
	t.Helper()
	dir := t.TempDir()
	j := open(t, dir, Options{Room: 1 << 10})
	ends, states = append(ends, j.size), append(states, snapshot(j))
	for i := range n {
		var b Batch
		b.Put(fmt.Sprintf("k%d", i%5), bytes.Repeat([]byte{byte('a' + i)}, i*3))
		b.Delete(fmt.Sprintf("k%d", (i+2)%5))
		if err := j.Commit(&b, durable); err != nil {
			t.Fatal(err)
		}
		ends, states = append(ends, j.size), append(states, snapshot(j))
	}
	j.Close()
	file, err := os.ReadFile(filepath.Join(dir, fileName))
	if err != nil {
		t.Fatal(err)
	}
	return file[:ends[n]], ends, states
}

// TestRoom: frames that are waited for go where zeros were before. They stay over a restart; anything else behind the last
// frame goes, and so does what a full disk had room for in part.
func TestRoom(t *testing.T) {
	const room, leastRoom = 64 << 10, 1 << 10
	dir := t.TempDir()
	path := filepath.Join(dir, fileName)
	length := func() int64 {
		t.Helper()
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	j := open(t, dir, Options{Room: room})
	if j.Put("fleeting", []byte("1"), false); length() != j.size {
		t.Errorf("%d bytes for %d, though nobody waits for the disk", length(), j.size)
	}
	j.Put("a", []byte("1"), true)
	full := length()
	if full-j.size < room-leastRoom {
		t.Fatalf("%d bytes for %d: no room was made", full, j.size)
	}
	for i := range 5 {
		if j.Put("a", fmt.Append(nil, i), true); length() != full || j.end != full {
			t.Fatalf("%d bytes, were %d", length(), full)
		}
	}
	want := snapshot(j)
	j.Close()
	if j = open(t, dir, Options{Room: room}); length() != full || !maps.Equal(snapshot(j), want) {
		t.Errorf("after a restart: %d bytes, were %d; %v", length(), full, snapshot(j))
	}
	size := j.size
	j.Close()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), size+leastRoom); err != nil {
		t.Fatal(err)
	}
	if j = open(t, dir, Options{Room: room}); length() != size || !maps.Equal(snapshot(j), want) {
		t.Errorf("something lay behind the last frame: %d bytes for %d; %v", length(), size, snapshot(j))
	}
	j.Put("a", []byte("1"), true)
	for before := j.end; j.end == before; { // use it up
		if before-j.size < leastRoom {
			t.Fatalf("%d bytes are left, and no more room was made", before-j.size)
		}
		if err := j.Put("a", make([]byte, leastRoom/2), true); err != nil {
			t.Fatal(err)
		}
	}
	if j.end-j.size < room-leastRoom || length() != j.end {
		t.Errorf("%d bytes for %d", length(), j.size)
	}
}

func TestF09CutAtEveryByte(t *testing.T) {
	file, ends, states := history(t, 12, true)
	dir := t.TempDir()
	for cut := headerSize; cut <= len(file); cut++ {
		if err := os.WriteFile(filepath.Join(dir, fileName), file[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := Open(dir, Options{Room: 1 << 10})
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		want := 0
		for want+1 < len(ends) && ends[want+1] <= int64(cut) {
			want++
		}
		if got := snapshot(j); !maps.Equal(got, states[want]) {
			t.Fatalf("cut at %d: got %v, want %v", cut, got, states[want])
		}
		// It must go on from there.
		if err := j.Put("after", []byte("x"), true); err != nil {
			t.Fatal(err)
		}
		j.Close()
		j, err = Open(dir, Options{Room: 1 << 10})
		if err != nil {
			t.Fatalf("cut at %d, second open: %v", cut, err)
		}
		if v, ok := j.Get("after"); !ok || string(v) != "x" {
			t.Fatalf("cut at %d: record written afterwards is lost", cut)
		}
		j.Close()
	}
}

func TestF11FlippedByteIsFound(t *testing.T) {
	file, ends, states := history(t, 12, true)
	lastStart := ends[len(ends)-2]
	for i := range file {
		bad := bytes.Clone(file)
		bad[i] ^= 0x41
		c, err := parse(bad)
		switch {
		case int64(i) >= lastStart: // the last frame: like one torn by a power cut
			if err != nil {
				t.Fatalf("byte %d (last frame): %v", i, err)
			}
			if c.end != lastStart || len(c.live) != len(states[len(states)-2]) {
				t.Fatalf("byte %d: end %d, want %d", i, c.end, lastStart)
			}
		case i >= 8 && i < 12: // the version: damaged or from the future
			if !errors.Is(err, fault.DataLoss) && !errors.Is(err, fault.FailedPrecondition) {
				t.Fatalf("byte %d (version): %v", i, err)
			}
		case !errors.Is(err, fault.DataLoss):
			t.Fatalf("byte %d: err = %v, want DataLoss", i, err)
		}
	}
}

func TestF09UnsyncedFramesMayVanishInAnyOrder(t *testing.T) {
	file, ends, states := history(t, 6, false)
	for lost := 1; lost < len(ends); lost++ {
		bad := bytes.Clone(file)
		clear(bad[ends[lost-1]:ends[lost]]) // that frame's page was never written, later ones were
		c, err := parse(bad)
		if err != nil {
			t.Fatalf("frame %d lost: %v", lost, err)
		}
		if c.end != ends[lost-1] || len(c.live) != len(states[lost-1]) {
			t.Errorf("frame %d lost: replayed to %d, want %d", lost, c.end, ends[lost-1])
		}
	}
}

func TestDamagedCompactedPartIsRefused(t *testing.T) {
	image := encodeImage(7, map[string][]byte{"a": []byte("1"), "b": []byte("2")})
	image[len(image)-1] ^= 1 // its only and last frame
	if _, err := parse(image); !errors.Is(err, fault.DataLoss) {
		t.Errorf("err = %v, want DataLoss", err)
	}
	if _, err := parse(image[:len(image)-3]); !errors.Is(err, fault.DataLoss) {
		t.Errorf("cut: err = %v, want DataLoss", err)
	}
}

func TestF05NewerFormatIsRefused(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, Options{}).Close()
	path := filepath.Join(dir, fileName)
	file, _ := os.ReadFile(path)
	file[8] = version + 1
	os.WriteFile(path, file, 0o600)
	_, err := Open(dir, Options{})
	if !errors.Is(err, fault.FailedPrecondition) || fault.ReasonOf(err) != "JOURNAL_TOO_NEW" {
		t.Errorf("err = %v", err)
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(after, file) {
		t.Error("the refused file was changed")
	}
}

func TestF49SecondOpenerIsRefused(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, Options{})
	if _, err := Open(dir, Options{}); fault.ReasonOf(err) != "JOURNAL_IN_USE" {
		t.Errorf("second Open: %v", err)
	}
	j.Close()
	open(t, dir, Options{})
}

func TestConcurrentCommitsShareSyncs(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, Options{CompactAbove: 4 << 10})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 100 {
				if err := j.Put(fmt.Sprintf("w%d", w), fmt.Appendf(nil, "%d", i), i%3 == 0); err != nil {
					t.Error(err)
				}
				if v, _ := j.Get(fmt.Sprintf("w%d", w)); string(v) != fmt.Sprint(i) {
					t.Errorf("w%d = %q after putting %d", w, v, i)
				}
			}
		})
	}
	wg.Wait()
	if j.size > 3*(4<<10) {
		t.Errorf("file is %d bytes for %d live: never compacted", j.size, j.bytes)
	}
	j.Close()
	j = open(t, dir, Options{})
	for w := range 8 {
		if v, _ := j.Get(fmt.Sprintf("w%d", w)); string(v) != "99" {
			t.Errorf("w%d = %q after reopening", w, v)
		}
	}
}

func TestFailedRewriteLosesNothing(t *testing.T) {
	t.Cleanup(faultpoint.Reset)
	dir := t.TempDir()
	j := open(t, dir, Options{CompactAbove: 1})
	if err := faultpoint.Arm("journal.rewritten=error"); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if err := j.Put("k", fmt.Append(nil, i), true); err != nil {
			t.Fatal(err)
		}
	}
	j.Close()
	if _, err := os.Stat(filepath.Join(dir, tempName)); !os.IsNotExist(err) {
		t.Errorf("temporary file left: %v", err)
	}
	if v, _ := open(t, dir, Options{}).Get("k"); string(v) != "19" {
		t.Errorf("k = %q", v)
	}
}

func TestAfterAFailedSyncTheFileIsRewritten(t *testing.T) {
	dir := t.TempDir()
	j := open(t, dir, Options{})
	j.Put("a", []byte("1"), false)
	j.broken.Store(true) // as wait does when fdatasync fails
	if err := j.Put("b", []byte("2"), true); err != nil {
		t.Fatal(err)
	}
	if j.broken.Load() {
		t.Error("still broken")
	}
	j.Close()
	j = open(t, dir, Options{})
	if got, want := snapshot(j), (map[string]string{"a": "1", "b": "2"}); !maps.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

// TestSync: what was committed without waiting is on the disk then, also if a sync before had failed.
func TestSync(t *testing.T) {
	t.Cleanup(faultpoint.Reset)
	j := open(t, t.TempDir(), Options{})
	for _, broken := range []bool{false, true} {
		if err := j.Put("a", []byte("1"), false); err != nil {
			t.Fatal(err)
		}
		if j.durable == j.size {
			t.Fatal("it is on the disk before it was asked for")
		}
		j.broken.Store(broken)
		if err := j.Sync(); err != nil {
			t.Fatal(err)
		}
		if j.durable != j.size || j.synced != j.written || j.broken.Load() {
			t.Errorf("broken before: %t; on the disk are %d of %d bytes, batch %d of %d", broken, j.durable, j.size, j.synced, j.written)
		}
	}
	if err := faultpoint.Arm("journal.synced=error"); err != nil {
		t.Fatal(err)
	}
	if err := j.Sync(); err == nil {
		t.Error("a failure is not told")
	}
}

func TestTooLargeBatchIsRefused(t *testing.T) {
	j := open(t, t.TempDir(), Options{})
	if err := j.Put("k", make([]byte, MaxBatch+1), false); !errors.Is(err, fault.InvalidArgument) {
		t.Errorf("err = %v", err)
	}
}

// FuzzReplay feeds a journal file from elsewhere: Open must not panic, and what
// it accepts must be a journal like any other.
func FuzzReplay(f *testing.F) {
	f.Add(encodeImage(1, map[string][]byte{"a": []byte("1")}))
	torn := appendFrame(encodeImage(1, nil), 1, 0, []byte{opPut, 1, 'k', 1, 'v'})
	f.Add(torn)
	f.Add(torn[:len(torn)-1])
	f.Add(appendFrame(torn, 1, uint64(len(torn)), []byte{opDelete, 1, 'k'}))
	f.Add(appendFrame(encodeImage(1, nil), 1, 0, []byte{opPut, 0xff, 0xff, 0xff, 0xff, 0xff, 1}))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parse(data)
		if err != nil {
			if k := fault.KindOf(err); k != fault.DataLoss && k != fault.FailedPrecondition {
				t.Fatalf("kind %v of %v", k, err)
			}
			return
		}
		again, err := parse(appendFrame(bytes.Clone(data[:c.end]), c.salt, uint64(c.end), []byte{opPut, 1, 'z', 1, 'z'}))
		if err != nil {
			t.Fatalf("appending to an accepted file: %v", err)
		}
		if string(again.live["z"]) != "z" {
			t.Fatal("appended record missing")
		}
	})
}

func BenchmarkCommit(b *testing.B) {
	j := open(b, b.TempDir(), Options{})
	value := make([]byte, 500)
	b.Run("memory", func(b *testing.B) {
		for b.Loop() {
			if err := j.Put("key", value, false); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("durable", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := j.Put("key", value, true); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
}
