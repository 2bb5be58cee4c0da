package sshtest

import (
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/tpm-agent/tpm-agent/internal/socket"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// A Scripted agent gives the same answer to every request, and keeps the requests.
type Scripted struct {
	Path     string // of its socket
	Requests chan Request
}

// A Request is a request to a [Scripted] agent.
type Request struct {
	Message []byte // without its length
	Local   bool   // a descriptor came with it
}

// StartScripted starts an agent, which ends with the test. answer includes its
// length; an empty answer closes the connection.
func StartScripted(t testing.TB, answer []byte) *Scripted {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") // short enough for the path of a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &Scripted{Path: filepath.Join(dir, "s"), Requests: make(chan Request, 100)}
	l, err := socket.Listen(s.Path)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-ended })
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.serve(c, answer)
		}
	}()
	return s
}

// serve answers the requests of one client.
func (s *Scripted) serve(c net.Conn, answer []byte) {
	defer c.Close()
	requests := &wire.Reader{From: c}
	for {
		message, err := requests.ReadMessage(func() {})
		if err != nil {
			return
		}
		s.Requests <- Request{message, c.(*socket.Conn).Local()}
		if len(answer) == 0 {
			return
		}
		c.Write(answer)
	}
}

// Framed returns a message with its length in front.
func Framed(message ...byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(message))), message...)
}
