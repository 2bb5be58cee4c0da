package tpmkey

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
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
	held    []string // Names of objects
	unnamed []unnamed
	boot    bootCount // as last read by making
}

// Send implements transport.TPM.
func (l *link) Send(command []byte) ([]byte, error) {
	if l.broken != nil {
		return nil, l.broken
	}
	code := tpm2.TPMCC(binary.BigEndian.Uint32(command[6:]))
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
		case !passing(rc) || time.Now().After(giveUp) || !l.pause(code, wait):
			return response, nil
		}
	}
}

// exchange sends one command and checks the frame of the response. It clears the
// layer bits that a resource manager sets in the response code (TSS 2.0 Overview,
// 2.4), so that callers see the TPM's own codes.
func (l *link) exchange(code tpm2.TPMCC, command []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(l.ctx), deadline(code))
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

// pause waits before a command is retried. It returns false if the caller has gone
// meanwhile; TPM2_FlushContext is retried anyway.
func (l *link) pause(code tpm2.TPMCC, wait time.Duration) bool {
	t := time.NewTimer(wait)
	defer t.Stop()
	gone := l.ctx.Done()
	if code == tpm2.TPMCCFlushContext {
		gone = nil
	}
	select {
	case <-gone:
		return false
	case <-t.C:
		return true
	}
}

// deadline is how long a command may take. The kernel's driver gives up on a silent
// chip after 2 minutes, and after 5 for commands that generate keys
// (drivers/char/tpm/tpm2-cmd.c). A working chip needs a few seconds at most for all
// other commands.
func deadline(code tpm2.TPMCC) time.Duration {
	if code == tpm2.TPMCCCreate || code == tpm2.TPMCCCreatePrimary {
		return 5 * time.Minute
	}
	return time.Minute
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
