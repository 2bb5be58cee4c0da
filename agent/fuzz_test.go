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
)

// hastyClock lets nobody wait, and no key expire but at once.
type hastyClock struct{}

func (hastyClock) Now() time.Duration                                { return time.Hour }
func (hastyClock) AfterFunc(_ time.Duration, f func()) (stop func()) { go f(); return func() {} }

// FuzzConn sends bytes and hangs up. Each request that came whole, before
// anything that is none, gets an answer of a kind that it may get, and the
// agent never panics.
func FuzzConn(f *testing.F) {
	id := plain("k", p256())
	sign := signMessage(id.Public.Marshal(), []byte("data"), 0)
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 0, 1})
	f.Add(append(frame([]byte{msgRemoveAllIdentities}), 0, 4, 0, 1))
	f.Add(append(frame([]byte{msgExtension}), frame(sign)[:20]...))
	f.Add(bytes.Repeat(frame(listThem), 2*maxWaiting))
	f.Add(append(frame(sign), frame((&KeyFileRequest{Name: "k", Content: []byte("rsa")}).Marshal())...))
	for _, messages := range additions() {
		var b []byte
		for _, m := range messages {
			if m != nil {
				b = append(b, frame(m)...)
			}
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		log := new(record)
		a := New(Config{
			Source: fixed(id), KeyFile: keyFiles, Clock: hastyClock{},
			Log: slog.New(slog.NewTextHandler(log, nil)),
		})
		a.lockMemory = 8
		nc, theirs := socketPair(t)
		var work sync.WaitGroup
		defer work.Wait() // b is the fuzzer's again after this
		work.Go(newConn(context.Background(), a, localConn{theirs, true}).run)
		work.Go(func() { nc.Write(b); nc.CloseWrite() })
		defer nc.Close()
		for i, request := range whole(b) {
			answer, err := tryRecv(nc)
			if err != nil {
				t.Fatalf("answer %d: %v", i, err)
			}
			if !slices.Contains(answersTo(request[0]), answer[0]) {
				t.Fatalf("request %d of type %d is answered with %d", i, request[0], answer[0])
			}
		}
		if rest, _ := io.ReadAll(nc); len(rest) > 0 {
			t.Fatalf("%d bytes nobody asked for", len(rest))
		}
		a.Forget()
		if log.count("panic") > 0 {
			t.Fatal(log)
		}
	})
}

// socketPair is a connection without a listener.
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

// answersTo are the types of message that may answer a request.
func answersTo(number byte) []byte {
	switch number {
	case msgRequestIdentities:
		return []byte{msgIdentitiesAnswer}
	case msgSignRequest:
		return []byte{msgSignResponse, msgFailure}
	case msgRemoveAllIdentities, msgRemoveAllRSA1, msgAddIdentity, msgAddIDConstrained, msgRemoveIdentity, msgLock, msgUnlock:
		return []byte{msgSuccess, msgFailure}
	case msgExtension:
		return []byte{msgSuccess, msgFailure, msgExtensionFailure, msgExtensionResponse}
	}
	return []byte{msgFailure}
}

// FuzzReader: how the bytes come makes no difference to the messages.
func FuzzReader(f *testing.F) {
	f.Add(append(frame(listThem), frame(make([]byte, 1100))...), uint16(1))
	f.Add(append(frame(adding(rsa2k(), nil)), 0, 4, 0, 1, 5), uint16(1023))
	f.Add([]byte{0, 0, 0, 9, 1}, uint16(3))
	f.Fuzz(func(t *testing.T, b []byte, chunk uint16) {
		r := &reader{from: &chunks{b, int(chunk) + 1}}
		for i, want := range whole(b) {
			got, err := readMessage(r, func() {})
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("message %d: %x, %v", i, got, err)
			}
		}
		if m, err := readMessage(r, func() {}); err == nil {
			t.Fatalf("a message that is none: %x", m)
		}
	})
}

// chunks gives at most n bytes at a time.
type chunks struct {
	b []byte
	n int
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.b[:min(len(c.b), c.n)])
	c.b = c.b[n:]
	return n, nil
}

// FuzzConstraints: what is understood is written again as it was meant.
func FuzzConstraints(f *testing.F) {
	f.Add([]byte{})
	f.Add(append(lifetime(9), confirmed()...))
	f.Add(restricted(direct(toHost("me", "a", hostA())), onward(toHost("", "a", hostA()), byAuthority("", "b", hostCA()))))
	f.Add(extensionConstraint("x"))
	f.Add(pinLife(90))
	f.Add([]byte{constrainExtension, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseConstraints(b)
		if err != nil {
			return
		}
		again, err := parseConstraints(c.marshal())
		if err != nil || !bytes.Equal(again.marshal(), c.marshal()) {
			t.Fatalf("%+v is written as %x, %v", c, c.marshal(), err)
		}
		if (c.lifetime == nil) != (again.lifetime == nil) || c.confirm != again.confirm || len(c.destinations) != len(again.destinations) || (c.pinLife == nil) != (again.pinLife == nil) {
			t.Fatalf("%+v comes back as %+v", c, again)
		}
		if c.lifetime != nil && !hasLifetime(b) {
			t.Fatalf("the lifetime in %x is not seen", b)
		}
	})
}

// whole returns the messages in b up to the first that is none.
func whole(b []byte) (messages [][]byte) {
	for len(b) >= 4 {
		length := int(binary.BigEndian.Uint32(b))
		if length == 0 || length > maxMessage || len(b) < 4+length {
			break
		}
		messages = append(messages, b[4:4+length])
		b = b[4+length:]
	}
	return messages
}

// FuzzSignRequest: what is answered with a signature was asked for, with that
// key and that data.
func FuzzSignRequest(f *testing.F) {
	ids := []Identity{plain("k", p256()), certified(plain("rsa", rsa2k()), 0, ssh.CertTimeInfinity)}
	for _, id := range ids {
		for flags := range uint32(8) {
			f.Add(signMessage(id.Public.Marshal(), []byte("data"), flags)[1:])
		}
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	a := New(Config{Source: fixed(ids...)})
	f.Fuzz(func(t *testing.T, b []byte) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		c := newConn(context.Background(), a, theirs)
		defer c.close()
		answer := a.handle(c.ctx, c, append([]byte{msgSignRequest}, b...)).answer[lengthSize:]
		if bytes.Equal(answer, failed) {
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
		verify(t, pub, data, answer)
	})
}
