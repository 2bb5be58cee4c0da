package tpmkey

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/cryptobyte"
)

// The commands of a signature are marshalled here, octet by octet. go-tpm does
// it by reflection, which takes as long as verifying the signature does (50 µs
// for a TPM2_ContextLoad); for all that is done once it is good enough.

// savedContext is what TPM2_ContextSave returned, a TPMS_CONTEXT, as the
// TPM2_ContextLoad command that loads it. What is in it is the TPM's affair.
type savedContext []byte

// saveContext runs TPM2_ContextSave. The object stays loaded.
func (l *link) saveContext(h tpm2.TPMHandle) (savedContext, error) {
	rsp, err := l.plain("TPM2_ContextSave", plainCommand(tpm2.TPMCCContextSave, binary.BigEndian.AppendUint32(nil, uint32(h))))
	if err != nil {
		return nil, err
	}
	return plainCommand(tpm2.TPMCCContextLoad, rsp), nil
}

// loadContext runs TPM2_ContextLoad for an object of this Name.
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

// flush removes an object or a session from the TPM.
func (l *link) flush(h tpm2.TPMHandle) error {
	_, err := l.plain("TPM2_FlushContext", plainCommand(tpm2.TPMCCFlushContext, binary.BigEndian.AppendUint32(nil, uint32(h))))
	return err
}

// plainCommand assembles a command without sessions (TPM 2.0 Part 1, 18.2).
func plainCommand(code tpm2.TPMCC, body []byte) []byte {
	c := make([]byte, 0, headerSize+len(body))
	c = binary.BigEndian.AppendUint16(c, uint16(tpm2.TPMSTNoSessions))
	c = binary.BigEndian.AppendUint32(c, uint32(headerSize+len(body)))
	c = binary.BigEndian.AppendUint32(c, uint32(code))
	return append(c, body...)
}

// plain sends a command without sessions and returns what follows the header
// of the response.
func (l *link) plain(name string, command []byte) ([]byte, error) {
	rsp, err := l.Send(command)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if rc := tpm2.TPMRC(binary.BigEndian.Uint32(rsp[6:])); rc != tpm2.TPMRCSuccess {
		return nil, &CommandError{Command: name, RC: rc}
	}
	return rsp[headerSize:], nil
}

// authorized sends a command on one key, with its authorization, and returns
// the parameters of the response, authenticated.
func (l *link) authorized(name string, code tpm2.TPMCC, key tpm2.AuthHandle, parameters []byte) ([]byte, error) {
	names := []tpm2.TPM2BName{key.Name}
	if err := key.Auth.NewNonceCaller(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	auth, err := key.Auth.Authorize(code, parameters, nil, names, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	command, err := authorizedCommand(code, key.Handle, auth, parameters)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	body, err := l.plain(name, command)
	if err != nil {
		return nil, err
	}
	out, rspAuth, ok := splitResponse(body)
	if !ok {
		return nil, l.damaged(name)
	}
	return out, l.command(name, key.Auth.Validate(tpm2.TPMRCSuccess, code, out, names, 0, rspAuth))
}

// authorizedCommand assembles a command with one session (TPM 2.0 Part 1, 18.2
// and Part 2, 10.13.2).
func authorizedCommand(code tpm2.TPMCC, key tpm2.TPMHandle, auth *tpm2.TPMSAuthCommand, parameters []byte) ([]byte, error) {
	b := cryptobyte.NewBuilder(make([]byte, 0, 256))
	b.AddUint16(uint16(tpm2.TPMSTSessions))
	b.AddUint32(0) // the size, below
	b.AddUint32(uint32(code))
	b.AddUint32(uint32(key))
	b.AddUint32LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint32(uint32(auth.Handle))
		addSized(b, auth.Nonce.Buffer)
		b.AddUint8(attributeOctet(auth.Attributes))
		addSized(b, auth.Authorization.Buffer)
	})
	b.AddBytes(parameters)
	command, err := b.Bytes()
	if err != nil {
		return nil, err
	}
	binary.BigEndian.PutUint32(command[2:], uint32(len(command)))
	return command, nil
}

// splitResponse takes the body of a response with one session apart (TPM 2.0
// Part 1, 18.3 and Part 2, 10.13.3).
func splitResponse(body []byte) (parameters []byte, auth *tpm2.TPMSAuthResponse, ok bool) {
	s := cryptobyte.String(body)
	var size uint32
	var attributes uint8
	var nonce, mac cryptobyte.String
	ok = s.ReadUint32(&size) && s.ReadBytes(&parameters, int(size)) &&
		s.ReadUint16LengthPrefixed(&nonce) && s.ReadUint8(&attributes) &&
		s.ReadUint16LengthPrefixed(&mac) && s.Empty()
	return parameters, &tpm2.TPMSAuthResponse{
		Nonce:         tpm2.TPM2BNonce{Buffer: nonce},
		Attributes:    sessionAttributes(attributes),
		Authorization: tpm2.TPM2BData{Buffer: mac},
	}, ok
}

// addSized adds a TPM2B: two octets of size, then the octets.
func addSized(b *cryptobyte.Builder, octets []byte) {
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(octets) })
}

// Bits of TPMA_SESSION (TPM 2.0 Part 2, 8.4).
const (
	continueSession = 1 << 0
	auditExclusive  = 1 << 1
	auditReset      = 1 << 2
	decryptSession  = 1 << 5
	encryptSession  = 1 << 6
	auditSession    = 1 << 7
)

func sessionAttributes(b uint8) tpm2.TPMASession {
	return tpm2.TPMASession{
		ContinueSession: b&continueSession != 0,
		AuditExclusive:  b&auditExclusive != 0,
		AuditReset:      b&auditReset != 0,
		Decrypt:         b&decryptSession != 0,
		Encrypt:         b&encryptSession != 0,
		Audit:           b&auditSession != 0,
	}
}

// attributeOctet is the inverse for what is sent here.
func attributeOctet(a tpm2.TPMASession) (b uint8) {
	if a.ContinueSession {
		b |= continueSession
	}
	if a.Decrypt {
		b |= decryptSession
	}
	return b
}

// damaged gives up a connection whose response has the right frame and does not
// hold what it should.
func (l *link) damaged(name string) error {
	return l.command(name, errors.New("the response is damaged"))
}
