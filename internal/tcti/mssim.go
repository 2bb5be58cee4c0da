package tcti

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Commands of the reference simulator's TCP protocol (TPM 2.0 Part 4,
// TpmTcpProtocol.h), 32 bits each, big endian. The platform port is the one above
// the command port. It answers every signal with a zero.
const (
	mssimPowerOn    = 1
	mssimSend       = 8
	mssimNVOn       = 11
	mssimSessionEnd = 20
)

// mssimFrame returns what is sent to a simulator for a command: send (4), locality
// (1), size (4), command.
func mssimFrame(command []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, mssimSend)
	b = append(b, 0) // locality 0, that of the operating system
	b = binary.BigEndian.AppendUint32(b, uint32(len(command)))
	return append(b, command...)
}

// openMSSIM connects to a simulator: first to its platform port, to switch on power
// and NV memory (which does nothing if they are on), then to its command port.
// TPM2_Startup is left to the caller, because it is a TPM command.
func openMSSIM(ctx context.Context, command, platform string) (*Conn, error) {
	p, err := dial(ctx, "tcp", platform)
	if err != nil {
		return nil, fmt.Errorf("the platform port: %w", err)
	}
	if err := within(ctx, patience, p, func() error { return powerOn(p) }); err != nil {
		p.Close()
		return nil, fmt.Errorf("the platform port: %w", err)
	}
	conn, err := dial(ctx, "tcp", command)
	if err != nil {
		p.Close()
		return nil, fmt.Errorf("the command port: %w", err)
	}
	leave := func(bool) error { return errors.Join(endSession(conn), endSession(p)) }
	return newStream(conn, true, leave, closeGrace)
}

func powerOn(p net.Conn) error {
	for _, signal := range []uint32{mssimPowerOn, mssimNVOn} {
		if _, err := p.Write(binary.BigEndian.AppendUint32(nil, signal)); err != nil {
			return err
		}
		var ack [4]byte
		if _, err := io.ReadFull(p, ack[:]); err != nil {
			return fmt.Errorf("signal %d was not answered: %w", signal, err)
		}
		if ack != [4]byte{} {
			return fmt.Errorf("signal %d was answered with %x", signal, ack)
		}
	}
	return nil
}

// endSession says goodbye to one port. The simulator also understands a closed
// connection, so it does not matter whether that arrives.
func endSession(c net.Conn) error {
	c.SetDeadline(time.Now().Add(closeGrace))
	c.Write(binary.BigEndian.AppendUint32(nil, mssimSessionEnd))
	return c.Close()
}
