package unpack

import (
	"errors"
	"fmt"
	"strings"
)

// splitName gives the components of an entry's name below the root of the
// layer; none for the root itself. A leading slash means that root, as it does
// to tar(1). "." and empty components say nothing and are dropped; ".." has no
// honest use in a layer and is refused rather than resolved.
func splitName(name string, l Limits) ([]string, error) {
	if len(name) > l.PathBytes {
		return nil, fmt.Errorf("name longer than %d bytes", l.PathBytes)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return nil, errors.New("name holds a NUL byte")
	}
	parts := make([]string, 0, 16)
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
			continue
		case part == "..":
			return nil, errors.New(`name holds ".."`)
		case len(part) > 255: // NAME_MAX of every file system we unpack to
			return nil, errors.New("a component of the name is longer than 255 bytes")
		}
		parts = append(parts, part)
	}
	if len(parts) > l.Depth {
		return nil, fmt.Errorf("name is more than %d directories deep", l.Depth)
	}
	for _, dir := range parts[:max(len(parts)-1, 0)] {
		if strings.HasPrefix(dir, whiteoutPrefix) {
			return nil, fmt.Errorf("whiteout %q is used as a directory", dir)
		}
	}
	return parts, nil
}
