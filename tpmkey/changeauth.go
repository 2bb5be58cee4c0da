package tpmkey

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// ChangeAuth gives the key another auth value, and returns it as the key that it
// is then, with its new file ([Key.File]). old and new are PINs as typed, nil for
// none; they are not changed. The public area, and with it whether the key takes
// part in the lockout, stays as it is, and so does all else in the file but
// EmptyAuth and the private part.
//
// The TPM keeps nothing of it (TPM2_ObjectChangeAuth): this Key and its file
// remain valid, with the old auth value. The new file has signed with the new one
// before it is returned, and can be read back from what [keyfile.TPMKey.Marshal]
// makes of it. Neither auth value crosses the bus in clear.
//
// A wrong old auth value gives an [AuthError] and costs one try. What is not
// [Key.Changeable] gives an [UnsupportedError] before anything is sent. The other
// errors are those of [Key.Sign].
func (k *Key) ChangeAuth(ctx context.Context, old, new []byte) (*Key, error) {
	if err := k.Changeable(); err != nil {
		return nil, err
	}
	from, to := k.authValue(old), k.authValue(new)
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
	changed.Pin(Pin{Parent: k.ParentName()})
	if err := changed.try(ctx, new); err != nil {
		return nil, err
	}
	return changed, nil
}

// Changeable tells why the auth value of a key cannot be changed, if so, without
// asking the TPM. What may change it is the old one, also where that does not
// authorize its use (the ADMIN role of TPM 2.0 Part 1, 19.2).
func (k *Key) Changeable() error {
	refuse := func(why string, args ...any) error {
		return &UnsupportedError{What: "change of the PIN", Why: fmt.Sprintf(why, args...)}
	}
	switch {
	case k.file.Type == keyfile.Importable:
		return refuse("the key was wrapped for this TPM elsewhere, and has to be imported first")
	case k.file.Public.Attributes.Has(keyfile.AttrAdminWithPolicy):
		return refuse("the key leaves that to a policy of its own (adminWithPolicy), and key files have none for it")
	case k.policy != nil && !k.policy.usesAuth():
		return refuse("the key is used by a policy that asks for no PIN, so that one would protect nothing")
	case len(k.file.Unknown) > 0:
		return refuse("its file has fields that tpm-agent does not know (%s), and they would be lost", joinInts(k.file.Unknown, ", "))
	}
	return nil
}

// changeAuth runs TPM2_ObjectChangeAuth (TPM 2.0 Part 3, 12.8) on the loaded key.
// One session, salted to its parent, proves the old auth value and encrypts the
// new one.
func (k *Key) changeAuth(l *link, h tpm2.NamedHandle, from, to []byte) (private []byte, err error) {
	name := k.ParentName()
	err = k.tpm.withSession(l, *k.source, name, func(s *session) error {
		return k.tpm.withParent(l, *k.source, func(p *parent) error {
			if err := p.mustBe(*k.source, name); err != nil {
				return fmt.Errorf("changing the auth value under %v: %w", *k.source, err)
			}
			if err := l.alive(); err != nil {
				return err
			}
			rsp, err := tpm2.ObjectChangeAuth{
				ObjectHandle: tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: s.use(from, true)},
				ParentHandle: tpm2.NamedHandle{Handle: p.handle, Name: p.name},
				NewAuth:      tpm2.TPM2BAuth{Buffer: to},
			}.Execute(l)
			if err != nil {
				return l.command("TPM2_ObjectChangeAuth", err)
			}
			private = tpm2.Marshal(rsp.OutPrivate)
			return nil
		})
	})
	return private, err
}

// with returns the key with another TPM2B_PRIVATE. Its file is what is read back
// from its octets.
func (k *Key) with(private []byte, emptyAuth bool) (*Key, error) {
	file := *k.file
	file.Privkey, file.EmptyAuth = private, emptyAuth
	data, err := file.Marshal()
	if err != nil {
		return nil, fmt.Errorf("the key as the TPM wrapped it: %w", err)
	}
	read, err := keyfile.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("the key as the TPM wrapped it: %w", err)
	}
	return k.tpm.Key(read)
}

// CheckAuth has the TPM verify an auth value, by a signature over something
// random. A wrong one costs one try. The errors are those of [Key.Sign].
func (k *Key) CheckAuth(ctx context.Context, auth []byte) error {
	hash := k.someHash()
	digest := make([]byte, hash.Size())
	if _, err := rand.Read(digest); err != nil {
		return err
	}
	_, err := k.Sign(ctx, auth, digest, hash)
	return err
}

// try is CheckAuth for a key that was just changed. That the TPM does not take
// the PIN is no [AuthError] here: nobody has typed a wrong one.
func (k *Key) try(ctx context.Context, pin []byte) error {
	err := k.CheckAuth(ctx, pin)
	var wrong *AuthError
	if errors.As(err, &wrong) {
		return fmt.Errorf("the TPM has changed the PIN, and does not take the new one: %w", wrong.err)
	}
	if err != nil {
		return fmt.Errorf("signing a test message with the new PIN: %w", err)
	}
	return nil
}

// someHash is a hash of a message that the key can sign.
func (k *Key) someHash() crypto.Hash {
	switch pub := k.Public().(type) {
	case *ecdsa.PublicKey:
		hash, _ := curveHash(pub.Curve)
		return hash
	default:
		if k.file.Public.SchemeHash == uint16(tpm2.TPMAlgSHA512) {
			return crypto.SHA512
		}
		return crypto.SHA256
	}
}
