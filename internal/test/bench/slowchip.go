package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// chipTimes are typical times of a discrete TPM. chipOther is for other commands.
var chipTimes = map[tpm2.TPMCC]time.Duration{
	tpm2.TPMCCCreatePrimary:    150 * time.Millisecond,
	tpm2.TPMCCLoad:             60 * time.Millisecond,
	tpm2.TPMCCSign:             100 * time.Millisecond,
	tpm2.TPMCCContextLoad:      20 * time.Millisecond,
	tpm2.TPMCCStartAuthSession: 60 * time.Millisecond,
}

const chipOther = 5 * time.Millisecond

// slowGoal is how many times as long as the bare commands a signature may take.
const slowGoal = 1.05

// slowChip is a software TPM that takes as long as a chip. It serves any number of
// connections on a socket of its own, and carries out one command at a time.
type slowChip struct {
	*swtpm // with the socket of the slow chip
	listen net.Listener
	served sync.WaitGroup

	mu      sync.Mutex // held for one command
	tpm     net.Conn
	clients []net.Conn // guarded by mu
}

func (b *bench) startSlowChip(name string) (*slowChip, error) {
	tpm, err := b.startTPM(name)
	if err != nil {
		return nil, err
	}
	c := &slowChip{swtpm: &swtpm{cmd: tpm.cmd, socket: filepath.Join(b.dir, name+".slow")}}
	if c.tpm, err = net.Dial("unix", tpm.socket); err != nil {
		return nil, errors.Join(err, tpm.stop())
	}
	if c.listen, err = net.Listen("unix", c.socket); err != nil {
		return nil, errors.Join(err, c.tpm.Close(), tpm.stop())
	}
	c.served.Go(c.accept)
	return c, nil
}

func (c *slowChip) accept() {
	for {
		conn, err := c.listen.Accept()
		if err != nil {
			return
		}
		c.mu.Lock()
		c.clients = append(c.clients, conn)
		c.mu.Unlock()
		c.served.Go(func() {
			defer conn.Close()
			for c.serve(conn) == nil {
			}
		})
	}
}

// serve carries out one command of a client.
func (c *slowChip) serve(client net.Conn) error {
	command, err := readMessage(client)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	took, known := chipTimes[tpm2.TPMCC(binary.BigEndian.Uint32(command[6:]))]
	if !known {
		took = chipOther
	}
	time.Sleep(took)
	if _, err := c.tpm.Write(command); err != nil {
		return err
	}
	answer, err := readMessage(c.tpm)
	if err != nil {
		return err
	}
	_, err = client.Write(answer)
	return err
}

// readMessage reads a command or an answer, whose size is in its header.
func readMessage(r io.Reader) ([]byte, error) {
	message := make([]byte, 10, 4096)
	if _, err := io.ReadFull(r, message); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(message[2:])
	if size < 10 || size > 4096 {
		return nil, fmt.Errorf("TPM message of %d octets", size)
	}
	message = message[:size]
	_, err := io.ReadFull(r, message[10:])
	return message, err
}

func (c *slowChip) stop() error {
	err := errors.Join(c.listen.Close(), c.tpm.Close(), c.swtpm.stop())
	c.mu.Lock()
	for _, client := range c.clients {
		client.Close()
	}
	c.mu.Unlock()
	c.served.Wait()
	return err
}

// slowSignatures compares a signature through the socket with bare TPM2_ContextLoad,
// TPM2_Sign and TPM2_FlushContext, by turns, both on the same TPM with the times of a
// chip.
func (b *bench) slowSignatures() error {
	fmt.Printf("One signature on a slow chip, median of %d, by turns (ms)\n", b.slowRounds)
	fmt.Printf("%-12s %12s %12s %8s\n", "key", "bare TPM", "tpm-agent", "ratio")
	chip, err := b.startSlowChip("slow")
	if err != nil {
		return err
	}
	defer chip.stop()
	if err := persistParent(b.ctx, chip.swtpm); err != nil {
		return err
	}
	for _, a := range []tpmkey.Algorithm{tpmkey.ECDSAP256, tpmkey.ECDSAP384, tpmkey.ECDSAP521, tpmkey.RSA2048} {
		if err := b.compareSlow(chip.swtpm, a); err != nil {
			return fmt.Errorf("%v on a slow chip: %w", a, err)
		}
	}
	fmt.Println()
	return nil
}

func (b *bench) compareSlow(chip *swtpm, a tpmkey.Algorithm) error {
	bareSide, err := newBare(b.ctx, chip, a)
	if err != nil {
		return err
	}
	defer bareSide.conn.Close()
	if err := bareSide.saveContext(); err != nil {
		return err
	}
	s := &signer{tpm: chip}
	if err := s.serve(b, fmt.Sprintf("slow%d", a), tpmkey.Template{Algorithm: a}, nil); err != nil {
		return err
	}
	defer s.daemon.stop()
	c, err := net.Dial("unix", s.daemon.socket)
	if err != nil {
		return err
	}
	defer c.Close()
	var ours, theirs times
	const warmUp = 2 // the first signature loads the key; the next ones use what is saved
	for n := range warmUp + b.slowRounds {
		t1, err1 := measure(bareSide.signature)
		t2, err2 := measure(func() error { return s.sign(c) })
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if n >= warmUp {
			theirs, ours = append(theirs, t1), append(ours, t2)
		}
	}
	ratio, remark := float64(ours.median())/float64(theirs.median()), ""
	if ratio > slowGoal {
		remark = fmt.Sprintf("  more than %.2f", slowGoal)
	}
	fmt.Printf("%-12v %12s %12s %8.3f%s\n", a, ms(theirs.median()), ms(ours.median()), ratio, remark)
	return nil
}

// saveContext makes the bare side use TPM2_ContextLoad instead of TPM2_Load.
func (b *bare) saveContext() error {
	loaded, err := b.exchange(b.load)
	if err != nil {
		return err
	}
	handle := loaded[10:14]
	copy(b.flush[10:], handle)
	saved, err := b.exchange(command(tpm2.TPMSTNoSessions, tpm2.TPMCCContextSave, handle))
	if err != nil {
		return err
	}
	b.load = command(tpm2.TPMSTNoSessions, tpm2.TPMCCContextLoad, saved[10:])
	_, err = b.exchange(b.flush)
	return err
}
