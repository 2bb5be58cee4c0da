package tpmkey

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// Import converts an importable key file, which was wrapped for a storage key of this
// TPM elsewhere, into a loadable one (TPM2_Import). It loads the key once to check
// that the TPM takes the result, and leaves nothing in the TPM. A file that was
// wrapped for a different TPM gives [ErrWrongTPM].
//
// The new file has the same public key, auth value and policy. It names the storage
// key at 0x81000001 as its parent if the key is under that, and that is not the
// owner's primary of the key file draft.
func (t *TPM) Import(ctx context.Context, file *keyfile.TPMKey) (*keyfile.TPMKey, error) {
	if file.Type != keyfile.Importable {
		return nil, &UnsupportedError{What: "import of a key file", Why: "the key is in its TPM already (the file is loadable, not importable)"}
	}
	if file.Parent == uint32(tpm2.TPMRHNull) {
		_, err := storageKeyAt(file.Parent)
		return nil, err
	}
	k, err := t.Key(file)
	if err != nil {
		return nil, err
	}
	var imported *keyfile.TPMKey
	err = t.withTurn(ctx, func(l *link) error {
		// If the algorithm is none of ours, the TPM decides.
		if a, err := algorithmOf(file.Public.Key); err == nil {
			if err := supported(l, a); err != nil {
				return err
			}
		}
		h, err := k.loadFromFile(l)
		if err != nil {
			return err
		}
		if err := l.release(h, k.name); err != nil {
			return err
		}
		under, err := k.foundUnder(l)
		if err != nil {
			return err
		}
		imported, err = k.loadable(under)
		return err
	})
	return imported, err
}

// ImportPrivate puts a private key from outside, an *ecdsa.PrivateKey or
// *rsa.PrivateKey, under a storage key of this TPM and returns its key file. It is
// [Wrap] and [TPM.Import] in one turn. It refuses the same keys before anything is
// sent, and asks the TPM first whether it has the algorithm. Neither the key nor the
// PIN crosses the bus in clear, and the TPM stores nothing. An owner hierarchy with a
// password is handled as by [TPM.Create].
func (t *TPM) ImportPrivate(ctx context.Context, private crypto.PrivateKey, o WrapOptions) (*keyfile.TPMKey, error) {
	key, err := newExternal(private)
	if err != nil {
		return nil, err
	}
	defer clear(key.secret)
	return t.newKey(ctx, o.Parent, key.algorithm, func(l *link, sk storageKey) (*keyfile.TPMKey, error) {
		return t.importUnder(l, key, o, sk)
	})
}

// importUnder wraps a key to the storage key sk of this TPM, and imports it.
func (t *TPM) importUnder(l *link, key *external, o WrapOptions, sk storageKey) (file *keyfile.TPMKey, err error) {
	err = t.withParent(l, sk, func(p *parent) error {
		to, err := p.storageKey()
		if err != nil {
			return err
		}
		wrapped, err := key.wrap(to, sk, o)
		if err != nil {
			return err
		}
		k, err := t.Key(wrapped)
		if err != nil {
			return err
		}
		h, err := k.loadWith(l, p)
		if err != nil {
			return err
		}
		if err := l.release(h, k.name); err != nil {
			return err
		}
		file, err = k.loadable(sk)
		return err
	})
	return file, err
}

// foundUnder returns the storage key that the new file must name. A key of the
// owner's may have loaded under the key at 0x81000001. If that is the owner's
// primary, the file keeps naming the hierarchy, which stays valid when the handle is
// evicted. For an RSA key this is not checked: a chip may need a minute to create the
// primary.
func (k *Key) foundUnder(l *link) (storageKey, error) {
	sk := *k.source
	if sk.persistent != srkHandle || k.file.Parent == uint32(srkHandle) {
		return sk, nil
	}
	at, err := k.tpm.readSRK(l)
	if err != nil || !at.is(tpm2.TPMAlgECC) {
		return sk, err
	}
	owner := storageKey{hierarchy: tpm2.TPMRHOwner, template: eccH}
	err = k.tpm.withParent(l, owner, func(p *parent) error {
		if bytes.Equal(p.name.Buffer, at.name.Buffer) {
			sk = owner
		}
		return nil
	})
	if errors.Is(err, ErrOwnerAuth) {
		return sk, nil // as for a new key
	}
	return sk, err
}

// loadable returns the loadable file of an importable key that has loaded.
func (k *Key) loadable(sk storageKey) (*keyfile.TPMKey, error) {
	file, err := keyfile.NewLoadable(k.file.Pubkey, tpm2.Marshal(tpm2.TPM2BPrivate{Buffer: k.imported}), sk.fileParent(), k.file.EmptyAuth)
	if err != nil {
		return nil, fmt.Errorf("the key as the TPM wrapped it: %w", err)
	}
	file.Policy, file.AuthPolicy = k.file.Policy, k.file.AuthPolicy
	file.Description, file.Unknown = k.file.Description, k.file.Unknown
	file.RSAParent = sk.template == rsaH
	return file, nil
}

// private returns the key's TPM2B_PRIVATE without its size, for loading under p. It
// is in the file, or comes from TPM2_Import for a key that was wrapped elsewhere. The
// result of TPM2_Import is kept in memory once it has loaded.
func (k *Key) private(l *link, p *parent) ([]byte, error) {
	if k.file.Type != keyfile.Importable {
		return k.file.Privkey[2:], nil
	}
	if k.imported != nil {
		return k.imported, nil
	}
	rsp, err := execute(l, "TPM2_Import", tpm2.Import{
		ParentHandle: p.auth(tpm2.PasswordAuth(nil)),
		ObjectPublic: tpm2.BytesAs2B[tpm2.TPMTPublic](k.file.Pubkey[2:]),
		Duplicate:    tpm2.TPM2BPrivate{Buffer: k.file.Privkey[2:]},
		InSymSeed:    tpm2.TPM2BEncryptedSecret{Buffer: k.file.Secret[2:]},
		Symmetric:    tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull},
	})
	if err == nil {
		return rsp.OutPrivate.Buffer, nil
	}
	importing := fmt.Sprintf("importing the key under %v", p.key)
	if wrapsOther(p, err) {
		const why = "the key was wrapped for another storage key, or for another TPM, or this TPM was cleared since, or the key file is damaged"
		return nil, &wrongParentError{importing, why, p.identity(), err}
	}
	return nil, fmt.Errorf("%s: %w", importing, err)
}

// wrapsOther reports whether err says that the key was wrapped for a different
// storage key than p. Either the integrity value is wrong, or the seed cannot be
// decrypted at all, for example one for an RSA key by an ECC key. libtpms reports a
// failure of OAEP as TPM_RC_FAILURE.
func wrapsOther(p *parent, err error) bool {
	if isRC(err, tpm2.TPMRCIntegrity) || p.is(tpm2.TPMAlgRSA) && isRC(err, tpm2.TPMRCFailure) {
		return true
	}
	f1, ok := errors.AsType[tpm2.TPMFmt1Error](err)
	if !ok {
		return false
	}
	ofParameter, n := f1.Parameter()
	return ofParameter && n == 4 // inSymSeed
}
