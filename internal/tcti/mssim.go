package tcti

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Commands of the reference simulator's TCP protocol (TPM 2.0 Part 4,
// TpmTcpProtocol.h). Numbers are 32 bits, big endian. The platform port is the
// one above the command port; it answers every signal with a zero.
const (
	mssimPowerOn    = 1
	mssimSend       = 8
	mssimNVOn       = 11
	mssimSessionEnd = 20
)

// mssimOverhead is what a frame adds to an answer: its size before it, a zero
// after it.
const mssimOverhead = 4 + 4

// mssimFraming carries a command as: send (4), locality (1), size (4), command;
// an answer as: size (4), answer, zero (4).
type mssimFraming struct{}

func (mssimFraming) frame(command []byte) []byte {
	b := make([]byte, 0, 9+len(command))
	b = binary.BigEndian.AppendUint32(b, mssimSend)
	b = append(b, 0) // locality 0, the operating system's
	b = binary.BigEndian.AppendUint32(b, uint32(len(command)))
	return append(b, command...)
}

func (mssimFraming) need(got []byte) (int, error) {
	if len(got) < 4 {
		return 4 + headerSize, nil
	}
	n, err := answerSize(binary.BigEndian.Uint32(got))
	return n + mssimOverhead, err
}

func (mssimFraming) open(frame []byte) ([]byte, error) {
	end := len(frame) - 4
	if status := binary.BigEndian.Uint32(frame[end:]); status != 0 {
		return nil, fmt.Errorf("the simulator ended the answer with %d instead of 0", status)
	}
	return frame[4:end], nil
}

// dialMSSIM connects to a simulator: first its platform port, to switch on power
// and NV memory (what is on stays as it is), then its command port. TPM2_Startup
// is a TPM command and left to who sends those.
func dialMSSIM(ctx context.Context, command, platform string) (wire, error) {
	p, err := dial(ctx, "tcp", platform)
	if err != nil {
		return nil, fmt.Errorf("the platform port: %w", err)
	}
	if err := powerOn(ctx, p); err != nil {
		p.Close()
		return nil, fmt.Errorf("the platform port: %w", ctxError(ctx, err))
	}
	conn, err := dial(ctx, "tcp", command)
	if err != nil {
		p.Close()
		return nil, fmt.Errorf("the command port: %w", err)
	}
	s, err := newStream(conn, mssimFraming{})
	if err != nil {
		p.Close()
		return nil, err
	}
	s.leave = func(bool) error { return errors.Join(endSession(conn), endSession(p)) }
	return s, nil
}

func powerOn(ctx context.Context, p net.Conn) error {
	p.SetDeadline(time.Now().Add(patience))
	defer context.AfterFunc(ctx, func() { p.SetDeadline(time.Unix(1, 0)) })()
	for _, signal := range []uint32{mssimPowerOn, mssimNVOn} {
		if _, err := p.Write(binary.BigEndian.AppendUint32(nil, signal)); err != nil {
			return err
		}
		var ack [4]byte
		if _, err := io.ReadFull(p, ack[:]); err != nil {
			return fmt.Errorf("signal %d was not answered: %w", signal, err)
		}
		if !bytes.Equal(ack[:], make([]byte, 4)) {
			return fmt.Errorf("signal %d was answered with %x", signal, ack)
		}
	}
	return nil
}

// endSession takes leave of one port. Whether the good-bye arrives does not
// matter: the simulator understands a closed connection too.
func endSession(c net.Conn) error {
	c.SetDeadline(time.Now().Add(closeGrace))
	c.Write(binary.BigEndian.AppendUint32(nil, mssimSessionEnd))
	return c.Close()
}
