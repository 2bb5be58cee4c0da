package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"time"
)

var (
	// errGone: the connection ended before a single byte of an answer. The
	// upstream may have done what was asked, or never have seen it.
	errGone = errors.New("upstream agent has closed the connection")

	// errAnswer is an answer that does not belong to the request. What comes
	// after it cannot be understood either.
	errAnswer = errors.New("unexpected answer of upstream agent")
)

// upConn is an open connection to an upstream.
type upConn struct {
	nc    net.Conn
	bound int // how many of the client's bindings it has been told, and has answered
}

// ask sends a request and returns the answer, a whole frame. After an error
// the connection is of no use.
func (w *upConn) ask(ctx context.Context, request []byte, p patience) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() { w.nc.SetDeadline(longAgo) })
	answer, err := w.exchange(ctx, request, p)
	if !stop() && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return answer, err
}

func (w *upConn) exchange(ctx context.Context, request []byte, p patience) ([]byte, error) {
	if err := w.giveUpAt(ctx, p.until()); err != nil {
		return nil, err
	}
	// The request may have a private key in it: no copy is made.
	length := binary.BigEndian.AppendUint32(nil, uint32(len(request)))
	if _, err := (&net.Buffers{length, request}).WriteTo(w.nc); err != nil {
		return nil, gone(err)
	}
	answer, err := readAnswer(&waiter{w, ctx, p})
	if err != nil {
		return nil, err
	}
	if !answers(request[0], answer[lengthSize]) {
		return nil, fmt.Errorf("%w: %d to request %d", errAnswer, answer[lengthSize], request[0])
	}
	return answer, nil
}

// giveUpAt sets the deadline, unless ctx has ended, which has set another.
func (w *upConn) giveUpAt(ctx context.Context, t time.Time) error {
	if err := w.nc.SetDeadline(t); err != nil {
		return gone(err)
	}
	return ctx.Err()
}

// waiter reads from an upstream for as long as there is patience, which may grow
// while it waits.
type waiter struct {
	w   *upConn
	ctx context.Context
	p   patience
}

func (r *waiter) Read(b []byte) (int, error) {
	for {
		n, err := r.w.nc.Read(b)
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		until := r.p.until()
		if !until.After(time.Now()) {
			return n, err
		}
		if err := r.w.giveUpAt(r.ctx, until); err != nil {
			return n, err
		}
	}
}

// readAnswer reads one message with its length in front, after which nothing
// may come, as nothing more was asked. Memory is taken as the bytes come.
func readAnswer(r io.Reader) ([]byte, error) {
	b := make([]byte, firstRead)
	have, err := io.ReadAtLeast(r, b, lengthSize)
	if have == 0 {
		return nil, gone(err)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the length of an answer: %w", noEOF(err))
	}
	n := binary.BigEndian.Uint32(b)
	if n == 0 || n > maxMessage {
		return nil, fmt.Errorf("%w: %w: %d", errAnswer, errLength, n)
	}
	whole := lengthSize + int(n)
	if have > whole {
		return nil, fmt.Errorf("%w: %d bytes too many", errAnswer, have-whole)
	}
	rest, err := readBytes(r, whole-have)
	if err != nil {
		return nil, err
	}
	return slices.Concat(b[:have], rest), nil
}

// gone marks the errors of a connection that the other side has closed.
func gone(err error) error {
	if ordinaryEnd(err) {
		return fmt.Errorf("%w: %w", errGone, err)
	}
	return err
}

// answers says whether an answer of that number can be meant for the request.
func answers(request, answer byte) bool {
	switch request {
	case msgRequestIdentities:
		return answer == msgIdentitiesAnswer || answer == msgFailure
	case msgSignRequest:
		return answer == msgSignResponse || answer == msgFailure
	case msgAddIdentity, msgAddIDConstrained, msgRemoveIdentity, msgRemoveAllIdentities,
		msgAddSmartcardKey, msgAddSmartcardConstr, msgRemoveSmartcardKey:
		return answer == msgSuccess || answer == msgFailure
	case msgExtension: // session-bind is the only one that is relayed
		return answer == msgSuccess || answer == msgFailure || answer == msgExtensionFailure
	}
	return true
}

// stale says whether an idle connection has been closed by the other side, or
// has an answer in it that nobody asked for, and that would be taken for the
// next one. The next request would find out too, but maybe too late.
func (w *upConn) stale() bool {
	sc, ok := w.nc.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	is := true
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		is = err != syscall.EAGAIN && err != syscall.EINTR
	})
	return is || err != nil
}
