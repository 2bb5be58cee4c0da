package tpmkey

import (
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// leftovers is what broken connections may have left in a TPM that has no resource
// manager.
type leftovers struct {
	objects []string // Names
	unnamed []unnamed
}

// unnamed is something in the TPM that has no Name, or whose Name is not known: a
// session, or what a command created whose response was lost.
type unnamed struct {
	boot   bootCount      // the run of the TPM that it belongs to
	handle tpm2.TPMHandle // 0 if it was in the lost response
	// What was there before the command, if there is no handle.
	kind   tpm2.TPMHandle // the first handle of that kind
	before []tpm2.TPMHandle
}

func (lo *leftovers) add(l *link, s *session) {
	for _, name := range l.held {
		if !slices.Contains(lo.objects, name) {
			lo.objects = append(lo.objects, name)
		}
	}
	if s != nil {
		lo.unnamed = append(lo.unnamed, unnamed{boot: s.boot, handle: s.handle})
	}
	lo.unnamed = append(lo.unnamed, l.unnamed...)
}

// First handles of what a command can create (TPM 2.0 Part 2, 7.2).
const (
	firstSession   tpm2.TPMHandle = 0x02000000
	firstTransient tpm2.TPMHandle = 0x80000000
)

// making calls fn, which sends a command that creates something of this kind. On a
// TPM without resource manager it first records what is there, which takes two
// commands. Signatures without a policy do not come here.
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
		l.unnamed = append(l.unnamed, unnamed{boot: boot, kind: kind, before: before})
	}
	return err
}

// clearLost flushes what earlier connections left. If the TPM refuses to list or to
// flush something, the caller's commands are tried anyway: they fail themselves if
// there is no room. Only a broken connection is an error (see l.broken), and nothing
// is forgotten then.
func (t *TPM) clearLost(l *link) {
	lost := t.lost
	t.lost = leftovers{}
	if len(lost.objects) > 0 {
		l.clearObjects(lost.objects)
	}
	for _, u := range lost.unnamed {
		l.clearUnnamed(u)
	}
	if l.broken != nil {
		t.lost = lost
	}
}

// clearObjects flushes objects by their Names: a handle may have been given to an
// object of another program since.
func (l *link) clearObjects(names []string) {
	handles, _ := l.handles(firstTransient)
	for _, h := range handles {
		rsp, err := execute(l, "TPM2_ReadPublic", tpm2.ReadPublic{ObjectHandle: h})
		if err == nil && slices.Contains(names, string(rsp.Name.Buffer)) {
			_ = l.flush(h)
		}
	}
}

// clearUnnamed flushes what u stands for, unless the TPM was reset since. What
// appeared since a command whose response was lost is taken for its result: the TPM
// serves one client at a time.
func (l *link) clearUnnamed(u unnamed) {
	now, err := l.readBootCount()
	if err != nil || now != u.boot {
		return
	}
	if u.handle != 0 {
		_ = l.flush(u.handle)
		return
	}
	handles, _ := l.handles(u.kind)
	for _, h := range handles {
		if !slices.Contains(u.before, h) {
			_ = l.flush(h)
		}
	}
}

// bootCount tells one run of a TPM from the next (TPMS_CLOCK_INFO of TPM 2.0 Part 2,
// 10.11.1).
type bootCount struct{ reset, restart uint32 }

func (l *link) readBootCount() (bootCount, error) {
	rsp, err := execute(l, "TPM2_ReadClock", tpm2.ReadClock{})
	if err != nil {
		return bootCount{}, err
	}
	info := rsp.CurrentTime.ClockInfo
	return bootCount{info.ResetCount, info.RestartCount}, nil
}

// handles returns the handles in the TPM of the kind that begins with first.
func (l *link) handles(first tpm2.TPMHandle) ([]tpm2.TPMHandle, error) {
	return query(l, tpm2.TPMCapHandles, uint32(first), uint32(first)+63, (*tpm2.TPMUCapabilities).Handles,
		func(list *tpm2.TPMLHandle) []tpm2.TPMHandle { return list.Handle },
		func(h tpm2.TPMHandle) uint32 { return uint32(h) })
}
