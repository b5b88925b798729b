// Package strictjson reads the JSON documents of images, which strangers write, and
// refuses what two readers could understand in two ways: what one program checks must
// be what another one uses (CVE-2021-41190 and its kind).
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
)

// maxDepth is far more than any of the documents needs.
const maxDepth = 64

// Decode reads a JSON document into v, provided that it can be understood in one
// way only.
func Decode(raw []byte, v any) error {
	if err := Check(raw); err != nil {
		return err
	}
	return json.Unmarshal(raw, v)
}

// Fields are those of a document that is an object, by folded name (see Fold).
func Fields(raw []byte) (map[string]json.RawMessage, error) {
	var exact map[string]json.RawMessage
	if err := Decode(raw, &exact); err != nil {
		return nil, err
	}
	if exact == nil {
		return nil, errors.New("not a JSON object")
	}
	fields := make(map[string]json.RawMessage, len(exact))
	for name, value := range exact {
		fields[Fold(name)] = value
	}
	return fields, nil
}

// freeKeys hold maps whose keys are anybody's own words, where "Foo" and "foo"
// are two things.
var freeKeys = map[string]bool{
	"annotations": true, "labels": true, "exposedports": true, "volumes": true, "env": true,
}

// Check makes sure that raw is one JSON value in which no object names a key twice.
// encoding/json takes the last of several, and any of the same spelling in another
// case; other parsers take the first, or only the exact one.
func Check(raw []byte) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := walk(d, false, 0); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("data behind the JSON document")
	}
	return nil
}

// walk reads one value. free: if it is an object, its keys are free words.
func walk(d *json.Decoder, free bool, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("JSON nested deeper than %d", maxDepth)
	}
	t, err := d.Token()
	if err != nil {
		return err
	}
	switch t {
	case json.Delim('{'):
		return walkObject(d, free, depth)
	case json.Delim('['):
		for d.More() {
			if err := walk(d, false, depth+1); err != nil {
				return err
			}
		}
		_, err = d.Token()
	}
	return err
}

func walkObject(d *json.Decoder, free bool, depth int) error {
	seen := map[string]bool{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err
		}
		key, ok := t.(string)
		if !ok {
			return errors.New("not valid JSON")
		}
		folded := Fold(key)
		if !free {
			key = folded
		}
		if seen[key] {
			return fmt.Errorf("the key %.40q occurs twice", t)
		}
		seen[key] = true
		if err := walk(d, freeKeys[folded] && !free, depth+1); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}

// Fold maps names that encoding/json matches to the same struct field to one name: it
// ignores case as Unicode does, so that even "layer\u017f" with its long s is "layers".
func Fold(name string) string {
	return strings.Map(func(r rune) rune {
		least := r
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		return unicode.ToLower(least)
	}, name)
}
