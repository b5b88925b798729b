package gunzip

import (
	"bytes"
	stdgzip "compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"
)

func expand(r io.Reader) ([]byte, error) {
	z, err := NewReader(r)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

func pack(t testing.TB, level int, parts ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, p := range parts {
		w, err := stdgzip.NewWriterLevel(&b, level)
		if err != nil {
			t.Fatal(err)
		}
		w.Name, w.Comment, w.Extra = "name", "comment", []byte("extra")
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// samples are contents that lead to different codes.
func samples() map[string][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 700_000)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	skewed := make([]byte, 900_000) // codes of all lengths
	for i := range skewed {
		skewed[i] = byte(r.ExpFloat64() * 12)
	}
	var mixed []byte
	for len(mixed) < 2_000_000 {
		switch n := r.IntN(40_000); r.IntN(4) {
		case 0:
			mixed = append(mixed, noise[:n]...)
		case 1:
			mixed = append(mixed, skewed[n:2*n]...)
		case 2:
			mixed = append(mixed, bytes.Repeat(noise[:1+n%9], 1+n/9)...)
		default:
			mixed = append(mixed, mixed[max(0, len(mixed)-n):]...)
		}
	}
	return map[string][]byte{
		"empty": {}, "byte": {'x'}, "zeros": make([]byte, 3<<20), "noise": noise, "skewed": skewed, "mixed": mixed,
		"text": []byte(strings.Repeat("the quick brown fox jumps over the lazy dog. ", 20_000)),
	}
}

func TestAgainstCompress(t *testing.T) {
	for name, want := range samples() {
		for _, level := range []int{stdgzip.NoCompression, stdgzip.BestSpeed, stdgzip.DefaultCompression, stdgzip.BestCompression, stdgzip.HuffmanOnly} {
			b := pack(t, level, want)
			for how, r := range map[string]io.Reader{"whole": bytes.NewReader(b), "bytes": iotest.OneByteReader(bytes.NewReader(b)), "EOF": iotest.DataErrReader(bytes.NewReader(b))} {
				if got, err := expand(r); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s, level %d, %s: %d of %d bytes, %v", name, level, how, len(got), len(want), err)
				}
			}
		}
	}
}

func TestMembers(t *testing.T) {
	b := pack(t, 6, []byte("one "), nil, []byte("two"))
	if got, err := expand(bytes.NewReader(b)); err != nil || string(got) != "one two" {
		t.Errorf("%q, %v", got, err)
	}
	// A match of the second member must not reach into the first.
	second := pack(t, 6, []byte(strings.Repeat("abc", 100)))
	if _, err := expand(bytes.NewReader(append(pack(t, 6, []byte("abcabc")), second...))); err != nil {
		t.Error(err)
	}
}

func TestRefused(t *testing.T) {
	good := pack(t, 6, []byte(strings.Repeat("some text ", 10_000)))
	for n := range len(good) { // every truncation
		if _, err := expand(bytes.NewReader(good[:n])); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
	if _, err := expand(bytes.NewReader(append(good[:len(good):len(good)], "junk that is no member"...))); !errors.Is(err, ErrCorrupt) {
		t.Errorf("junk behind: %v", err)
	}
	// Every flipped bit is noticed, at the latest by the checksum; except in the header's time, system and extra flags.
	for i := range good {
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			got, err := expand(bytes.NewReader(bad))
			_, stdErr := stdExpand(bad)
			if (err == nil) != (stdErr == nil) {
				t.Errorf("bit %d of byte %d: %d bytes, %v; compress/gzip says %v", bit, i, len(got), err, stdErr)
			}
		}
	}
}

func stdExpand(b []byte) ([]byte, error) {
	z, err := stdgzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

func TestSourceFailure(t *testing.T) {
	broken := errors.New("connection reset")
	good := pack(t, 6, samples()["mixed"])
	_, err := expand(io.MultiReader(bytes.NewReader(good[:len(good)/2]), iotest.ErrReader(broken)))
	if !errors.Is(err, broken) {
		t.Error(err)
	}
	if _, err := expand(stuck{}); !errors.Is(err, io.ErrNoProgress) {
		t.Error(err)
	}
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

// FuzzReader: whatever comes in, the answer is that of compress/gzip.
func FuzzReader(f *testing.F) {
	for _, level := range []int{0, 1, 6, 9, stdgzip.HuffmanOnly} {
		f.Add(pack(f, level, []byte(strings.Repeat("text to compress ", 20)), []byte("more")))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		want, wantErr := stdExpand(b)
		got, err := expand(bytes.NewReader(b))
		if (err == nil) != (wantErr == nil) || err == nil && !bytes.Equal(got, want) {
			t.Errorf("%d bytes, %v; compress/gzip gives %d, %v", len(got), err, len(want), wantErr)
		}
	})
}

// benchFile names a gzip file, such as a layer of a real image.
const benchFile = "BERTH_BENCH_GZIP"

func benchmark(b *testing.B, open func(io.Reader) (io.Reader, error)) {
	packed := pack(b, 6, samples()["mixed"])
	if path := os.Getenv(benchFile); path != "" {
		var err error
		if packed, err = os.ReadFile(path); err != nil {
			b.Fatal(err)
		}
	}
	buf := make([]byte, 256<<10)
	for b.Loop() {
		z, err := open(bytes.NewReader(packed))
		if err != nil {
			b.Fatal(err)
		}
		n := int64(0)
		for {
			k, err := z.Read(buf)
			n += int64(k)
			if err == io.EOF {
				break
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		b.SetBytes(n)
	}
}

func BenchmarkReader(b *testing.B) {
	benchmark(b, func(r io.Reader) (io.Reader, error) { return NewReader(r) })
}

func BenchmarkKlauspost(b *testing.B) {
	benchmark(b, func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) })
}

func BenchmarkStd(b *testing.B) {
	benchmark(b, func(r io.Reader) (io.Reader, error) { return stdgzip.NewReader(r) })
}
