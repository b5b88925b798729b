package worker_test

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"berth/services/imaged/graph"
	"berth/services/imaged/trash"
	"berth/services/imaged/unpack"
	"berth/services/imaged/worker"
	"berth/services/imaged/worker/workertest"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

func TestMain(m *testing.M) { os.Exit(workertest.Main(m)) }

// rig is workers with a directory for layers.
type rig struct {
	testing.TB
	workers *worker.Workers
	dir     string
	layers  *graph.LayerDir
}

func newRig(t testing.TB) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: unpacking needs root")
	}
	return newRigAt(t, t.TempDir())
}

func newRigAt(t testing.TB, dir string) *rig {
	t.Helper()
	can, err := trash.Open(filepath.Join(dir, "trash"), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(can.Close)
	layers, err := graph.OpenLayerDir(filepath.Join(dir, "l"), unpack.Options{Whiteouts: unpack.OverlayUser}, can)
	if err != nil {
		t.Fatal(err)
	}
	return &rig{TB: t, workers: workertest.Workers(t), dir: dir, layers: layers}
}

// nothing makes sure that neither files nor processes are left.
func (r *rig) nothing() {
	r.Helper()
	if left, _ := os.ReadDir(filepath.Join(r.dir, "l")); len(left) > 0 {
		r.Errorf("left: %v", left)
	}
	if pids := children(r); len(pids) > 0 {
		r.Errorf("processes left: %v", pids)
	}
}

// children are the processes of this one that unpack, zombies too.
func children(t testing.TB) (pids []int) {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(tasks) == 0 {
		t.Fatalf("this kernel lists no children: %v", err)
	}
	for _, file := range tasks {
		b, _ := os.ReadFile(file)
		for _, f := range strings.Fields(string(b)) {
			pid, _ := strconv.Atoi(f)
			if name, _ := os.ReadFile("/proc/" + f + "/comm"); strings.HasPrefix(string(name), worker.Program) {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// stalled gives an archive half way, and the rest when it is let go on.
type stalled struct {
	r       io.Reader
	waiting chan struct{} // closed when half is given
	on      chan error    // how it goes on
	half    int64
	n       int64
}

func newStalled(archive []byte) *stalled {
	return &stalled{r: bytes.NewReader(archive), waiting: make(chan struct{}), on: make(chan error, 1), half: int64(len(archive) / 2)}
}

func (s *stalled) Read(p []byte) (int, error) {
	if s.n == s.half {
		close(s.waiting)
		if err := <-s.on; err != nil {
			return 0, err
		}
	} else if s.n < s.half {
		p = p[:min(int64(len(p)), s.half-s.n)]
	}
	n, err := s.r.Read(p)
	s.n += int64(n)
	return n, err
}

// archiveOf has a file for each size, called by its number.
func archiveOf(t testing.TB, sizes ...int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i, size := range sizes {
		if err := w.WriteHeader(&tar.Header{Name: "d/" + strconv.Itoa(i), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(size), ModTime: time.Unix(1000, 0)}); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, strings.Repeat(string(rune('a'+i%26)), size))
	}
	w.Close()
	return b.Bytes()
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	z.Write(b)
	z.Close()
	return out.Bytes()
}

func zstded(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z, err := zstd.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	z.Write(b)
	z.Close()
	return out.Bytes()
}

// plain hides what else a Reader is.
func plain(b []byte) io.Reader { return struct{ io.Reader }{bytes.NewReader(b)} }
