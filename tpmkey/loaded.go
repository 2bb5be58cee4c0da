package tpmkey

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

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

// load puts the key into the TPM: from its saved context, which needs no
// parent, else from its file. A context ends with a reset of the TPM.
func (k *Key) load(l *link) (tpm2.TPMHandle, error) {
	if k.saved != nil {
		h, err := l.loadContext(k.saved, k.name)
		if !contextGone(err) {
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
	// A TPM that does not save the context has to load the key under its
	// parent each time, and can sign nevertheless.
	return h, nil
}

// loadFromFile loads the key under the storage key that worked before, else
// under the first of the candidates that the TPM takes.
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
		var refused *wrongParentError
		if errors.As(err, &refused) {
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
		h, err = k.loadWith(l, p, sk)
		return err
	})
	if err != nil && h != 0 {
		// The key is loaded, but its parent could not be flushed.
		return 0, errors.Join(err, l.release(h, k.name))
	}
	return h, err
}

// loadWith runs TPM2_Load under p, which is sk, after TPM2_Import for a key that
// was wrapped for this TPM elsewhere. A storage key that is not the one remembered
// is not tried.
func (k *Key) loadWith(l *link, p *parent, sk storageKey) (tpm2.TPMHandle, error) {
	if err := l.alive(); err != nil {
		return 0, err
	}
	if err := p.mustBe(sk, k.pinned()); err != nil {
		return 0, fmt.Errorf("loading the key under %v: %w", sk, err)
	}
	private, err := k.private(l, p)
	if err != nil {
		return 0, underErr("importing", sk, p, err, wrapsOther(p, err))
	}
	if err := l.alive(); err != nil {
		return 0, err
	}
	l.hold(k.name)
	rsp, err := tpm2.Load{
		ParentHandle: p.auth(tpm2.PasswordAuth(nil)),
		InPrivate:    tpm2.TPM2BPrivate{Buffer: private},
		InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](k.file.Pubkey[2:]),
	}.Execute(l)
	if err = l.command("TPM2_Load", err); err != nil {
		l.unhold(k.name, err)
		return 0, underErr("loading", sk, p, err, isRC(err, tpm2.TPMRCIntegrity))
	}
	if !bytes.Equal(rsp.Name.Buffer, k.name.Buffer) {
		return 0, errors.Join(fmt.Errorf("TPM2_Load: the TPM loaded another key than the file's"), l.release(rsp.ObjectHandle, k.name))
	}
	at := k.place(p, sk)
	k.parent.Store(&at)
	k.imported = private
	return rsp.ObjectHandle, nil
}

// underErr says which storage key refused, and what; wrong, that another one may
// not.
func underErr(doing string, sk storageKey, p *parent, err error, wrong bool) error {
	if wrong {
		return &wrongParentError{doing, sk.String(), p.identity(sk), err}
	}
	return fmt.Errorf("%s the key under %v: %w", doing, sk, err)
}

// wrongParent reports whether another storage key may do what this one did not.
func wrongParent(err error) bool {
	return errors.Is(err, ErrWrongTPM) || errors.Is(err, ErrNoParent)
}

// contextGone reports whether err is a refusal of TPM2_ContextLoad that will
// not pass: the TPM was reset since the context was saved, or is another one.
func contextGone(err error) bool {
	var ce *CommandError
	return errors.As(err, &ce) && !passing(ce.RC)
}

// hold notes that an object of this Name is, or is about to be, in the TPM.
func (l *link) hold(name tpm2.TPM2BName) { l.held = append(l.held, heldName(name.Buffer)) }

// unhold takes the note back, unless err leaves open what became of the object.
func (l *link) unhold(name tpm2.TPM2BName, err error) {
	if err != nil && !refused(err) {
		return
	}
	if i := slices.Index(l.held, heldName(name.Buffer)); i >= 0 {
		l.held = slices.Delete(l.held, i, i+1)
	}
}

// release flushes a loaded object.
func (l *link) release(h tpm2.TPMHandle, name tpm2.TPM2BName) error {
	err := l.flush(h)
	l.unhold(name, err)
	return err
}
