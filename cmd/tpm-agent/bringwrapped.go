package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// bringWrapped makes an ordinary key of one that was wrapped for this TPM. Its PIN
// is not asked for before the storage key is known to be the one that is remembered.
func (o *importOptions) bringWrapped(ctx context.Context, tpm *tpmkey.TPM, ask *asker, s *sourceKey, remembering *memory, dir string) (*newKey, error) {
	made, err := tpm.Import(ctx, s.wrapped)
	if gone(err) {
		return nil, withHint(err, "compare the fingerprint that was shown when it was wrapped with: tpm-agent srk --fingerprint")
	}
	if err != nil {
		return nil, err
	}
	key, err := tpm.Key(made)
	if err == nil {
		err = key.Load(ctx)
	}
	if err == nil && !o.newTPM {
		err = remembering.check(dir, key.Parent().At, key.ParentName())
	}
	if err != nil {
		return nil, err
	}
	tried, err := o.tryWithPIN(ctx, tpm, ask, s, made, key)
	if err != nil {
		return nil, err
	}
	return tried, tried.is(s.public)
}

// tryWithPIN tries a key whose PIN somebody else has chosen, under the storage key
// under which it has loaded. A person may try again; the try that may lock the TPM
// is not made unasked, nor one with a PIN that was wrong before.
func (o *importOptions) tryWithPIN(ctx context.Context, tpm *tpmkey.TPM, ask *asker, s *sourceKey, made *keyfile.TPMKey, loaded *tpmkey.Key) (*newKey, error) {
	var refused wrongPINs
	defer func() { refused.wipe() }()
	// Some programs say of keys that have a PIN that they have none.
	unasked := !made.UsesAuth() && o.passphrase == nil
	for try := 1; ; try++ {
		tries, err := ask.mayTry(ctx, loaded, s.path, len(refused) > 0)
		if err == nil && !unasked {
			err = s.askPIN(ctx, ask, o)
			made.EmptyAuth = len(s.passphrase) == 0
		}
		if err != nil {
			return nil, err
		}
		var key *newKey
		if refused.has(s.passphrase) {
			err = &tpmkey.AuthError{Left: tries}
		} else {
			key, err = tryKey(ctx, tpm, made, loaded.ParentName(), s.passphrase)
		}
		var wrong *tpmkey.AuthError
		switch {
		case !errors.As(err, &wrong), wrong.Left == 0:
			return key, err
		case unasked:
			unasked, try = false, 0
		case o.passphrase != nil || !ask.terminal || try == passphraseTries:
			return nil, err
		default:
			fmt.Fprintf(ask.sys.stderr, "%s.  Try again.\n", wrong)
		}
		refused = append(refused, bytes.Clone(s.passphrase))
	}
}
