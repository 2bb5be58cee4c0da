package tpmtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// A Tap sits between programs and an swtpm, on its own socket. It records every
// command and every answer, as an attacker on the bus would. It serves any number
// of connections at a time, so a test can query the TPM while a program has it
// open.
type Tap struct {
	tpm    *SWTPM
	l      *net.UnixListener
	served sync.WaitGroup

	mu       sync.Mutex // held for one exchange with the TPM
	conn     net.Conn   // to the TPM; nil until it is first needed
	clients  map[net.Conn]bool
	commands [][]byte
	answers  [][]byte
}

// Tap puts a tap in front of the TPM. From its first use until the end of the test
// the TPM is only reachable through it.
func (s *SWTPM) Tap(t testing.TB) *Tap {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(s.dir, "tap"), Net: "unix"})
	if err != nil {
		t.Fatalf("tpmtest: %v", err)
	}
	p := &Tap{tpm: s, l: l, clients: map[net.Conn]bool{}}
	p.served.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// Address returns the address of the tap in tpm2-tools' notation.
func (p *Tap) Address() string { return "swtpm:path=" + p.l.Addr().String() }

// Commands returns the commands of the programs, without those of the tap itself.
func (p *Tap) Commands() [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.commands)
}

// Answers returns the TPM's answers to Commands.
func (p *Tap) Answers() [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.answers)
}

func (p *Tap) accept() {
	for {
		c, err := p.l.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		p.clients[c] = true
		p.mu.Unlock()
		p.served.Go(func() { p.serve(c) })
	}
}

// serve passes on the commands of one client until it hangs up or sends something
// else.
func (p *Tap) serve(c net.Conn) {
	defer func() {
		c.Close()
		p.mu.Lock()
		delete(p.clients, c)
		p.mu.Unlock()
	}()
	for {
		command := make([]byte, headerSize)
		if _, err := io.ReadFull(c, command); err != nil {
			return
		}
		size := binary.BigEndian.Uint32(command[2:])
		if size < headerSize || size > 4096 {
			return
		}
		command = append(command, make([]byte, size-headerSize)...)
		if _, err := io.ReadFull(c, command[headerSize:]); err != nil {
			return
		}
		answer, err := p.exchange(command, true)
		if err != nil {
			return
		}
		if _, err := c.Write(answer); err != nil {
			return
		}
	}
}

// exchange has the TPM execute one command.
func (p *Tap) exchange(command []byte, record bool) (answer []byte, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.clients == nil {
		return nil, errors.New("the tap is closed")
	}
	if p.conn == nil {
		if p.conn, err = net.Dial("unix", p.tpm.Socket()); err != nil {
			return nil, err
		}
	}
	p.conn.SetDeadline(time.Now().Add(patience))
	if answer, err = exchange(p.conn, command); err != nil {
		p.conn.Close()
		p.conn = nil
		return nil, err
	}
	if record {
		p.commands = append(p.commands, bytes.Clone(command))
		p.answers = append(p.answers, bytes.Clone(answer))
	}
	return answer, nil
}

// command sends one command as [SWTPM.Command] does, between those of the clients.
func (p *Tap) command(code uint32, parameters []byte) ([]byte, error) {
	answer, err := p.exchange(NewCommand(code, parameters), false)
	if err != nil {
		return nil, err
	}
	if rc := ReturnCode(answer); rc != 0 {
		return nil, fmt.Errorf("%s: return code %#x", CommandName(code), rc)
	}
	return answer[headerSize:], nil
}

func (p *Tap) close() {
	p.l.Close()
	p.mu.Lock()
	for c := range p.clients {
		c.Close()
	}
	if p.conn != nil {
		p.conn.Close()
	}
	p.clients = nil
	p.mu.Unlock()
	p.served.Wait()
}
