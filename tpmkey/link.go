package tpmkey

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/crypto/cryptobyte"
)

// headerSize is the length of a command or response header: tag, size, and command
// code or response code (TPM 2.0 Part 1, 18).
const headerSize = 10

// How long to wait before a command is retried: first, at most, and altogether.
const (
	retryFirst = time.Millisecond
	retryMost  = 200 * time.Millisecond
	retryTotal = 10 * time.Second
)

// link is the connection as one turn sees it. It implements go-tpm's transport.TPM.
// It sets the deadline of each command, retries the commands that the TPM cannot run
// at the moment, and notices a broken connection.
type link struct {
	ctx      context.Context // of the caller whose turn it is
	conn     Conn
	answered int   // commands that got a response
	broken   error // why conn must not be used again; nil if it may
	// What this turn may have put into the TPM.
	held    []string // Names of objects that are, or are about to be, in the TPM
	unnamed []unnamed
	boot    bootCount // as last read by making
}

// Send implements transport.TPM.
func (l *link) Send(command []byte) ([]byte, error) {
	if l.broken != nil {
		return nil, l.broken
	}
	code := tpm2.TPMCC(binary.BigEndian.Uint32(command[6:]))
	gone := l.ctx.Done()
	if code == tpm2.TPMCCFlushContext {
		gone = nil // it is retried even if the caller has gone
	}
	started, wait := false, retryFirst
	for giveUp := time.Now().Add(retryTotal); ; wait = min(2*wait, retryMost) {
		response, err := l.exchange(code, command)
		if err != nil {
			return nil, err
		}
		rc := tpm2.TPMRC(binary.BigEndian.Uint32(response[6:]))
		switch {
		case rc == tpm2.TPMRCInitialize && code != tpm2.TPMCCStartup && !started:
			// Firmware and kernel start a chip up. They are not there for
			// a software TPM that was just restarted.
			started = true
			if err := l.startup(); err != nil {
				return nil, err
			}
			continue
		case !passing(rc) || time.Now().After(giveUp):
			return response, nil
		}
		select {
		case <-gone:
			return response, nil
		case <-time.After(wait):
		}
	}
}

// exchange sends one command and checks the frame of the response. It clears the
// layer bits that a resource manager sets in the response code (TSS 2.0 Overview,
// 2.4), so that callers see the TPM's own codes.
func (l *link) exchange(code tpm2.TPMCC, command []byte) ([]byte, error) {
	// The kernel's driver gives up on a silent chip after 2 minutes, and after 5 for
	// commands that generate keys (drivers/char/tpm/tpm2-cmd.c). A working chip
	// needs a few seconds at most for all other commands.
	limit := time.Minute
	if code == tpm2.TPMCCCreate || code == tpm2.TPMCCCreatePrimary {
		limit = 5 * time.Minute
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(l.ctx), limit)
	defer cancel()
	response, err := l.conn.Send(ctx, command)
	if err != nil {
		l.broken = err
		return nil, err
	}
	if len(response) < headerSize || int(binary.BigEndian.Uint32(response[2:])) != len(response) {
		l.broken = fmt.Errorf("response of %d octets is damaged", len(response))
		return nil, l.broken
	}
	l.answered++
	if rc := binary.BigEndian.Uint32(response[6:]); rc > 0xFFF {
		binary.BigEndian.PutUint32(response[6:], rc&0xFFF)
	}
	return response, nil
}

// startup sends TPM2_Startup(CLEAR).
func (l *link) startup() error {
	_, err := execute(l, "TPM2_Startup", tpm2.Startup{StartupType: tpm2.TPMSUClear})
	if isRC(err, tpm2.TPMRCInitialize) {
		return nil // it was started up meanwhile
	}
	return err
}

// execute runs a command of go-tpm, and names the command in the error.
func execute[R any](l *link, name string, command interface {
	Execute(transport.TPM, ...tpm2.Session) (*R, error)
},
) (*R, error) {
	rsp, err := command.Execute(l)
	return rsp, l.command(name, err)
}

