package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm-agent/tpm-agent/internal/tcti"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// parentHandle is where the bare side keeps its storage key.
const parentHandle = 0x81000001

// bare is the other side of the comparison: TPM2_Load under a persistent
// parent, TPM2_Sign, TPM2_FlushContext, sent as prepared octets over an open
// socket, with no agent, no check and no verification around them.
type bare struct {
	conn  net.Conn
	load  []byte
	sign  []byte
	flush []byte
	reply [4096]byte
}

// newBare makes a key of the algorithm in the TPM and prepares its commands.
func newBare(ctx context.Context, s *swtpm, a tpmkey.Algorithm) (*bare, error) {
	file, err := createKey(ctx, s, tpmkey.Template{Algorithm: a, Parent: parentHandle})
	if err != nil {
		return nil, err
	}
	conn, err := net.Dial("unix", s.socket)
	if err != nil {
		return nil, err
	}
	scheme, size := []byte{0x00, 0x18, 0x00, 0x0b}, 32
	switch a {
	case tpmkey.ECDSAP384:
		scheme, size = []byte{0x00, 0x18, 0x00, 0x0c}, 48
	case tpmkey.ECDSAP521:
		scheme, size = []byte{0x00, 0x18, 0x00, 0x0d}, 64
	case tpmkey.RSA2048:
		scheme = []byte{0x00, 0x14, 0x00, 0x0b}
	}
	b := &bare{conn: conn}
	b.load = authorized(tpm2.TPMCCLoad, parentHandle, append(append([]byte(nil), file.Privkey...), file.Pubkey...))
	digest := append(binary.BigEndian.AppendUint16(nil, uint16(size)), make([]byte, size)...)
	noTicket := []byte{0x80, 0x24, 0x40, 0x00, 0x00, 0x07, 0x00, 0x00}
	b.sign = authorized(tpm2.TPMCCSign, 0, append(append(digest, scheme...), noTicket...))
	b.flush = command(tpm2.TPMSTNoSessions, tpm2.TPMCCFlushContext, make([]byte, 4))
	return b, nil
}

// signature is one round of the three commands.
func (b *bare) signature() error {
	rsp, err := b.exchange(b.load)
	if err != nil {
		return err
	}
	handle := rsp[10:14]
	copy(b.sign[10:], handle)
	copy(b.flush[10:], handle)
	if _, err := b.exchange(b.sign); err != nil {
		return err
	}
	_, err = b.exchange(b.flush)
	return err
}

func (b *bare) exchange(cmd []byte) ([]byte, error) {
	for {
		if _, err := b.conn.Write(cmd); err != nil {
			return nil, err
		}
		n, err := io.ReadAtLeast(b.conn, b.reply[:], 10)
		if err != nil {
			return nil, err
		}
		switch rc := tpm2.TPMRC(binary.BigEndian.Uint32(b.reply[6:])); rc {
		case tpm2.TPMRCSuccess:
			return b.reply[:n], nil
		case tpm2.TPMRCRetry:
		default:
			return nil, rc
		}
	}
}

// command assembles a command (TPM 2.0 Part 1, 18).
func command(tag tpm2.TPMST, code tpm2.TPMCC, body []byte) []byte {
	c := binary.BigEndian.AppendUint16(nil, uint16(tag))
	c = binary.BigEndian.AppendUint32(c, uint32(10+len(body)))
	c = binary.BigEndian.AppendUint32(c, uint32(code))
	return append(c, body...)
}

// authorized assembles a command on one handle with an empty password.
func authorized(code tpm2.TPMCC, handle uint32, parameters []byte) []byte {
	body := binary.BigEndian.AppendUint32(nil, handle)
	body = append(body, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0)
	return command(tpm2.TPMSTSessions, code, append(body, parameters...))
}

// openTPM returns the TPM for use by tpmkey.
func openTPM(s *swtpm) (*tpmkey.TPM, error) {
	address, err := tcti.Parse(s.address())
	if err != nil {
		return nil, err
	}
	return tpmkey.New(func(ctx context.Context) (tpmkey.Conn, error) { return address.Open(ctx) }), nil
}

func createKey(ctx context.Context, s *swtpm, tm tpmkey.Template) (*keyfile.TPMKey, error) {
	t, err := openTPM(s)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	return t.Create(ctx, tm)
}

// persistParent makes the storage key of the draft and keeps it at
// parentHandle, as systemd-tpm2-setup does.
func persistParent(ctx context.Context, s *swtpm) error {
	address, err := tcti.Parse(s.address())
	if err != nil {
		return err
	}
	conn, err := address.Open(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	tpm := sender{ctx, conn}
	template := tpm2.ECCSRKTemplate
	template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	primary, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(template)}.Execute(tpm)
	if err != nil {
		return fmt.Errorf("TPM2_CreatePrimary: %w", err)
	}
	loaded := tpm2.NamedHandle{Handle: primary.ObjectHandle, Name: primary.Name}
	if _, err := (tpm2.EvictControl{Auth: tpm2.TPMRHOwner, ObjectHandle: &loaded, PersistentHandle: parentHandle}).Execute(tpm); err != nil {
		return fmt.Errorf("TPM2_EvictControl: %w", err)
	}
	_, err = tpm2.FlushContext{FlushHandle: primary.ObjectHandle}.Execute(tpm)
	return err
}

// sender is a connection as go-tpm sees it.
type sender struct {
	ctx  context.Context
	conn *tcti.Conn
}

func (s sender) Send(command []byte) ([]byte, error) { return s.conn.Send(s.ctx, command) }
