package worker_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/internal/fault"
	"berth/libcontainer/landlock"
	"berth/libcontainer/seccomp"
	"berth/libcontainer/seccomp/filter"
	"berth/services/imaged/inflate"
	"berth/services/imaged/unpack"
	"berth/services/imaged/worker/workertest"

	"github.com/hashicorp/go-hclog"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// grows is a worker.File that gets a piece at a time.
type grows struct {
	io.Reader
	f    *os.File
	b    []byte
	size int64
	err  error // at the end
}

func (g *grows) File() *os.File { return g.f }

func (g *grows) Wait(off int64) (int64, error) {
	for off >= g.size {
		if len(g.b) == 0 {
			return 0, g.err
		}
		n := min(1000, len(g.b))
		g.f.WriteAt(g.b[:n], g.size)
		g.b, g.size = g.b[n:], g.size+int64(n)
	}
	return g.size, nil
}

func (r *rig) file(b []byte) *os.File {
	r.Helper()
	f, err := os.CreateTemp(r.TempDir(), "")
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { f.Close() })
	f.Write(b)
	f.Seek(0, io.SeekStart)
	return f
}

// TestSources: whatever an archive comes from and however it is compressed, the
// layer and the digest are the same.
func TestSources(t *testing.T) {
	r := newRig(t)
	archive := append(archiveOf(t, 3, 300_000, 0, 77), make([]byte, 5000)...) // padding counts
	want := digest.FromBytes(archive)
	for form, b := range map[string][]byte{"plain": archive, "gzip": gzipped(t, archive), "zstd": zstded(t, archive)} {
		for name, src := range map[string]io.Reader{
			"pipe": plain(b), "file": r.file(b), "growing": &grows{f: r.file(nil), b: b, err: io.EOF},
		} {
			s, got, err := r.workers.Unpack(t.Context(), r.layers, src)
			if err != nil {
				t.Errorf("%s from a %s: %v", form, name, err)
				continue
			}
			if got != want || s.Layer().Entries != 4 || s.Layer().Bytes != 300_080 {
				t.Errorf("%s from a %s: %s, %+v; want %s", form, name, got, s.Layer(), want)
			}
			all, err := filepath.Glob(filepath.Join(r.dir, "l/new.*/d/1"))
			if content, _ := os.ReadFile(strings.Join(all, "")); err != nil || string(content) != strings.Repeat("b", 300_000) {
				t.Errorf("%s from a %s: %v has %d bytes", form, name, all, len(content))
			}
			s.Discard()
		}
	}
	r.nothing()
}

