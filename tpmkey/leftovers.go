package tpmkey

import (
	"errors"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// leftovers are what a connection that broke may have left in a TPM that has no
// resource manager in front of it.
type leftovers struct {
	objects map[heldName]bool
	session *session
	unnamed []unnamed
}

func (lo *leftovers) add(l *link, s *session) {
	for _, name := range l.held {
		if lo.objects == nil {
			lo.objects = make(map[heldName]bool)
		}
		lo.objects[name] = true
	}
	if s != nil {
		lo.session = s
	}
	lo.unnamed = append(lo.unnamed, l.unnamed...)
}

// unnamed is a command whose answer was lost, and with it the handle of what it
// made: all that is known is what was there before, and in which run of the TPM.
type unnamed struct {
	kind   tpm2.TPMHandle // the first handle of that kind
	before []tpm2.TPMHandle
	boot   bootCount
}

// First handles of what a command can make (TPM 2.0 Part 2, 7.2).
const (
	firstSession   tpm2.TPMHandle = 0x02000000
	firstTransient tpm2.TPMHandle = 0x80000000
)

// making calls fn, which sends a command that makes something of this kind. The
// looks around before it cost two commands, where a session or a primary is
// made on a TPM without resource manager; not where signatures are.
func (l *link) making(kind tpm2.TPMHandle, fn func() error) error {
	if l.conn.Managed() {
		return fn()
	}
	boot, err := l.readBootCount()
	if err != nil {
		return err
	}
	before, err := l.handles(kind)
	if err != nil {
		return err
	}
	l.boot = boot
	err = fn()
	if l.broken != nil {
		l.unnamed = append(l.unnamed, unnamed{kind, before, boot})
	}
	return err
}

// clearLost flushes what is left of an earlier connection. Objects are known by
// their Names: handles are given again and again, also to others. A session has
// no Name; it is ours if the TPM has not been reset since it started.
func (t *TPM) clearLost(l *link) error {
	lost := t.lost
	if lost.session == nil && len(lost.objects) == 0 && len(lost.unnamed) == 0 {
		return nil
	}
	t.lost = leftovers{}
	err := errors.Join(clearObjects(l, lost.objects), clearSession(l, lost.session), clearUnnamed(l, lost.unnamed))
	if l.broken != nil {
		t.lost = lost
		return err
	}
	// The TPM refused to tell or to flush. That is no reason not to try what
	// the caller is here for; it says so itself if there is no room.
	return nil
}

func clearObjects(l *link, names map[heldName]bool) error {
	if len(names) == 0 {
		return nil
	}
	handles, err := l.handles(firstTransient)
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range handles {
		rsp, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(l)
		if err != nil {
			errs = append(errs, l.command("TPM2_ReadPublic", err))
			continue
		}
		if names[heldName(rsp.Name.Buffer)] {
			errs = append(errs, l.flush(h))
		}
	}
	return errors.Join(errs...)
}

func clearSession(l *link, s *session) error {
	if s == nil {
		return nil
	}
	now, err := l.readBootCount()
	if err != nil || now != s.boot {
		return err
	}
	return l.flush(s.handle)
}

// clearUnnamed flushes what appeared since the command whose answer was lost.
// A TPM that serves one client at a time leaves little doubt whose it is.
func clearUnnamed(l *link, list []unnamed) error {
	var errs []error
	for _, u := range list {
		now, err := l.readBootCount()
		if err != nil || now != u.boot {
			errs = append(errs, err)
			continue
		}
		handles, err := l.handles(u.kind)
		errs = append(errs, err)
		for _, h := range handles {
			if !slices.Contains(u.before, h) {
				errs = append(errs, l.flush(h))
			}
		}
	}
	return errors.Join(errs...)
}

// bootCount tells one run of a TPM from the next (TPMS_CLOCK_INFO of TPM 2.0
// Part 2, 10.11.1).
type bootCount struct{ reset, restart uint32 }

func (l *link) readBootCount() (bootCount, error) {
	rsp, err := tpm2.ReadClock{}.Execute(l)
	if err != nil {
		return bootCount{}, l.command("TPM2_ReadClock", err)
	}
	info := rsp.CurrentTime.ClockInfo
	return bootCount{info.ResetCount, info.RestartCount}, nil
}

// handles returns the handles in the TPM of the kind that begins with first.
func (l *link) handles(first tpm2.TPMHandle) ([]tpm2.TPMHandle, error) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: uint32(first), PropertyCount: 64}.Execute(l)
	if err != nil {
		return nil, l.command("TPM2_GetCapability", err)
	}
	list, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		return nil, l.command("TPM2_GetCapability", err)
	}
	return list.Handle, nil
}
