package images

import (
	"context"
	"errors"
	"fmt"

	"berth/internal/fault"
	"berth/services/imaged/graph"

	"github.com/opencontainers/go-digest"
)

// The same content comes in several blobs: compressed in two ways, or not at all. One unpacked layer serves them all, and
// what says that they are the same is a digest that the process had to say that unpacked each (package worker). It read a
// stranger's bytes to find it out, so it is not taken at its word where that word would make one image's files another's:
// the second tree is compared with the first.

// errMeanwhile says that the layer appeared that was not there to compare with.
var errMeanwhile = errors.New("the layer was added meanwhile")

// compared calls add with the name of the layer diffID that staged was found to be like; empty if there is none.
func (l *Lease) compared(diffID digest.Digest, staged graph.Staged, add func(like string) error) error {
	for {
		like, err := l.compare(diffID, staged)
		if err != nil {
			return err
		}
		if err = add(like); !errors.Is(err, errMeanwhile) {
			return err
		}
	}
}

// compare finds out whether staged is like the layer diffID, which it takes hold of.
func (l *Lease) compare(diffID digest.Digest, staged graph.Staged) (string, error) {
	have, ok := l.Layer(diffID)
	if !ok {
		return "", nil
	}
	comparer, ok := l.images.driver.(graph.Comparer)
	if !ok {
		return have.Name, nil
	}
	difference, err := comparer.Compare(context.Background(), have.Name, staged)
	if err != nil {
		return "", fmt.Errorf("compare with the layer that has the same digest: %w", err)
	}
	if difference != "" {
		return "", fault.DataLoss.Errorf("LAYER_DIFFERS", "its content should be %s, but is not what the store has of that: %s", diffID, difference).
			With("digest", diffID.String()).Hint("`berth image check` finds out whether it is the store that is damaged")
	}
	return have.Name, nil
}

// settled reports whether the layer diffID, if there is one, is the one compared with. The caller holds the lock.
func (m *Images) settled(diffID digest.Digest, like string) bool {
	have := m.layers[diffID]
	return have == nil || have.Name == like
}
