package unpack

import (
	"strings"

	"golang.org/x/sys/unix"
)

// Whiteouts is how the tree of a layer says what it hides in the layers below.
// In archives, an empty file ".wh.NAME" hides NAME, and ".wh..wh.opq" hides
// all that lower layers have in its directory (OCI image spec, "Whiteouts").
// Both speak of lower layers only, never of entries of their own archive,
// whatever the order in it.
type Whiteouts int

const (
	// WhiteoutFiles keeps the archive's form: files of those names.
	WhiteoutFiles Whiteouts = iota
	// OverlayUser is the form overlayfs reads when mounted with "userxattr"
	// (Linux 5.11): character devices 0:0, and "user.overlay.opaque" on
	// directories.
	OverlayUser
)

const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh.opq"
	// whiteoutMeta starts the names AUFS kept for itself (".wh..wh.plnk",
	// ".wh..wh.aufs"). Old images carry them; they mean nothing to us.
	whiteoutMeta = ".wh..wh."
)

// OpaqueXattr is the extended attribute that marks a directory as opaque with
// value "y"; empty for WhiteoutFiles.
func (w Whiteouts) OpaqueXattr() string {
	if w == OverlayUser {
		return "user.overlay.opaque"
	}
	return ""
}

// whiteoutOf gives the whiteout an entry called base stands for.
func whiteoutOf(base string) (whiteout, bool) {
	if !strings.HasPrefix(base, whiteoutPrefix) {
		return whiteout{}, false
	}
	switch {
	case base == whiteoutOpaque:
		return whiteout{opaque: true}, true
	case strings.HasPrefix(base, whiteoutMeta):
		return whiteout{ignore: true}, true
	}
	return whiteout{hides: strings.TrimPrefix(base, whiteoutPrefix)}, true
}

type whiteout struct {
	hides  string // the name hidden in the same directory
	opaque bool   // everything of lower layers in the directory is hidden
	ignore bool
}

// whiteout records w in the current directory.
func (x *extractor) whiteout(w whiteout, inRoot bool) error {
	switch {
	case w.ignore:
		return nil
	case w.opaque:
		x.result.RootOpaque = x.result.RootOpaque || inRoot
		return x.make.opaque()
	case w.hides == "" || w.hides == "." || w.hides == "..":
		return refusal("whiteout hides no name")
	}
	return x.make.hide(w.hides)
}

// isWhiteout reports whether st is a whiteout device. Archives cannot bring
// such a device (see makeDevice), so it is always one of ours.
func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}
