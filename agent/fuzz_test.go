package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"

	"golang.org/x/crypto/ssh"
)

// FuzzConn sends bytes and hangs up. Each request that came whole, before
// anything that is none, gets an answer, and the agent never panics.
func FuzzConn(f *testing.F) {
	id := plain("k", p256())
	sign := signMessage(id.Public.Marshal(), []byte("data"), 0)
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 0, 1})
	f.Add(frame(listThem))
	f.Add(append(frame(sign), frame(listThem)...))
	f.Add(frame(removeMessage(id.Public.Marshal())))
	f.Add(append(frame([]byte{msgRemoveAllIdentities}), 0, 4, 0, 1))
	f.Add(append(frame([]byte{msgExtension}), frame(sign)[:20]...))
	f.Add(bytes.Repeat(frame(listThem), 2*maxWaiting))
	s := serve(f, Config{Source: fixed(id)})
	f.Fuzz(func(t *testing.T, b []byte) {
		nc := s.dial(t)
		defer nc.Close()
		go func(nc *net.UnixConn) { nc.Write(b); nc.CloseWrite() }(nc)
		for i := range whole(b) {
			if _, err := tryRecv(nc); err != nil {
				t.Fatalf("answer %d: %v", i, err)
			}
		}
		if rest, _ := io.ReadAll(nc); len(rest) > 0 {
			t.Fatalf("%d bytes nobody asked for", len(rest))
		}
		if s.log.count("panic") > 0 {
			t.Fatal(s.log)
		}
	})
}

// whole counts the messages in b up to the first that is none.
func whole(b []byte) (n int) {
	for ; len(b) >= 4; n++ {
		length := int(binary.BigEndian.Uint32(b))
		if length == 0 || length > maxMessage || len(b) < 4+length {
			break
		}
		b = b[4+length:]
	}
	return n
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
