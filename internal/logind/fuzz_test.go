package logind

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"

	"github.com/godbus/dbus/v5"
)

// encode returns a message as it is sent.
func encode(t testing.TB, m *dbus.Message, order binary.ByteOrder) []byte {
	t.Helper()
	var frame bytes.Buffer
	if err := m.EncodeTo(&frame, order); err != nil {
		t.Fatal(err)
	}
	return frame.Bytes()
}

// FuzzMessages feeds any bytes to a link: it must survive them, and must forget
// nothing unless the bus or logind sent one of them.
func FuzzMessages(f *testing.F) {
	const owner = ":1.1"
	path := loginPath + "/session/_31"
	add := func(sender string, messages ...*dbus.Message) {
		var all []byte
		for i, m := range messages {
			m.Headers[dbus.FieldSender] = dbus.MakeVariant(sender)
			frame := encode(f, m, binary.LittleEndian)
			binary.LittleEndian.PutUint32(frame[8:], uint32(i+1))
			all = append(all, frame...)
		}
		f.Add(all)
	}
	signal := func(path dbus.ObjectPath, name string, args ...any) *dbus.Message {
		m := newCall(":1.2", path, name, args...)
		m.Type = dbus.TypeSignal
		return m
	}
	answer := func(serial uint32, body ...any) *dbus.Message {
		m := signal(path, "a.b", body...)
		m.Type = dbus.TypeMethodReply
		m.Headers = map[dbus.HeaderField]dbus.Variant{dbus.FieldReplySerial: dbus.MakeVariant(serial)}
		if len(body) > 0 {
			m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body...))
		}
		return m
	}
	locked := map[string]dbus.Variant{"LockedHint": dbus.MakeVariant(true), "IdleHint": dbus.MakeVariant(false)}
	for _, sender := range []string{owner, ":1.3"} {
		add(sender, signal(loginPath, manager+".PrepareForSleep", true), signal(loginPath, manager+".PrepareForSleep", false))
		add(sender, signal(path, session+".Lock"))
		add(sender, signal(path, properties+".PropertiesChanged", session, locked, []string{"x"}))
		add(sender, answer(1, dbus.UnixFD(0)))
		add(sender, answer(2, dbus.MakeVariant(true)))
		add(sender, answer(2, dbus.MakeVariant(false)), answer(3, []sessionEntry{{"1", ownUID, "me", "seat0", path}}), answer(4, dbus.MakeVariant(true)))
		add(sender, signal(path, session+".Lock"), answer(2, dbus.MakeVariant(false)), answer(3, []sessionEntry{}), answer(4, dbus.MakeVariant(userEntry{ownUID, "/"})))
	}
	add(busName, signal(busPath, busName+".NameOwnerChanged", loginName, owner, ":1.9"))
	f.Add([]byte("l\x04\x00\x01\xff\xff\xff\x00\x01\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, sent []byte) {
		ours := false
		b, done := feed(t, sent)
		b.owner = owner
		for m, err := b.receive(); err == nil; m, err = b.receive() {
			sender := header[string](m, dbus.FieldSender)
			if sender != owner && sender != busName {
				t.Errorf("a message of %q was read", sender)
			}
			ours = true
		}
		done()

		b, done = feed(t, sent)
		forgotten := 0
		w := &watcher{Options: Options{UID: ownUID, Log: quiet()}, looked: true, slept: slept()}
		w.forget = func(string) { forgotten++ }
		l := newLink(w, b)
		l.setOwner(owner)
		l.run()
		l.setOwner("")
		done()
		if forgotten > 0 && !ours {
			t.Errorf("forgotten %d times without a message from the bus or logind", forgotten)
		}
	})
}

// feed returns a connection on which these bytes come. done ends it.
func feed(t *testing.T, sent []byte) (b *bus, done func()) {
	b, other := pair(t)
	written := make(chan struct{}) // the fuzzer changes sent afterwards
	go func() {
		defer close(written)
		io.Copy(other, bytes.NewReader(sent))
		other.CloseWrite()
		io.Copy(io.Discard, other)
	}()
	return b, func() { b.close(); <-written }
}
