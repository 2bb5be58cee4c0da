package tpmkey

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// ErrNotStorageKey means that what should be the public part of a storage key
// is something else, or damaged. It comes wrapped in an error that says what.
var ErrNotStorageKey = errors.New("not a storage key")

// StorageKey is the public part of a storage key: private keys can be wrapped
// to it, so that only the TPM that has its private part can load them.
//
// It proves nothing about where it comes from. Whoever hands one over can read
// what is wrapped to it, unless it really belongs to a TPM.
type StorageKey struct {
	tpm2b  []byte
	public *tpm2.TPMTPublic
	parsed *keyfile.Public
}

// ParseStorageKey reads a TPM2B_PUBLIC, its size included. The key must be a
// restricted decryption key, RSA of 2048 bits or more or ECC on one of the NIST
// curves, with AES in CFB mode as its symmetric algorithm. Errors wrap
// [ErrNotStorageKey].
func ParseStorageKey(tpm2b []byte) (*StorageKey, error) {
	parsed, err := keyfile.ParsePublic(tpm2b)
	if err != nil {
		// It is not a key file that is damaged.
		return nil, fmt.Errorf("%w: %s", ErrNotStorageKey, strings.TrimPrefix(err.Error(), keyfile.ErrFormat.Error()+": "))
	}
	if err := storing(parsed, tpm2b); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotStorageKey, err)
	}
	outer, err := tpm2.Unmarshal[tpm2.TPM2BPublic](tpm2b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotStorageKey, err)
	}
	public, err := outer.Contents()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotStorageKey, err)
	}
	if err := storingAES(public); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotStorageKey, err)
	}
	return &StorageKey{tpm2b: bytes.Clone(tpm2b), public: public, parsed: parsed}, nil
}

// storing tells why nothing can be wrapped to a key, if so. All TPMs have AES,
// and the TCG's storage keys use nothing else.
func storing(p *keyfile.Public, tpm2b []byte) error {
	// The size, type, nameAlg and attributes, and the sized policy come first.
	symmetric := tpm2.TPMAlgID(binary.BigEndian.Uint16(tpm2b[2+8+2+len(p.AuthPolicy):]))
	switch {
	case !p.Attributes.Has(keyfile.AttrDecrypt) || p.Attributes.Has(keyfile.AttrSign):
		return errors.New("it is a key for signatures, or for nothing")
	case !p.Attributes.Has(keyfile.AttrRestricted):
		return errors.New("it decrypts anything (it is not restricted)")
	case symmetric == tpm2.TPMAlgNull:
		return errors.New("it has no symmetric algorithm")
	case symmetric != tpm2.TPMAlgAES:
		return fmt.Errorf("its symmetric algorithm is %#04x, not AES", uint16(symmetric))
	case p.Scheme != uint16(tpm2.TPMAlgNull):
		return fmt.Errorf("it prescribes the scheme %#04x", p.Scheme)
	case p.Type == uint16(tpm2.TPMAlgRSA) && p.KeyBits < 2048:
		return fmt.Errorf("RSA %d is too short", p.KeyBits)
	}
	return nil
}

// storingAES checks the parameters of AES, and that the hash is one that keys
// can be derived with here.
func storingAES(public *tpm2.TPMTPublic) error {
	if _, err := public.NameAlg.Hash(); err != nil {
		return err
	}
	kem, err := tpm2.ImportEncapsulationKey(public)
	if err != nil {
		return err
	}
	sym := kem.SymmetricParameters()
	bits, err := sym.KeyBits.AES()
	if err != nil {
		return err
	}
	mode, err := sym.Mode.AES()
	if err != nil {
		return err
	}
	if *mode != tpm2.TPMAlgCFB || *bits != 128 && *bits != 192 && *bits != 256 {
		return fmt.Errorf("its symmetric algorithm is AES of %d bits in mode %#04x", *bits, uint16(*mode))
	}
	return nil
}

// StorageKeyOf returns the storage key with a public key of which nothing more
// is known, such as systemd's tpm2-srk-public-key.pem: P-256 is taken for the
// TCG's template H-2, RSA 2048 for H-1, the primary storage keys of key files.
// Errors wrap [ErrNotStorageKey].
func StorageKeyOf(pub crypto.PublicKey) (*StorageKey, error) {
	var t tpm2.TPMTPublic
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		if pub.Curve != elliptic.P256() {
			return nil, notTemplate("an ECDSA key on another curve than P-256")
		}
		point, err := eccPoint(pub)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNotStorageKey, err)
		}
		t = eccH.public()
		t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, point)
	case *rsa.PublicKey:
		if pub.N == nil || pub.N.BitLen() != 2048 || pub.E != exponent {
			return nil, notTemplate("an RSA key of another size than 2048, or with another exponent than 65537")
		}
		t = rsaH.public()
		t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: pub.N.Bytes()})
	default:
		return nil, notTemplate("neither ECDSA nor RSA")
	}
	return ParseStorageKey(tpm2.Marshal(tpm2.New2B(t)))
}

func notTemplate(what string) error {
	return fmt.Errorf("%w: %s, where a bare public key must be one of a primary storage key, P-256 or RSA 2048", ErrNotStorageKey, what)
}

// Marshal returns the TPM2B_PUBLIC, its size included.
func (s *StorageKey) Marshal() []byte { return bytes.Clone(s.tpm2b) }

// Public returns the public key: an *ecdsa.PublicKey or an *rsa.PublicKey.
func (s *StorageKey) Public() crypto.PublicKey { return s.parsed.Key }

// Name returns the TPM's Name of the key, which covers its attributes, too. Of
// a [StorageKeyOf] it is what a TPM has that keeps leading zeros of coordinates,
// as most do.
func (s *StorageKey) Name() []byte { return s.parsed.Name() }

// RSA reports whether it is an RSA key, as opposed to ECC.
func (s *StorageKey) RSA() bool { return s.public.Type == tpm2.TPMAlgRSA }

// fits reports whether the key can be what a template gives.
func (s *StorageKey) fits(tp template) bool {
	bare, want := *s.public, tp.public()
	bare.Unique = want.Unique
	return bare.Type == want.Type && bytes.Equal(tpm2.Marshal(bare), tpm2.Marshal(want))
}

// StorageKey returns the public part of a storage key of this TPM, and the
// handle by which key files name it. at is as the Parent of a [Template]: 0 is
// the owner's primary storage key, or the one at 0x81000001 where the owner
// hierarchy has a password.
func (t *TPM) StorageKey(ctx context.Context, at uint32) (*StorageKey, uint32, error) {
	named, err := storageKeyAt(at)
	if err != nil {
		return nil, 0, err
	}
	var key *StorageKey
	err = t.withTurn(ctx, func(l *link) error {
		return t.orSRK(l, named, func(sk storageKey) error {
			named = sk
			return t.withParent(l, sk, func(p *parent) (err error) {
				key, err = p.storageKey(sk)
				return err
			})
		})
	})
	if err != nil {
		return nil, 0, err
	}
	return key, named.fileParent(), nil
}

// storageKey returns p to wrap keys to.
func (p *parent) storageKey(sk storageKey) (*StorageKey, error) {
	key, err := ParseStorageKey(tpm2.Marshal(tpm2.New2B(*p.public)))
	if err != nil {
		return nil, fmt.Errorf("%v: %w", sk, err)
	}
	return key, nil
}
