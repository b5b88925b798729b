package unpack

import "testing"

// Attack is an archive of the corpus of S-11.
type Attack struct {
	Name     string
	Harmless bool // unpacks, to something inside the layer
	Archive  []byte
}

// Corpus are archives that try to reach canary, a directory beside the layer's.
func Corpus(t *testing.T, canary string) (all []Attack) {
	t.Helper()
	for _, a := range corpus(canary) {
		all = append(all, Attack{a.name, a.harmless, archive(t, a.entries...)})
	}
	return all
}

// The canary.
var (
	PlantCanary = plantCanary
	Snapshot    = snapshot
)
