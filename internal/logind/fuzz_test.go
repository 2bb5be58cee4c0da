package logind

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"

	"github.com/godbus/dbus/v5"
)

// FuzzMessages: whatever comes over the connection, it ends in an error or in
// messages, and those that are not logind's do nothing.
func FuzzMessages(f *testing.F) {
	const owner = ":1.1"
	path := loginPath + "/session/_31"
	add := func(sender string, messages ...*dbus.Message) {
		var all bytes.Buffer
		for i, m := range messages {
			m.Headers[dbus.FieldSender] = dbus.MakeVariant(sender)
			var frame bytes.Buffer
			if err := m.EncodeTo(&frame, binary.LittleEndian); err != nil {
				f.Fatal(err)
			}
			binary.LittleEndian.PutUint32(frame.Bytes()[8:], uint32(i+1))
			all.Write(frame.Bytes())
		}
		f.Add(all.Bytes())
	}
	signal := func(path dbus.ObjectPath, name string, args ...any) *dbus.Message {
		m := call(":1.2", path, name, args...)
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
		add(sender, answer(3, []sessionEntry{{"1", ownUID, "me", "seat0", path}}))
		add(sender, answer(4, dbus.MakeVariant(userEntry{ownUID, "/"})))
	}
	add(busName, signal(busPath, busName+".NameOwnerChanged", loginName, owner, ":1.9"))
	f.Add([]byte("l\x04\x00\x01\xff\xff\xff\x00\x01\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, sent []byte) {
		forgotten := 0
		b, other := pair(t)
		written := make(chan struct{}) // the fuzzer changes sent afterwards
		go func() {
			defer close(written)
			io.Copy(other, bytes.NewReader(sent))
			other.CloseWrite()
			io.Copy(io.Discard, other)
		}()
		w := &watcher{Options: Options{UID: ownUID, Log: quiet()}, forget: func(string) { forgotten++ }, asleep: sleptSoFar().most}
		l := &link{watcher: w, bus: b, pending: make(map[uint32]request)}
		l.setOwner(owner)
		l.ifOurs(path, l.screenLocked)
		ours := false
		for l.err == nil {
			m, err := b.receive()
			if err != nil {
				break
			}
			sender := m.text(dbus.FieldSender)
			ours = ours || sender == owner || sender == busName
			l.handle(m)
			m.close()
		}
		l.release()
		b.conn.Close()
		<-written
		if forgotten > 0 && !ours {
			t.Errorf("forgotten %d times, by messages that are neither the bus's nor logind's", forgotten)
		}
	})
}
