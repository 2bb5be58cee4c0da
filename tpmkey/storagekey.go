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

// ErrNotStorageKey means that something is not the public part of a storage key, or
// that it is damaged. It comes wrapped in an error that says why.
var ErrNotStorageKey = errors.New("not a storage key")

// StorageKey is the public part of a storage key. Private keys can be wrapped to it,
// so that only the TPM that has its private part can load them.
//
// It does not prove where it comes from. Unless it really belongs to a TPM, the
// person you got it from can read what you wrap to it.
type StorageKey struct {
	tpm2b  []byte
	public *tpm2.TPMTPublic
	kem    tpm2.LabeledEncapsulationKey // encrypts to the key
	parsed *keyfile.Public
}

// ParseStorageKey reads a TPM2B_PUBLIC, its size included. The key must be a
// restricted decryption key, RSA of 2048 bits or more or ECC on one of the NIST
// curves, with AES in CFB mode as its symmetric algorithm. Errors wrap
// [ErrNotStorageKey].
func ParseStorageKey(tpm2b []byte) (*StorageKey, error) {
	parsed, err := keyfile.ParsePublic(tpm2b)
	if err != nil {
		// The error speaks of a key file, which this is not.
		return nil, fmt.Errorf("%w: %s", ErrNotStorageKey, strings.TrimPrefix(err.Error(), keyfile.ErrFormat.Error()+": "))
	}
	key := &StorageKey{tpm2b: bytes.Clone(tpm2b), parsed: parsed}
	if err := key.parse(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotStorageKey, err)
	}
	return key, nil
}

// parse sets s.public and s.kem. It returns why nothing can be wrapped to the key, if
// so. All TPMs have AES, and the TCG's storage keys use nothing else.
func (s *StorageKey) parse() error {
	p := s.parsed
	// The symmetric algorithm follows the size, type, nameAlg, attributes and
	// policy. go-tpm cannot decode all of its values.
	symmetric := tpm2.TPMAlgID(binary.BigEndian.Uint16(s.tpm2b[2+8+2+len(p.AuthPolicy):]))
	switch {
	case !p.Attributes.Decrypt() || p.Attributes.Sign():
		return errors.New("it is a key for signatures, or for nothing")
	case !p.Attributes.Restricted():
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
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](s.tpm2b[2:])
	if err != nil {
		return err
	}
	s.public = public
	if _, err := public.NameAlg.Hash(); err != nil {
		return err // Go cannot derive keys with it
	}
	if s.kem, err = tpm2.ImportEncapsulationKey(public); err != nil {
		return err
	}
	sym := s.kem.SymmetricParameters()
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

// StorageKeyOf returns the storage key with a bare public key, such as systemd's
// tpm2-srk-public-key.pem. It assumes the primary storage keys of key files: the
// TCG's template H-2 for P-256, and H-1 for RSA 2048. Errors wrap [ErrNotStorageKey].
func StorageKeyOf(pub crypto.PublicKey) (*StorageKey, error) {
	var t tpm2.TPMTPublic
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		if point, err := eccPoint(pub); err == nil && pub.Curve == elliptic.P256() {
			t = eccH.public()
			t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, point)
		}
	case *rsa.PublicKey:
		if pub.N != nil && pub.N.BitLen() == 2048 && pub.E == exponent {
			t = rsaH.public()
			t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: pub.N.Bytes()})
		}
	}
	if t.Type == 0 {
		return nil, fmt.Errorf("%w: a bare public key must be that of a primary storage key, P-256 or RSA 2048 with the exponent 65537", ErrNotStorageKey)
	}
	return ParseStorageKey(tpm2.Marshal(tpm2.New2B(t)))
}

// Marshal returns the TPM2B_PUBLIC, its size included.
func (s *StorageKey) Marshal() []byte { return bytes.Clone(s.tpm2b) }

// Public returns the public key: an *ecdsa.PublicKey or an *rsa.PublicKey.
func (s *StorageKey) Public() crypto.PublicKey { return s.parsed.Key }

// Name returns the TPM's Name of the key, which covers its attributes as well. For
// the result of [StorageKeyOf] it is right for TPMs that keep the leading zeros of
// coordinates, as most do.
func (s *StorageKey) Name() []byte { return s.parsed.Name() }

// RSA reports whether it is an RSA key, as opposed to ECC.
func (s *StorageKey) RSA() bool { return s.public.Type == tpm2.TPMAlgRSA }

// fits reports whether the key can be created from the template.
func (s *StorageKey) fits(tp template) bool {
	bare, want := *s.public, tp.public()
	bare.Unique = want.Unique
	return bare.Type == want.Type && bytes.Equal(tpm2.Marshal(bare), tpm2.Marshal(want))
}

// StorageKey returns the public part of a storage key of this TPM, and the handle by
// which key files name it. at is as the Parent of a [Template]: 0 is the owner's
// primary storage key, or the one at 0x81000001 if the owner hierarchy has a
// password. The errors are those of [TPM.Create].
func (t *TPM) StorageKey(ctx context.Context, at uint32) (key *StorageKey, handle uint32, err error) {
	err = t.underParent(ctx, at, func(l *link, sk storageKey) error {
		handle = uint32(sk.handle)
		return t.withParent(l, sk, func(p *parent) (err error) {
			key, err = p.storageKey()
			return err
		})
	})
	return key, handle, err
}

// ParentAt returns the storage key under which [TPM.Create] puts a new key, and the
// handle by which key files name it. at and the errors are as for [TPM.StorageKey].
func (t *TPM) ParentAt(ctx context.Context, at uint32) (found Parent, handle uint32, err error) {
	err = t.underParent(ctx, at, func(l *link, sk storageKey) error {
		handle = uint32(sk.handle)
		return t.withParent(l, sk, func(p *parent) error {
			found = p.identity()
			return nil
		})
	})
	return found, handle, err
}

// storageKey returns the public part of p, for wrapping.
func (p *parent) storageKey() (*StorageKey, error) {
	key, err := ParseStorageKey(tpm2.Marshal(tpm2.New2B(*p.public)))
	if err != nil {
		return nil, fmt.Errorf("%v: %w", p.key, err)
	}
	return key, nil
}
