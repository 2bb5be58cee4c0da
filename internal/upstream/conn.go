package upstream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"syscall"
	"time"

	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// errAnswer says that an answer does not belong to the request. What follows on
// the connection cannot be understood either.
var errAnswer = errors.New("unexpected answer")

// A conn is a connection to an upstream. It is of no use after an error.
type conn struct {
	net.Conn
	bound int         // how many of the client's bindings the upstream has answered
	idle  *time.Timer // closes the connection while it is not in use
}

// ask sends a request and returns the answer, a whole frame.
func (c *conn) ask(request []byte) ([]byte, error) {
	answer, err := c.exchange(request)
	switch name := wire.RequestName(request[0]); {
	case wire.OrdinaryEnd(err):
		return nil, fmt.Errorf("%s: it has closed the connection: %w", name, err)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, err)
	case !answers(request[0], answer[wire.LengthSize]):
		return nil, fmt.Errorf("%s: %w: message %d", name, errAnswer, answer[wire.LengthSize])
	}
	return answer, nil
}

// exchange does not copy the request, which may contain a private key.
func (c *conn) exchange(request []byte) ([]byte, error) {
	length := binary.BigEndian.AppendUint32(nil, uint32(len(request)))
	if _, err := (&net.Buffers{length, request}).WriteTo(c.Conn); err != nil {
		return nil, err
	}
	return readAnswer(c)
}

// firstRead is how much of an answer is read before its length is known.
const firstRead = 4 << 10

// readAnswer reads one frame. Nothing may follow it, as nothing more was asked.
// Memory grows with the bytes that arrive, not with the announced length.
func readAnswer(r io.Reader) ([]byte, error) {
	b := make([]byte, firstRead)
	have, err := io.ReadAtLeast(r, b, wire.LengthSize)
	if err != nil {
		return nil, err
	}
	whole := wire.LengthSize + int64(binary.BigEndian.Uint32(b))
	switch {
	case whole == wire.LengthSize || whole > wire.LengthSize+wire.MaxMessage:
		return nil, fmt.Errorf("%w: impossible length", errAnswer)
	case int64(have) > whole:
		return nil, fmt.Errorf("%w: more than one", errAnswer)
	}
	rest, err := io.ReadAll(io.LimitReader(r, whole-int64(have)))
	if err == nil && have+len(rest) < int(whole) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	return slices.Concat(b[:have], rest), nil
}

// answers reports whether the protocol allows such an answer to a request.
func answers(request, answer byte) bool {
	switch {
	case answer == wire.MsgFailure:
		return true
	case request == wire.MsgRequestIdentities:
		return answer == wire.MsgIdentitiesAnswer
	case request == wire.MsgSignRequest:
		return answer == wire.MsgSignResponse
	case request == wire.MsgExtension && answer == wire.MsgExtensionFailure:
		return true // session-bind is the only extension that is passed on
	}
	return answer == wire.MsgSuccess
}

// stale reports whether the upstream has closed an idle connection, or has sent
// an answer that no request asked for, which would be taken for the next one.
func (c *conn) stale() bool {
	sc, ok := c.Conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	var peek error
	err = raw.Control(func(fd uintptr) {
		_, _, peek = syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	})
	return err != nil || peek != syscall.EAGAIN && peek != syscall.EINTR
}
