// Package names says what the engine's objects may be called. By hand rather
// than by regular expression: {0,127} compiled takes 100 KiB in every daemon.
package names

// Valid is the rule for containers, networks and volumes:
// [a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}. What it admits is safe as a file name.
func Valid(s string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && (c == '_' || c == '.' || c == '-'):
		default:
			return false
		}
	}
	return true
}

// idDigits is the length of a whole id of a container or image.
const idDigits = 64

// ID reports whether s is a whole id: 64 hex digits, none of them in upper case.
func ID(s string) bool { return len(s) == idDigits && hex(s) }

// PartOfID reports whether s is the beginning of an id, of 4 to 63 digits: fewer
// are more likely a name.
func PartOfID(s string) bool { return len(s) >= 4 && len(s) < idDigits && hex(s) }

func hex(s string) bool {
	for i := range len(s) {
		if c := s[i]; !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return false
		}
	}
	return true
}
