// Package archive writes images into one stream of bytes and makes images of
// such streams: what "save" and "load" do.
//
// There are two forms, and today's docker writes both at once:
//
//	oci-layout       {"imageLayoutVersion": "1.0.0"}       OCI image layout
//	index.json       what images there are, by digest
//	blobs/ALG/HEX    manifests, configurations, layers
//	manifest.json    the same images, by the names of files   docker-archive
//	repositories     names once more, for readers older than manifest.json
//
// The older docker-archive has no blobs but a directory for each layer, with
// the uncompressed layer in it, or a link to another's; see docker.go. An
// archive that has both forms is read as OCI, since that keeps the digests, and
// refused if the two disagree.
//
// A loaded archive is hostile until proven otherwise. Its entries' names are
// keys of a map here and never reach a file system; nothing is made but blobs by
// the digest that was computed and layers by package unpack; images get those
// names that the archive's own manifest gives them.
package archive

import (
	"fmt"
	"path"
	"strings"

	"berth/internal/fault"
	"berth/services/imaged/store"

	"github.com/opencontainers/go-digest"
)

// Names of an archive's files.
const (
	layoutFile       = "oci-layout"
	indexFile        = "index.json"
	manifestFile     = "manifest.json"
	repositoriesFile = "repositories"
	blobsDir         = "blobs/"
)

// Annotations that give an image in index.json its name.
const (
	annotationName = "io.containerd.image.name"          // canonical
	annotationRef  = "org.opencontainers.image.ref.name" // a name, or only its tag
)

const (
	maxEntries  = 100_000  // files, directories and links of one archive
	maxName     = 1024     // bytes of an entry's name
	maxDocument = 64 << 20 // bytes of all the archive's JSON documents
	maxLinks    = 8        // links that lead to one another
)

// refused makes the error for an archive that is not acceptable.
func refused(format string, args ...any) *fault.Error {
	return fault.InvalidArgument.Errorf("BAD_ARCHIVE", "archive refused: %s", fmt.Sprintf(format, args...))
}

// entryName gives the one form of an entry's name: relative, without "." and
// "..". The archive's root is ".".
func entryName(name string) (string, error) {
	switch {
	case len(name) > maxName:
		return "", refused("an entry's name has %d bytes", len(name))
	case strings.IndexByte(name, 0) >= 0, strings.HasPrefix(name, "/"), hasDotDot(name):
		return "", refused("entry %.100q is named outside of the archive", name)
	}
	return path.Clean(name), nil
}

func hasDotDot(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}

// linkTarget gives the entry that a link called name leads to.
func linkTarget(name, target string, hard bool) (string, error) {
	to := target
	if !hard { // a hard link is named from the root
		to = path.Join(path.Dir(name), target)
	}
	if to = path.Clean(to); path.IsAbs(target) || to == ".." || strings.HasPrefix(to, "../") || strings.IndexByte(target, 0) >= 0 {
		return "", refused("link %.100q leads outside of the archive", name)
	}
	return to, nil
}

// blobDigest is the digest that an entry called name must have; empty if it is
// no blob of an OCI layout.
func blobDigest(name string) (digest.Digest, error) {
	rest, ok := strings.CutPrefix(name, blobsDir)
	if !ok {
		return "", nil
	}
	algorithm, hex, ok := strings.Cut(rest, "/")
	d := digest.NewDigestFromEncoded(digest.Algorithm(algorithm), hex)
	if !ok || store.Check(d) != nil {
		return "", refused("%.200q is not the name of a blob", name)
	}
	return d, nil
}

// blobName is the entry that holds the blob d.
func blobName(d digest.Digest) string { return blobsDir + d.Algorithm().String() + "/" + d.Encoded() }
