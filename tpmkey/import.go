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
func (t *TPM) ImportPrivate(ctx context.Context, private crypto.PrivateKey, o WrapOptions) (file *keyfile.TPMKey, err error) {
	key, err := newExternal(private)
	if err != nil {
		return nil, err
	}
	defer clear(key.secret)
	err = t.underParent(ctx, o.Parent, func(l *link, sk storageKey) (err error) {
		file, err = key.importUnder(t, l, o, sk)
		return err
	})
	return file, err
}

// importUnder wraps the key to the storage key sk of a TPM, and imports it.
func (e *external) importUnder(t *TPM, l *link, o WrapOptions, sk storageKey) (file *keyfile.TPMKey, err error) {
	if err := supported(l, e.algorithm); err != nil {
		return nil, err
	}
	err = t.withParent(l, sk, func(p *parent) error {
		to, err := p.storageKey()
		if err != nil {
			return err
		}
		wrapped, err := e.wrap(to, sk, o)
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
	if sk.handle != srkHandle || k.file.Parent == uint32(srkHandle) {
		return sk, nil
	}
	at, err := k.tpm.readSRK(l)
	if err != nil || at == nil || at.public.Type != tpm2.TPMAlgECC {
		return sk, err
	}
	owner := storageKey{tpm2.TPMRHOwner, eccH}
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
	file, err := keyfile.NewLoadable(k.file.Pubkey, tpm2.Marshal(tpm2.TPM2BPrivate{Buffer: k.imported}), uint32(sk.handle), k.file.EmptyAuth)
	if err != nil {
		return nil, fmt.Errorf("the key as the TPM wrapped it: %w", err)
	}
	file.Policy, file.AuthPolicy = k.file.Policy, k.file.AuthPolicy
	file.Description, file.Unknown = k.file.Description, k.file.Unknown
	file.RSAParent = sk.template == rsaH
	return file, nil
}
