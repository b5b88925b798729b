package importer

import (
	"bufio"
	"fmt"
	"io"

	"berth/services/imaged/deflate"
	"berth/services/imaged/inflate"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// sink is where the archive's bytes go on their way to the blob: a compressed
// archive is kept as it is, a plain one is compressed, fast rather than small.
// The blob is whole when it has been closed, which is also to be done after a
// failure: nobody writes to the blob thereafter.
func sink(in *bufio.Reader, blob io.Writer) (io.WriteCloser, string, error) {
	head, err := in.Peek(6)
	if err != nil && err != io.EOF {
		return nil, "", fmt.Errorf("import: %w", err)
	}
	switch inflate.KindOf(head) {
	case inflate.Gzip:
		return keep{blob}, ocispec.MediaTypeImageLayerGzip, nil
	case inflate.Zstd:
		return keep{blob}, ocispec.MediaTypeImageLayerZstd, nil
	}
	return deflate.NewWriter(blob), ocispec.MediaTypeImageLayerGzip, nil
}

// keep writes through.
type keep struct{ io.Writer }

func (keep) Close() error { return nil }
