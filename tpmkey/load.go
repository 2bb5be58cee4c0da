package tpmkey

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// withLoaded calls fn with the key in the TPM, and flushes it afterwards.
func (k *Key) withLoaded(l *link, fn func(tpm2.NamedHandle) error) error {
	h, err := k.load(l)
	if err != nil {
		return err
	}
	err = fn(tpm2.NamedHandle{Handle: h, Name: k.name})
	return errors.Join(err, l.release(h, k.name))
}

// load puts the key into the TPM: from its saved context, which needs no parent, or
// else from its file. A saved context is lost when the TPM is reset.
func (k *Key) load(l *link) (tpm2.TPMHandle, error) {
	if k.saved != nil {
		h, err := l.loadContext(k.saved, k.name)
		if err == nil || !contextGone(err) {
			return h, err
		}
		k.saved = nil
	}
	h, err := k.loadFromFile(l)
	if err != nil {
		return 0, err
	}
	if k.saved, err = l.saveContext(h); err != nil && l.broken != nil {
		return 0, err
	}
	// If the TPM refuses to save the context, the key can sign anyway. It is
	// loaded under its parent each time.
	return h, nil
}

// loadFromFile loads the key under the storage key that worked before, or else under
// the first of the candidates that the TPM takes.
func (k *Key) loadFromFile(l *link) (tpm2.TPMHandle, error) {
	if k.source != nil {
		h, err := k.loadUnder(l, *k.source)
		if err == nil || !wrongParent(err) {
			return h, err
		}
		k.source = nil
	}
	list, err := k.tpm.candidates(l, k.file)
	if err != nil {
		return 0, err
	}
	var tried []*wrongParentError
	var errs []error
	for _, c := range list {
		if err := l.alive(); err != nil {
			return 0, err
		}
		h, err := k.loadUnder(l, c.storageKey)
		if err == nil {
			k.source = &c.storageKey
			return h, nil
		}
		if !wrongParent(err) && (!c.guess || l.broken != nil) {
			return 0, err
		}
		if refused, ok := errors.AsType[*wrongParentError](err); ok {
			tried = append(tried, refused)
		}
		if !c.guess {
			errs = append(errs, err)
		}
	}
	return 0, k.refusal(tried, errs)
}

// loadUnder puts the storage key sk into the TPM and loads the key under it.
func (k *Key) loadUnder(l *link, sk storageKey) (h tpm2.TPMHandle, err error) {
	err = k.tpm.withParent(l, sk, func(p *parent) (err error) {
		h, err = k.loadWith(l, p)
		return err
	})
	if err != nil && h != 0 {
		// The key is loaded, but its parent could not be flushed.
		return 0, errors.Join(err, l.release(h, k.name))
	}
	return h, err
}

// loadWith runs TPM2_Load under p. A key that was wrapped elsewhere needs TPM2_Import
// first. If p is not the storage key that is remembered, nothing is sent to the TPM.
func (k *Key) loadWith(l *link, p *parent) (tpm2.TPMHandle, error) {
	if err := l.alive(); err != nil {
		return 0, err
	}
	loading := fmt.Sprintf("loading the key under %v", p.key)
	if err := p.mustBe(k.pinned()); err != nil {
		return 0, fmt.Errorf("%s: %w", loading, err)
	}
	private, err := k.private(l, p)
	if err != nil {
		return 0, err
	}
	if err := l.alive(); err != nil {
		return 0, err
	}
	l.hold(k.name)
	rsp, err := execute(l, "TPM2_Load", tpm2.Load{
		ParentHandle: p.auth(tpm2.PasswordAuth(nil)),
		InPrivate:    tpm2.TPM2BPrivate{Buffer: private},
		InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](k.file.Pubkey[2:]),
	})
	if err != nil {
		l.unhold(k.name, err)
		if isRC(err, tpm2.TPMRCIntegrity) {
			return 0, &wrongParentError{loading, ErrWrongTPM.Error(), p.identity(), err}
		}
		return 0, fmt.Errorf("%s: %w", loading, err)
	}
	if !bytes.Equal(rsp.Name.Buffer, k.name.Buffer) {
		return 0, errors.Join(errors.New("TPM2_Load: the TPM loaded another key than the file's"), l.release(rsp.ObjectHandle, k.name))
	}
	at := k.place(p)
	k.parent.Store(&at)
	k.imported = private
	return rsp.ObjectHandle, nil
}

// wrongParent reports whether the key may load under another storage key.
func wrongParent(err error) bool {
	return errors.Is(err, ErrWrongTPM) || errors.Is(err, ErrNoParent)
}

// contextGone reports whether err is a permanent refusal of TPM2_ContextLoad: the TPM
// was reset since the context was saved, or it is a different TPM.
func contextGone(err error) bool {
	refused, ok := errors.AsType[*commandError](err)
	return ok && !passing(refused.rc)
}