// TestFailures: errors mean the same as if it had happened in this process.
func TestFailures(t *testing.T) {
	r := newRig(t)
	r.workers.Files = unpack.Limits{Bytes: 10 << 20}
	r.workers.Inflate = inflate.Limits{Bytes: 20 << 20, Grace: 1 << 20, Ratio: 100}
	broken := errors.New("whoever sends it has gone")
	cut := gzipped(t, archiveOf(t, 1000, 1000))
	for name, c := range map[string]struct {
		src  io.Reader
		want []error
		says string
	}{
		"climbs":         {plain(bytes.Replace(archiveOf(t, 1), []byte("d/0"), []byte("../"), 1)), []error{unpack.ErrRefused, fault.DataLoss}, "archive refused"},
		"no archive":     {plain(bytes.Repeat([]byte("garbage"), 1000)), []error{unpack.ErrRefused, fault.DataLoss}, ""},
		"cut":            {plain(cut[:len(cut)-20]), []error{fault.DataLoss}, ""},
		"bomb":           {plain(gzipped(t, make([]byte, 30<<20))), []error{inflate.ErrRefused, fault.DataLoss}, "expands"},
		"too large":      {plain(archiveOf(t, 11<<20)), []error{unpack.ErrRefused, fault.DataLoss}, "add up to more"},
		"xz":             {plain([]byte("\xfd7zXZ\x00 and so on")), []error{inflate.ErrRefused, fault.DataLoss}, "xz"},
		"sender fails":   {io.MultiReader(bytes.NewReader(archiveOf(t, 5000)[:2000]), failing{broken}), []error{broken}, ""},
		"download fails": {&grows{f: r.file(nil), b: archiveOf(t, 5000)[:2000], err: broken}, []error{broken}, ""},
		"file too short": {shortFile{r.file(archiveOf(t, 5000)[:2000])}, nil, "fewer than"},
	} {
		_, _, err := r.workers.Unpack(t.Context(), r.layers, c.src)
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		for _, want := range c.want {
			if !errors.Is(err, want) {
				t.Errorf("%s: %v, want it to be %v", name, err, want)
			}
		}
		if !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want it to say %q", name, err, c.says)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	s := newStalled(archiveOf(t, 1<<20))
	defer close(s.on)
	go func() { <-s.waiting; cancel(broken) }()
	if _, _, err := r.workers.Unpack(ctx, r.layers, s); !errors.Is(err, broken) {
		t.Errorf("cancelled: %v", err)
	}
	r.nothing()
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// shortFile says that it has more than it has.
type shortFile struct{ f *os.File }

func (s shortFile) File() *os.File           { return s.f }
func (s shortFile) Read([]byte) (int, error) { panic("the process reads it") }
func (s shortFile) Wait(off int64) (int64, error) {
	if off > 1<<20 {
		return 0, io.EOF
	}
	return 1<<20 + 1, nil
}

// TestF12Full: a full disk is told as what it is, and the space is back.
func TestF12Full(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	r := newRigAt(t, dir)
	if _, _, err := r.workers.Unpack(t.Context(), r.layers, plain(archiveOf(t, 20<<20))); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("%v, want ENOSPC", err)
	}
	r.nothing()
}

// TestS13Memory: with the largest window that a zstd stream may ask for, the process stays below 256 MiB; one that asks for
// more is refused.
func TestS13Memory(t *testing.T) {
	r := newRig(t)
	for window, ok := range map[int]bool{128 << 20: true, 256 << 20: false} {
		highest := 0
		src := &lastWords{r: zeros(t, window, 3*128<<20), atEnd: func() {
			for began, pids := time.Now(), children(t); len(pids) > 0 && highest < 128 && time.Since(began) < 5*time.Second; pids = children(t) {
				for _, pid := range pids {
					status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
					_, after, _ := strings.Cut(string(status), "VmHWM:")
					var kib int
					fmt.Sscan(after, &kib)
					highest = max(highest, kib>>10)
				}
				time.Sleep(10 * time.Millisecond) // it may be behind
			}
		}}
		s, _, err := r.workers.Unpack(t.Context(), r.layers, src)
		switch {
		case ok && err != nil:
			t.Errorf("window of %d: %v", window, err)
		case !ok && !errors.Is(err, fault.DataLoss):
			t.Errorf("window of %d: not refused: %v", window, err)
		case ok && (highest < 128 || highest >= 256):
			t.Errorf("window of %d: the process had %d MiB", window, highest)
		}
		if err == nil {
			s.Discard()
		}
	}
	r.nothing()
}

// zeros is the archive of one file of so many zeros, compressed with a window of the given size.
func zeros(t *testing.T, window, size int) io.Reader {
	out, in := io.Pipe()
	go func() {
		z, err := zstd.NewWriter(in, zstd.WithWindowSize(window), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
		if err != nil {
			in.CloseWithError(err)
			return
		}
		w := tar.NewWriter(z)
		w.WriteHeader(&tar.Header{Name: "zeros", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(size)})
		for block := make([]byte, 1<<20); size > 0; size -= len(block) {
			w.Write(block)
		}
		in.CloseWithError(errors.Join(w.Close(), z.Close()))
	}()
	t.Cleanup(func() { out.Close() })
	return out
}

// lastWords calls atEnd a moment after r was read to its end.
type lastWords struct {
	r     io.Reader
	atEnd func()
}

func (l *lastWords) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if err == io.EOF {
		time.Sleep(100 * time.Millisecond)
		l.atEnd()
	}
	return n, err
}

// script stands in for berth-unpack.
func (r *rig) script(text string) {
	r.Helper()
	r.workers.Path = filepath.Join(r.TempDir(), "berth-unpack")
	if err := os.WriteFile(r.workers.Path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		r.Fatal(err)
	}
}

// TestS11Lies: nothing that a process says that was taken over makes imaged fall
// over, wait for ever, believe what cannot be, or write control characters.
func TestS11Lies(t *testing.T) {
	r := newRig(t)
	right := `"diff_id":"sha256:` + strings.Repeat("0", 64) + `"`
	for _, text := range []string{
		"echo garbage", "head -c 10000000 /dev/zero", "exec cat /dev/urandom", "printf '['; exec tr '\\0' '[' </dev/zero",
		"exit 3", "exec >&-; exec sleep 60", "kill -9 $$", `printf '\033[31mred\007' >&2; exit 1`, "head -c 10000000 /dev/zero >&2; exit 1",
		`echo '{"diff_id":"sha256:../../x"}'`, `echo '{"diff_id":""}'`, `echo '{}'`,
		`echo '{` + right + `,"result":{"Entries":-1}}'`, `echo '{` + right + `,"result":{"Bytes":9223372036854775807}}'`,
		`echo '{"error":{"kind":"host","text":"\u001b[2Jgone"}}'`, `echo '{"error":{}}'`, `echo '{"error":{"kind":"archive","errno":-5,"reason":"\n"}}'`,
	} {
		r.script(text)
		began := time.Now()
		s, _, err := r.workers.Unpack(t.Context(), r.layers, plain(archiveOf(t, 10<<20)))
		if err == nil {
			s.Discard()
			t.Errorf("%.60s: believed", text)
			continue
		}
		if len(err.Error()) > 20_000 || strings.ContainsFunc(err.Error(), func(c rune) bool { return c < ' ' }) {
			t.Errorf("%.60s: %.100q", text, err)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("%.60s: took %s", text, took)
		}
	}
	r.nothing()
}

// TestWithout: kernels that lack Landlock, seccomp or both, by what they answer.
func TestWithout(t *testing.T) {
	r := newRig(t)
	for _, without := range [][]string{nil, {"landlock"}, {"seccomp"}, {"landlock", "seccomp"}} {
		var log bytes.Buffer
		r.workers = workertest.Workers(t)
		r.workers.Log = hclog.New(&hclog.LoggerOptions{Output: &log})
		done := make(chan error, 1)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends with this, and its children got the filter
			if err := answerENOSYS(without); err != nil {
				done <- err
				return
			}
			s, _, err := r.workers.Unpack(t.Context(), r.layers, plain(archiveOf(t, 10)))
			if err == nil {
				s.Discard()
			}
			done <- err
		}()
		if err := <-done; err != nil {
			t.Errorf("without %v: %v", without, err)
		}
		for _, wall := range []string{"landlock", "seccomp"} {
			missed := strings.Contains(strings.ToLower(log.String()), "without "+map[string]string{"landlock": "landlock", "seccomp": "a filter"}[wall])
			if want := slices.Contains(without, wall) || wall == "landlock" && landlock.Version() < landlock.Least; missed != want {
				t.Errorf("without %v: the log is %q", without, log.String())
			}
		}
	}
	r.nothing()
}

