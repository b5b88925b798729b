//go:build amd64 || arm64

package initproc

// residentProgram is the first byte of the program's code.
func residentProgram() *byte

// residentMachine is the number of this architecture in an ELF header (elf(5)).
var residentMachine = map[string]uint16{"amd64": 62, "arm64": 183}
