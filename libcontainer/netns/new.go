package netns

import (
	"os"

	"golang.org/x/sys/unix"
)

// New makes a network namespace with lo up and the given parameters (usually
// [Defaults]). It lives as long as the descriptor, or a process in it.
func New(sysctls []Sysctl) (*os.File, error) {
	list, err := create(1, sysctls)
	if err != nil {
		return nil, err
	}
	unix.Close(list[0].socket)
	return list[0].ns, nil
}
