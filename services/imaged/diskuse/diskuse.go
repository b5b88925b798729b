// Package diskuse adds up what trees of files take.
package diskuse

import (
	"io/fs"
	"path/filepath"
)

// Bytes is the sum of the lengths of the regular files below dir, as far as
// they can be read: the tree may be changing, and an estimate is wanted.
func Bytes(dir string) (sum int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			sum += info.Size()
		}
		return nil
	})
	return sum
}
