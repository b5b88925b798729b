package deflate

import (
	"bytes"
	stdgzip "compress/gzip"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"berth/services/imaged/inflate"
)

// samples are texts of lengths around those at which blocks end.
func samples() (all [][]byte) {
	text := make([]byte, 5*blockSize+12345)
	words := strings.Fields("usr share lib doc the of x86_64 0123456789 license \x00\x00\x00\x00 man")
	rnd := rand.New(rand.NewPCG(1, 2))
	for at := 0; at < len(text); {
		at += copy(text[at:], words[rnd.IntN(len(words))])
	}
	for at := 3 * blockSize / 2; at < 5*blockSize/2; at++ { // what cannot be compressed
		text[at] = byte(rnd.Uint32())
	}
	for _, n := range []int{0, 1, blockSize - 1, blockSize, blockSize + 1, 2 * blockSize, len(text)} {
		all = append(all, text[:n])
	}
	return all
}

func compressed(t *testing.T, text []byte, piece int) []byte {
	t.Helper()
	var out bytes.Buffer
	z := NewWriter(&out)
	for rest := text; len(rest) > 0; {
		n, err := z.Write(rest[:min(piece, len(rest))])
		if err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	if err := errors.Join(z.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestRoundTrip: three decoders give back what was compressed, and see one stream.
func TestRoundTrip(t *testing.T) {
	for _, text := range samples() {
		packed := compressed(t, text, 70_000)
		std, err := stdgzip.NewReader(bytes.NewReader(packed))
		if err != nil {
			t.Fatal(err)
		}
		std.Multistream(false)
		in := bytes.NewReader(packed)
		own, err := inflate.NewReader(in, inflate.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		tool := exec.Command("gzip", "-dc")
		tool.Stdin = bytes.NewReader(packed)
		fromTool, err := tool.Output()
		if err != nil {
			t.Error(err)
		}
		for name, r := range map[string]io.Reader{"compress/gzip": std, "inflate": own, "gzip -d": bytes.NewReader(fromTool)} {
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, text) {
				t.Errorf("%s, %d bytes: got %d bytes, equal %v, %v", name, len(text), len(got), bytes.Equal(got, text), err)
			}
		}
		own.Close()
	}
}

// TestSameBytes: neither the number of processors nor how the text is cut up makes a difference.
func TestSameBytes(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	text := samples()[6]
	var want [32]byte
	for n, procs := range []int{1, 2, 16} {
		runtime.GOMAXPROCS(procs)
		sum := sha256.Sum256(compressed(t, text, 1000<<(3*n)))
		if n > 0 && sum != want {
			t.Errorf("%d processors give other bytes", procs)
		}
		want = sum
	}
}

// full takes so many bytes and no more.
type full struct{ room int }

var errFull = errors.New("full")

func (f *full) Write(p []byte) (int, error) {
	if f.room -= len(p); f.room < 0 {
		return 0, errFull
	}
	return len(p), nil
}

// TestFullDisk: who writes is told, at the latest at the end, and nothing is left running.
func TestFullDisk(t *testing.T) {
	before := runtime.NumGoroutine()
	text := samples()[6]
	for _, room := range []int{0, 5, 1000, blockSize, 2 * blockSize} {
		z := NewWriter(&full{room})
		var err error
		for range 20 {
			if _, err = z.Write(text); err != nil {
				break
			}
		}
		if !errors.Is(err, errFull) {
			t.Errorf("room for %d bytes: Write goes on: %v", room, err)
		}
		if err := z.Close(); !errors.Is(err, errFull) {
			t.Errorf("room for %d bytes: Close: %v", room, err)
		}
	}
	z := NewWriter(&full{len(header) + 4})
	if err := z.Close(); !errors.Is(err, errFull) {
		t.Errorf("no room for the end: %v", err)
	}
	for range 100 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d goroutines more than before", runtime.NumGoroutine()-before)
}

func BenchmarkWriter(b *testing.B) {
	text := samples()[6]
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		z := NewWriter(io.Discard)
		z.Write(text)
		z.Close()
	}
}
