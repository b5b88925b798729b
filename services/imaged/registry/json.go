package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
)

// maxJSONDepth is beyond what any manifest nests.
const maxJSONDepth = 32

// readObject returns the fields of a JSON object, by folded name, after making sure that no
// object in it has two fields that encoding/json would take for one.
func readObject(raw []byte) (map[string]json.RawMessage, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	if err := uniqueNames(dec, false, 1); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("something follows the document")
	}
	var exact map[string]json.RawMessage
	if err := json.Unmarshal(raw, &exact); err != nil {
		return nil, err
	}
	fields := make(map[string]json.RawMessage, len(exact))
	for name, value := range exact {
		fields[fold(name)] = value
	}
	return fields, nil
}

// uniqueNames reads the rest of an object whose brace is gone. In a free-form object, such
// as annotations, names that differ in case are different names.
func uniqueNames(dec *json.Decoder, freeForm bool, depth int) error {
	seen := make(map[string]bool)
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return err
		}
		name, ok := token.(string)
		if !ok {
			return errors.New("not valid JSON")
		}
		key := name
		if !freeForm {
			key = fold(name)
		}
		if seen[key] {
			return fmt.Errorf("field %q occurs twice", name)
		}
		seen[key] = true
		if err := uniqueValue(dec, key == "annotations", depth); err != nil {
			return err
		}
	}
	_, err := dec.Token() // the closing brace
	return err
}

func uniqueValue(dec *json.Decoder, freeForm bool, depth int) error {
	if depth >= maxJSONDepth {
		return fmt.Errorf("nested more than %d deep", maxJSONDepth)
	}
	token, err := dec.Token()
	if err != nil {
		return err
	}
	switch token {
	case json.Delim('{'):
		return uniqueNames(dec, freeForm, depth+1)
	case json.Delim('['):
		for dec.More() {
			if err := uniqueValue(dec, false, depth+1); err != nil {
				return err
			}
		}
		_, err = dec.Token() // the closing bracket
	}
	return err
}

// fold maps names that encoding/json matches to the same struct field to one name: it
// ignores case as Unicode does, so that even "layer\u017f" with its long s is "layers".
func fold(name string) string {
	return strings.Map(func(r rune) rune {
		least := r
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		return unicode.ToLower(least)
	}, name)
}
