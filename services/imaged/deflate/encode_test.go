package deflate

import (
	"bytes"
	"compress/flate"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"
	"time"

	klauspost "github.com/klauspost/compress/flate"
)

// unpacked is what packed, a stream or what may be followed by more of one, holds.
func unpacked(t *testing.T, packed []byte, last bool) []byte {
	t.Helper()
	got, err := io.ReadAll(flate.NewReader(bytes.NewReader(packed)))
	if last && err != nil || !last && err != io.ErrUnexpectedEOF {
		t.Fatalf("last %v: %v", last, err)
	}
	return got
}

// TestEncode gives one encoder texts of many kinds and lengths, one after the other.
func TestEncode(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	kinds := map[string]func(i int) byte{
		"zeros":       func(int) byte { return 0 },
		"noise":       func(int) byte { return byte(rnd.Uint32()) },
		"two letters": func(int) byte { return byte(rnd.Uint32() & 1) },
		"skewed":      func(int) byte { return byte(min(rnd.ExpFloat64()*6, 255)) },
		"every byte":  func(i int) byte { return byte(i) },
		"far": func(i int) byte { // repeats itself at the greatest distance, and beyond
			return byte(uint32(i%(window+i>>17)) * 2654435761 >> 13)
		},
		"runs": func(i int) byte { return byte(i / 300 * 7) },
	}
	e := new(encoder)
	for name, kind := range kinds {
		text := make([]byte, blockSize)
		for i := range text {
			text[i] = kind(i)
		}
		for _, n := range []int{0, 1, 2, 3, 4, 15, 16, 17, 18, 100, 258, 259, 1000, maxStored, maxStored + 1, part - 1, part, part + 1, part + 20, blockSize} {
			for _, last := range []bool{false, true} {
				packed := e.encode(text[:n], last)
				if got := unpacked(t, packed, last); !bytes.Equal(got, text[:n]) {
					t.Errorf("%s, %d bytes, last %v: came back as %d others", name, n, last, len(got))
				}
				if most := n + 5*(n/maxStored+n/part+2); len(packed) > most {
					t.Errorf("%s: %d bytes became %d, more than %d", name, n, len(packed), most)
				}
			}
		}
		if packed := e.encode(text, true); name == "zeros" && len(packed) > len(text)/500 {
			t.Errorf("%s: %d bytes became %d", name, len(text), len(packed))
		}
	}
}

// TestLengths: codes are complete and within their limit where the best would be longer, as with numbers that double.
func TestLengths(t *testing.T) {
	var tr tree
	for _, most := range []int{maxHeadBits, maxLitBits, maxDistBits} {
		for n := range min(1<<most, 40) + 1 {
			counts := make([]uint32, 60)
			for i := range n {
				counts[59-i] = 1 << min(i, 31)
			}
			lens := make([]uint8, 60)
			tr.lengths(counts, lens, most)
			sum := 0
			for s, l := range lens {
				if counts[s] > 0 && l == 0 || int(l) > most {
					t.Fatalf("%d symbols in %d bits: symbol %d has %d", n, most, s, l)
				}
				if l > 0 {
					sum += 1 << (most - int(l))
				}
			}
			if sum != 1<<most {
				t.Errorf("%d symbols in %d bits: %d of %d codes", n, most, sum, 1<<most)
			}
		}
	}
}

func FuzzEncode(f *testing.F) {
	for _, text := range samples()[:3] {
		f.Add(text[:min(len(text), 2000)], 3)
	}
	f.Fuzz(func(t *testing.T, text []byte, times int) {
		for range min(max(times, 0), 8) { // beyond a part, and a window
			text = append(text, text[:min(len(text), 40_000)]...)
		}
		if got := unpacked(t, new(encoder).encode(text, true), true); !bytes.Equal(got, text) {
			t.Errorf("%d bytes came back as %d others", len(text), len(got))
		}
	})
}

// benchFile names a file to be compressed, such as the tar of a root file system.
const benchFile = "BERTH_BENCH_TAR"

// BenchmarkEncode compresses in blocks of this package's size, on one processor, and so does a library for comparison.
func BenchmarkEncode(b *testing.B) {
	text, err := os.ReadFile(os.Getenv(benchFile))
	if err != nil {
		b.Skipf("SKIPPED: set %s to a file to compress: %v", benchFile, err)
	}
	var out bytes.Buffer
	library, _ := klauspost.NewWriter(&out, klauspost.BestSpeed)
	own := new(encoder)
	for _, by := range []struct {
		name   string
		encode func(p []byte) int
	}{
		{"own", func(p []byte) int { return len(own.encode(p, false)) }},
		{"library", func(p []byte) int {
			out.Reset()
			library.Reset(&out)
			library.Write(p)
			library.Flush()
			return out.Len()
		}},
	} {
		b.Run(fmt.Sprint("by=", by.name), func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			size, before := 0, processorTime()
			for b.Loop() {
				size = 0
				for at := 0; at < len(text); at += blockSize {
					size += by.encode(text[at:min(at+blockSize, len(text))])
				}
			}
			b.ReportMetric(float64(size)/1e6, "MB")
			b.ReportMetric(float64(processorTime()-before)/float64(b.N*len(text)), "cpu-ns/B")
		})
	}
}

// processorTime is what this process has taken.
func processorTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
