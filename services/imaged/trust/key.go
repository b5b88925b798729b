package trust

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
)

const (
	maxKeyFile = 1 << 20
	minRSA     = 2048 // bits
)

// key is a public key, and the hashes of what it signs: of ECDSA keys of more than 256 bits the larger ones are in use,
// too. Ed25519 has none.
type key struct {
	public crypto.PublicKey
	hashes []crypto.Hash
}

// readKeys reads the public keys of a PEM file.
func readKeys(file string) (all []key, err error) {
	st, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxKeyFile {
		return nil, fmt.Errorf("%s is no file of at most %d bytes", file, maxKeyFile)
	}
	rest, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		if block.Type != "PUBLIC KEY" {
			return nil, fmt.Errorf("%s holds a %q, not a public key in PEM", file, block.Type)
		}
		public, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		k, err := newKey(public)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		all = append(all, k)
	}
	if len(all) == 0 || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%s is not a list of public keys in PEM", file)
	}
	return all, nil
}

func newKey(public crypto.PublicKey) (key, error) {
	k := key{public: public, hashes: []crypto.Hash{crypto.SHA256}}
	switch p := public.(type) {
	case *ecdsa.PublicKey:
		switch p.Curve.Params().BitSize {
		case 256:
		case 384:
			k.hashes = append(k.hashes, crypto.SHA384)
		case 521:
			k.hashes = append(k.hashes, crypto.SHA512)
		default:
			return k, fmt.Errorf("elliptic curve %s is not supported", p.Curve.Params().Name)
		}
	case *rsa.PublicKey:
		if p.N.BitLen() < minRSA {
			return k, fmt.Errorf("RSA key of %d bits is shorter than %d", p.N.BitLen(), minRSA)
		}
	case ed25519.PublicKey:
	default:
		return k, fmt.Errorf("key of type %T is not supported", public)
	}
	return k, nil
}

// signed reports whether a key of the rule signed the payload, as its bytes stand.
func (r *rule) signed(payload, signature []byte) bool {
	for _, k := range r.keys {
		if k.verifies(payload, signature) {
			return true
		}
	}
	return false
}

func (k key) verifies(payload, signature []byte) bool {
	if p, ok := k.public.(ed25519.PublicKey); ok {
		return ed25519.Verify(p, payload, signature)
	}
	for _, hash := range k.hashes {
		h := hash.New()
		h.Write(payload)
		sum := h.Sum(nil)
		switch p := k.public.(type) {
		case *ecdsa.PublicKey:
			if ecdsa.VerifyASN1(p, sum, signature) {
				return true
			}
		case *rsa.PublicKey:
			if rsa.VerifyPKCS1v15(p, hash, sum, signature) == nil {
				return true
			}
		}
	}
	return false
}
