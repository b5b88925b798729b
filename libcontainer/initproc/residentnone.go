//go:build !amd64 && !arm64

package initproc

func residentProgram() *byte { return nil }

var residentMachine = map[string]uint16{}
