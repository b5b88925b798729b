package inflate

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zstded(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

func read(b []byte, l Limits) ([]byte, Kind, error) {
	z, err := NewReader(bytes.NewReader(b), l)
	if err != nil {
		return nil, None, err
	}
	defer z.Close()
	out, err := io.ReadAll(z)
	return out, z.Kind(), err
}

func TestKinds(t *testing.T) {
	want := []byte(strings.Repeat("some text ", 10_000))
	skippable := append([]byte{0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 'h', 'i'}, zstded(t, want)...)
	for name, c := range map[string]struct {
		in   []byte
		kind Kind
	}{
		"plain": {want, None}, "gzip": {gzipped(t, want), Gzip}, "zstd": {zstded(t, want), Zstd}, "skippable": {skippable, Zstd},
		"two members": {append(gzipped(t, want[:100]), gzipped(t, want[100:])...), Gzip},
	} {
		got, kind, err := read(c.in, Limits{})
		if err != nil || kind != c.kind || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes as %v, %v", name, len(got), kind, err)
		}
	}
	if got, _, err := read(nil, Limits{}); err != nil || len(got) != 0 {
		t.Errorf("empty: %d bytes, %v", len(got), err)
	}
}

func TestS13Streams(t *testing.T) {
	zeros := make([]byte, 8<<20)
	text := []byte(strings.Repeat("some text ", 10_000))
	small := Limits{Bytes: 1 << 20}
	steep := Limits{Ratio: 100, Grace: 1 << 20}
	for name, c := range map[string]struct {
		in []byte
		l  Limits
	}{
		"gzip bytes": {gzipped(t, zeros), small}, "zstd bytes": {zstded(t, zeros), small}, "plain bytes": {zeros, small},
		"gzip ratio": {gzipped(t, zeros), steep}, "zstd ratio": {zstded(t, zeros), steep},
		"gzip cut": {gzipped(t, text)[:100], Limits{}}, "zstd cut": {zstded(t, text)[:40], Limits{}},
		"gzip junk behind": {append(gzipped(t, text), "junk"...), Limits{}},
		"xz":               {[]byte("\xfd7zXZ\x00rest"), Limits{}}, "bzip2": {[]byte("BZh91AY"), Limits{}},
		// Window descriptor 0xff: the largest a frame can name, 3.75 TiB.
		"zstd window": {[]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff, 0x01, 0x00, 0x00}, Limits{}},
	} {
		if _, _, err := read(c.in, c.l); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestReaderFailureIsNotTheStreams(t *testing.T) {
	broken := errors.New("connection reset")
	for name, b := range map[string][]byte{"gzip": gzipped(t, make([]byte, 1<<20)), "zstd": zstded(t, []byte(strings.Repeat("abc", 1000)))} {
		z, err := NewReader(io.MultiReader(bytes.NewReader(b[:len(b)/2]), failing{broken}), Limits{})
		if err == nil {
			_, err = io.Copy(io.Discard, z)
			z.Close()
		}
		if !errors.Is(err, broken) || errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzReader(f *testing.F) {
	f.Add(gzipped(f, []byte("text")))
	f.Add(zstded(f, []byte("text")))
	f.Fuzz(func(t *testing.T, b []byte) { read(b, Limits{Bytes: 16 << 20}) })
}