// command adds the command's name to err, as go-tpm's Execute returned it. If err is
// neither a response code nor a broken connection, the response could not be decoded
// or authenticated: the connection is not used again.
func (l *link) command(name string, err error) error {
	if err == nil {
		return nil
	}
	if rc, ok := errors.AsType[tpm2.TPMRC](err); ok {
		return &commandError{name, rc}
	}
	if l.broken == nil {
		l.broken = err
	}
	return fmt.Errorf("%s: %w", name, err)
}

// damaged gives up a connection whose response has a correct frame and unexpected
// content.
func (l *link) damaged(name string) error {
	return l.command(name, errors.New("the response is damaged"))
}

// alive returns an error if the caller of this turn has gone.
func (l *link) alive() error {
	if l.ctx.Err() != nil {
		return context.Cause(l.ctx)
	}
	return nil
}

// passing reports whether rc means that the TPM cannot run the command now: it tests
// itself, or other programs use all its slots (TPM 2.0 Part 2, 6.6.3, warnings).
func passing(rc tpm2.TPMRC) bool {
	switch rc {
	case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting,
		tpm2.TPMRCObjectMemory, tpm2.TPMRCObjectHandles,
		tpm2.TPMRCSessionMemory, tpm2.TPMRCSessionHandles:
		return true
	default:
		return false
	}
}

// commandError is a TPM's refusal of a command.
type commandError struct {
	command string // as in TPM 2.0 Part 3, such as "TPM2_Load"
	rc      tpm2.TPMRC
}

func (e *commandError) Error() string { return e.command + ": " + e.rc.Error() }

func (e *commandError) Unwrap() error { return e.rc }

// isRC reports whether err is a refusal by the TPM with one of these codes.
func isRC(err error, codes ...tpm2.TPMRC) bool {
	return slices.ContainsFunc(codes, func(rc tpm2.TPMRC) bool { return errors.Is(err, rc) })
}

// The commands of a warm signature are marshalled below and not by go-tpm, whose
// reflection takes as long as verifying a P-256 signature does (50 µs for one
// TPM2_ContextLoad, 35 µs for one authorization).

// savedContext is the result of TPM2_ContextSave, a TPMS_CONTEXT, as the
// TPM2_ContextLoad command that loads it. Only the TPM understands its content.
type savedContext []byte

// saveContext runs TPM2_ContextSave. The object stays loaded.
func (l *link) saveContext(h tpm2.TPMHandle) (savedContext, error) {
	rsp, err := l.plain("TPM2_ContextSave", newCommand(tpm2.TPMSTNoSessions, tpm2.TPMCCContextSave, binary.BigEndian.AppendUint32(nil, uint32(h))))
	if err != nil {
		return nil, err
	}
	return newCommand(tpm2.TPMSTNoSessions, tpm2.TPMCCContextLoad, rsp), nil
}

// loadContext runs TPM2_ContextLoad for an object with this Name.
func (l *link) loadContext(saved savedContext, name tpm2.TPM2BName) (tpm2.TPMHandle, error) {
	l.held = append(l.held, string(name.Buffer))
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

// unhold removes a Name from held, unless err leaves open whether the object is in the TPM.
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
	_, err := l.plain("TPM2_FlushContext", newCommand(tpm2.TPMSTNoSessions, tpm2.TPMCCFlushContext, binary.BigEndian.AppendUint32(nil, uint32(h))))
	return err
}

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
	area := appendSized(binary.BigEndian.AppendUint32(nil, uint32(auth.Handle)), auth.Nonce.Buffer)
	var attributes uint8
	if auth.Attributes.ContinueSession {
		attributes |= continueSession
	}
	if auth.Attributes.Decrypt {
		attributes |= decryptSession
	}
	area = append(area, attributes)
	area = appendSized(area, auth.Authorization.Buffer)
	body := binary.BigEndian.AppendUint32(nil, uint32(key.Handle))
	body = binary.BigEndian.AppendUint32(body, uint32(len(area)))
	rsp, err := l.plain(name, newCommand(tpm2.TPMSTSessions, code, slices.Concat(body, area, parameters)))
	if err != nil {
		return nil, err
	}
	s := cryptobyte.String(rsp)
	var size uint32
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
