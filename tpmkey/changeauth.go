package tpmkey

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// ChangeAuth gives the key a new auth value and returns the changed key, with its new
// file ([Key.File]). old and new are PINs as typed, nil for none; ChangeAuth does not
// change them. The public area stays the same, and so does whether the key takes part
// in the lockout. In the file only EmptyAuth and the private part change.
//
// The TPM stores nothing (TPM2_ObjectChangeAuth): this Key and its file remain valid
// with the old auth value. Before ChangeAuth returns the new key, it has read its
// file back from what [keyfile.TPMKey.Marshal] wrote and has signed with the new auth
// value. Neither auth value crosses the bus in clear.
//
// A wrong old auth value gives an [AuthError] and costs one try. A key that is not
// [Key.Changeable] gives an [UnsupportedError] before anything is sent. The other
// errors are those of [Key.Sign].
func (k *Key) ChangeAuth(ctx context.Context, old, new []byte) (*Key, error) {
	if err := k.Changeable(); err != nil {
		return nil, err
	}
	from, to := authValue(old, k.nameHash), authValue(new, k.nameHash)
	defer clear(from)
	defer clear(to)
	var private []byte
	var source storageKey
	err := k.tpm.withTurn(ctx, func(l *link) error {
		return k.withLoaded(l, func(h tpm2.NamedHandle) (err error) {
			source = *k.source
			private, err = k.changeAuth(l, h, from, to)
			return l.authError(err)
		})
	})
	if err != nil {
		return nil, err
	}
	changed, err := k.with(private, len(bytes.TrimRight(to, "\x00")) == 0)
	if err != nil {
		return nil, err
	}
	changed.source = &source
	changed.Pin(k.Parent().Name, false)
	err = changed.CheckAuth(ctx, new)
	if wrong, ok := errors.AsType[*AuthError](err); ok {
		// The user has typed no wrong PIN, so this is not an AuthError.
		return nil, fmt.Errorf("the TPM has changed the PIN, and does not accept the new one: %w", wrong.err)
	}
	if err != nil {
		return nil, fmt.Errorf("signing a test message with the new PIN: %w", err)
	}
	return changed, nil
}

// Changeable returns why the auth value of a key cannot be changed, nil if it can. It
// does not use the TPM. The old auth value authorizes the change, even if it does not
// authorize the use of the key (the ADMIN role of TPM 2.0 Part 1, 19.2).
func (k *Key) Changeable() error {
	var why string
	switch {
	case k.file.Type == keyfile.Importable:
		why = "the key was wrapped for this TPM elsewhere, and has to be imported first"
	case k.file.Public.Attributes.AdminWithPolicy():
		why = "the key requires a policy of its own for this (adminWithPolicy), and key files have none for it"
	case k.policy != nil && !k.policy.usesAuth():
		why = "the key is used by a policy that asks for no PIN, so that one would protect nothing"
	case len(k.file.Unknown) > 0:
		why = fmt.Sprintf("its file has fields that tpm-agent does not know (%s), and they would be lost", joinInts(k.file.Unknown))
	default:
		return nil
	}
	return &UnsupportedError{What: "change of the PIN", Why: why}
}

// changeAuth runs TPM2_ObjectChangeAuth (TPM 2.0 Part 3, 12.8) on the loaded key. One
// session, salted to its parent, proves the old auth value and encrypts the new one.
func (k *Key) changeAuth(l *link, h tpm2.NamedHandle, from, to []byte) (private []byte, err error) {
	name := k.Parent().Name
	err = k.tpm.withSession(l, *k.source, name, func(s *session) error {
		return k.tpm.withParent(l, *k.source, func(p *parent) error {
			if err := p.mustBe(name); err != nil {
				return fmt.Errorf("changing the auth value under %v: %w", *k.source, err)
			}
			if err := l.alive(); err != nil {
				return err
			}
			rsp, err := execute(l, "TPM2_ObjectChangeAuth", tpm2.ObjectChangeAuth{
				ObjectHandle: tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: s.use(from, continueSession|decryptSession)},
				ParentHandle: tpm2.NamedHandle{Handle: p.handle, Name: p.name},
				NewAuth:      tpm2.TPM2BAuth{Buffer: to},
			})
			if err == nil {
				private = tpm2.Marshal(rsp.OutPrivate)
			}
			return err
		})
	})
	return private, err
}

// with returns the key with a new TPM2B_PRIVATE. Its file has been written and read
// back.
func (k *Key) with(private []byte, emptyAuth bool) (*Key, error) {
	file := *k.file
	file.Privkey, file.EmptyAuth = private, emptyAuth
	data, err := file.Marshal()
	var read *keyfile.TPMKey
	if err == nil {
		read, err = keyfile.Parse(data)
	}
	if err != nil {
		return nil, fmt.Errorf("the key as the TPM wrapped it: %w", err)
	}
	return k.tpm.Key(read)
}
