package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/internal/test/sshtest"
	"github.com/tpm-agent/tpm-agent/internal/wire"
)

// hastyClock calls all alarms at once, and stands still.
type hastyClock struct{}

func (hastyClock) Now() time.Duration                                { return time.Hour }
func (hastyClock) AfterFunc(_ time.Duration, f func()) (stop func()) { go f(); return func() {} }

// FuzzConn sends bytes and hangs up. It checks that each whole request
// before the first broken one gets an answer of a fitting type, and that the
// agent does not panic.
func FuzzConn(f *testing.F) {
	id := plain("k", sshtest.P256())
	sign := sshtest.SignMessage(id.Public.Marshal(), []byte("data"), 0)
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 0, 1})
	f.Add(append(wire.Frame([]byte{wire.MsgRemoveAllIdentities}), 0, 4, 0, 1))
	f.Add(append(wire.Frame([]byte{wire.MsgExtension}), wire.Frame(sign)[:20]...))
	f.Add(bytes.Repeat(wire.Frame(sshtest.ListThem), 2*maxWaiting))
	f.Add(append(wire.Frame(sign), wire.Frame(sshtest.Extension("query", nil))...))
	for _, messages := range additions() {
		var b []byte
		for _, m := range messages {
			if m != nil {
				b = append(b, wire.Frame(m)...)
			}
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		log := new(sshtest.Log)
		a := New(NewKeyring(Config{
			Sources: []Source{fixed(id)}, Clock: hastyClock{},
			Log: slog.New(slog.NewTextHandler(log, nil)),
		}), nil)
		nc, theirs := socketPair(t)
		var work sync.WaitGroup
		defer work.Wait() // b belongs to the fuzzer after this
		work.Go(newConn(context.Background(), a, theirs).run)
		work.Go(func() { nc.Write(b); nc.CloseWrite() })
		defer nc.Close()
		for i, request := range whole(b) {
			answer, err := sshtest.TryRecv(nc)
			if err != nil {
				t.Fatalf("answer %d: %v", i, err)
			}
			if !slices.Contains(answersTo(request[0]), answer[0]) {
				t.Fatalf("request %d of type %d is answered with %d", i, request[0], answer[0])
			}
		}
		if rest, _ := io.ReadAll(nc); len(rest) > 0 {
			t.Fatalf("%d more bytes than answers", len(rest))
		}
		a.Forget()
		if log.Count("panic") > 0 {
			t.Fatal(log)
		}
	})
}

// socketPair returns both ends of a connection.
func socketPair(t testing.TB) (ours, theirs *net.UnixConn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "socket")
		nc, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = nc.(*net.UnixConn)
	}
	return conns[0], conns[1]
}

// answersTo returns the types of message that may answer a request.
func answersTo(number byte) []byte {
	switch number {
	case wire.MsgRequestIdentities:
		return []byte{wire.MsgIdentitiesAnswer}
	case wire.MsgSignRequest:
		return []byte{wire.MsgSignResponse, wire.MsgFailure}
	case wire.MsgRemoveAllIdentities, msgRemoveAllRSA1, wire.MsgAddIdentity, wire.MsgAddIDConstrained, wire.MsgRemoveIdentity, wire.MsgLock, wire.MsgUnlock:
		return []byte{wire.MsgSuccess, wire.MsgFailure}
	case wire.MsgExtension:
		return []byte{wire.MsgSuccess, wire.MsgFailure, wire.MsgExtensionFailure, wire.MsgExtensionResponse}
	}
	return []byte{wire.MsgFailure}
}

// whole returns the messages in b up to the first that is broken.
func whole(b []byte) (messages [][]byte) {
	for len(b) >= 4 {
		length := int(binary.BigEndian.Uint32(b))
		if length == 0 || length > wire.MaxMessage || len(b) < 4+length {
			break
		}
		messages = append(messages, b[4:4+length])
		b = b[4+length:]
	}
	return messages
}

// FuzzSignRequest checks that each signature is made with the key and over
// the data of the request.
func FuzzSignRequest(f *testing.F) {
	ids := []Identity{plain("k", sshtest.P256()), certified(plain("rsa", sshtest.RSA2048()), 0, ssh.CertTimeInfinity)}
	for _, id := range ids {
		for flags := range uint32(8) {
			f.Add(sshtest.SignMessage(id.Public.Marshal(), []byte("data"), flags)[1:])
		}
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	a := New(NewKeyring(Config{Sources: []Source{fixed(ids...)}}), nil)
	f.Fuzz(func(t *testing.T, b []byte) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		c := newConn(context.Background(), a, theirs)
		defer c.close()
		answer := c.handle(append([]byte{wire.MsgSignRequest}, b...)).answer[wire.LengthSize:]
		if bytes.Equal(answer, sshtest.Failed) {
			return
		}
		n := binary.BigEndian.Uint32(b)
		blob, rest := b[4:4+n], b[4+n:]
		data := rest[4 : 4+binary.BigEndian.Uint32(rest)]
		pub, err := ssh.ParsePublicKey(blob)
		if err != nil {
			t.Fatal(err)
		}
		if cert, ok := pub.(*ssh.Certificate); ok {
			pub = cert.Key
		}
		sshtest.VerifyAnswer(t, pub, data, answer)
	})
}