// answerENOSYS makes the kernel say to the calling thread, and to what it starts, that it does not know these.
func answerENOSYS(without []string) error {
	if len(without) == 0 {
		return nil
	}
	names := map[string]string{"landlock": "landlock_create_ruleset", "seccomp": "seccomp"}
	p := seccomp.Profile{Fallback: seccomp.Allow}
	for _, w := range without {
		p.Rules = append(p.Rules, seccomp.Rule{Names: []string{names[w]}, Action: seccomp.Errno(unix.ENOSYS)})
	}
	target, err := seccomp.Host()
	if err != nil {
		return err
	}
	code, err := p.Compile(target)
	if err != nil {
		return err
	}
	return filter.Load(code)
}

// blobOf is a store of one blob.
type blobOf string

func (b blobOf) Open(digest.Digest) (*os.File, error) { return os.Open(string(b)) }

// TestContent: the digest of what a blob contains is computed in a process, by any algorithm, and nothing is made.
func TestContent(t *testing.T) {
	r := newRig(t)
	archive := bytes.Repeat([]byte("no tar at all, which does not matter "), 100_000)
	path := filepath.Join(t.TempDir(), "blob")
	for name, b := range map[string][]byte{"plain": archive, "gzip": gzipped(t, archive), "zstd": zstded(t, archive)} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, a := range []digest.Algorithm{digest.SHA512, digest.SHA256} {
			got, err := r.workers.Content(t.Context(), r.layers, blobOf(path), "", a)
			if err != nil || got != a.FromBytes(archive) {
				t.Errorf("%s: %s, %v", name, got, err)
			}
		}
	}
	if err := os.WriteFile(path, gzipped(t, archive)[:1000], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.workers.Content(t.Context(), r.layers, blobOf(path), "", digest.SHA512); fault.KindOf(err) != fault.DataLoss {
		t.Errorf("cut off: %v", err)
	}
	if _, err := r.workers.Content(t.Context(), r.layers, blobOf(path+"none"), "", digest.SHA512); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no blob: %v", err)
	}
	r.nothing()
}
