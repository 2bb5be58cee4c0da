package tpmkey

import (
	"errors"

	"github.com/google/go-tpm/tpm2"
)

// leftovers are what a connection that broke may have left in a TPM that has no
// resource manager in front of it.
type leftovers struct {
	objects map[heldName]bool
	session *session
}

func (lo *leftovers) add(held []heldName, s *session) {
	for _, name := range held {
		if lo.objects == nil {
			lo.objects = make(map[heldName]bool)
		}
		lo.objects[name] = true
	}
	if s != nil {
		lo.session = s
	}
}

// clearLost flushes what is left of an earlier connection. Objects are known by
// their Names: handles are given again and again, also to others. A session has
// no Name; it is ours if the TPM has not been reset since it started.
func (t *TPM) clearLost(l *link) error {
	lost := t.lost
	if lost.session == nil && len(lost.objects) == 0 {
		return nil
	}
	t.lost = leftovers{}
	err := errors.Join(clearObjects(l, lost.objects), clearSession(l, lost.session))
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
	handles, err := transientHandles(l)
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
	now, err := readBootCount(l)
	if err != nil || now != s.boot {
		return err
	}
	return l.flush(s.handle)
}

// bootCount tells one run of a TPM from the next (TPMS_CLOCK_INFO of TPM 2.0
// Part 2, 10.11.1).
type bootCount struct{ reset, restart uint32 }

func readBootCount(l *link) (bootCount, error) {
	rsp, err := tpm2.ReadClock{}.Execute(l)
	if err != nil {
		return bootCount{}, l.command("TPM2_ReadClock", err)
	}
	info := rsp.CurrentTime.ClockInfo
	return bootCount{info.ResetCount, info.RestartCount}, nil
}

// flush removes an object or a session from the TPM.
func (l *link) flush(h tpm2.TPMHandle) error {
	_, err := tpm2.FlushContext{FlushHandle: h}.Execute(l)
	return l.command("TPM2_FlushContext", err)
}
