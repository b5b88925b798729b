package diskuse

import (
	"os"
	"syscall"
)

// Disk is how full a file system is, in bytes.
type Disk struct{ Total, Free int64 }

// DiskOf looks at the file system of path. What only root may fill counts as
// used.
func DiskOf(path string) (Disk, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return Disk{}, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	return Disk{Total: int64(st.Blocks) * st.Bsize, Free: int64(st.Bavail) * st.Bsize}, nil
}

// Above is how many bytes have to become free until at most percent of the disk
// is in use; negative if fewer are.
func (d Disk) Above(percent int) int64 { return d.Total/100*int64(100-percent) - d.Free }
