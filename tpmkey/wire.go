package tpmkey

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/cryptobyte"
)

// The commands of a warm signature are marshalled here and not by go-tpm, whose
// reflection takes as long as verifying a P-256 signature does (50 µs for one
// TPM2_ContextLoad, 35 µs for one authorization).

// savedContext is what TPM2_ContextSave returned, a TPMS_CONTEXT, as the
// TPM2_ContextLoad command that loads it. Only the TPM understands its content.
type savedContext []byte

// saveContext runs TPM2_ContextSave. The object stays loaded.
func (l *link) saveContext(h tpm2.TPMHandle) (savedContext, error) {
	rsp, err := l.plain("TPM2_ContextSave", newCommand(tpm2.TPMSTNoSessions, tpm2.TPMCCContextSave, handleOctets(h)))
	if err != nil {
		return nil, err
	}
	return newCommand(tpm2.TPMSTNoSessions, tpm2.TPMCCContextLoad, rsp), nil
}

// loadContext runs TPM2_ContextLoad for an object with this Name.
func (l *link) loadContext(saved savedContext, name tpm2.TPM2BName) (tpm2.TPMHandle, error) {
	l.hold(name)
	rsp, err := l.plain("TPM2_ContextLoad", saved)
	if err != nil {
		l.unhold(name, err)
		return 0, err
	}
	if len(rsp) != 4 {
		return 0, l.damaged("TPM2_ContextLoad")
	}
	return tpm2.TPMHandle(binary.BigEndian.Uint32(rsp)), nil
}

// hold records that an object with this Name is, or is about to be, in the TPM.
func (l *link) hold(name tpm2.TPM2BName) { l.held = append(l.held, string(name.Buffer)) }

// unhold removes the record, unless err leaves open whether the object is in the TPM.
func (l *link) unhold(name tpm2.TPM2BName, err error) {
	if _, refused := errors.AsType[*commandError](err); err != nil && !refused {
		return
	}
	if i := slices.Index(l.held, string(name.Buffer)); i >= 0 {
		l.held = slices.Delete(l.held, i, i+1)
	}
}

// release flushes a loaded object.
func (l *link) release(h tpm2.TPMHandle, name tpm2.TPM2BName) error {
	err := l.flush(h)
	l.unhold(name, err)
	return err
}

// flush removes an object or a session from the TPM.
func (l *link) flush(h tpm2.TPMHandle) error {
	_, err := l.plain("TPM2_FlushContext", newCommand(tpm2.TPMSTNoSessions, tpm2.TPMCCFlushContext, handleOctets(h)))
	return err
}

func handleOctets(h tpm2.TPMHandle) []byte { return binary.BigEndian.AppendUint32(nil, uint32(h)) }

// newCommand assembles a command (TPM 2.0 Part 1, 18.2).
func newCommand(tag tpm2.TPMST, code tpm2.TPMCC, body []byte) []byte {
	c := make([]byte, 0, headerSize+len(body))
	c = binary.BigEndian.AppendUint16(c, uint16(tag))
	c = binary.BigEndian.AppendUint32(c, uint32(headerSize+len(body)))
	c = binary.BigEndian.AppendUint32(c, uint32(code))
	return append(c, body...)
}

// plain sends a command as it is and returns what follows the header of the response.
func (l *link) plain(name string, command []byte) ([]byte, error) {
	rsp, err := l.Send(command)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if rc := tpm2.TPMRC(binary.BigEndian.Uint32(rsp[6:])); rc != tpm2.TPMRCSuccess {
		return nil, &commandError{name, rc}
	}
	return rsp[headerSize:], nil
}

// authorized sends a command on one key, with its authorization (TPM 2.0 Part 1, 18.2
// and Part 2, 10.13). It returns the parameters of the response, which it has
// authenticated.
func (l *link) authorized(name string, code tpm2.TPMCC, key tpm2.AuthHandle, parameters []byte) ([]byte, error) {
	names := []tpm2.TPM2BName{key.Name}
	if err := key.Auth.NewNonceCaller(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	auth, err := key.Auth.Authorize(code, parameters, nil, names, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	area := appendSized(handleOctets(auth.Handle), auth.Nonce.Buffer)
	area = append(area, attributeOctet(auth.Attributes))
	area = appendSized(area, auth.Authorization.Buffer)
	body := binary.BigEndian.AppendUint32(handleOctets(key.Handle), uint32(len(area)))
	rsp, err := l.plain(name, newCommand(tpm2.TPMSTSessions, code, slices.Concat(body, area, parameters)))
	if err != nil {
		return nil, err
	}
	s := cryptobyte.String(rsp)
	var size uint32
	var attributes uint8
	var out []byte
	var nonce, mac cryptobyte.String
	if !s.ReadUint32(&size) || !s.ReadBytes(&out, int(size)) || !s.ReadUint16LengthPrefixed(&nonce) ||
		!s.ReadUint8(&attributes) || !s.ReadUint16LengthPrefixed(&mac) || !s.Empty() || attributes&^allAttributes != 0 {
		return nil, l.damaged(name)
	}
	err = key.Auth.Validate(tpm2.TPMRCSuccess, code, out, names, 0, &tpm2.TPMSAuthResponse{
		Nonce:         tpm2.TPM2BNonce{Buffer: nonce},
		Attributes:    sessionAttributes(attributes),
		Authorization: tpm2.TPM2BData{Buffer: mac},
	})
	if err != nil {
		return nil, l.command(name, err)
	}
	return out, nil
}

// appendSized appends a TPM2B: two octets of size, then the octets.
func appendSized(b, octets []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(octets))), octets...)
}

// The bits of TPMA_SESSION that are used here (TPM 2.0 Part 2, 8.4).
const (
	continueSession = 1 << 0
	decryptSession  = 1 << 5
	allAttributes   = continueSession | decryptSession
)

func sessionAttributes(b uint8) tpm2.TPMASession {
	return tpm2.TPMASession{ContinueSession: b&continueSession != 0, Decrypt: b&decryptSession != 0}
}

func attributeOctet(a tpm2.TPMASession) (b uint8) {
	if a.ContinueSession {
		b |= continueSession
	}
	if a.Decrypt {
		b |= decryptSession
	}
	return b
}
