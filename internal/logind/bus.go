package logind

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Every user of the machine may send signals to every connection of the system
// bus, of tens of MiB and with descriptors in them. dbus.Conn (v5.2.4) reads all
// of that, which takes a gigabyte and half a minute, never closes the descriptors,
// and panics in a goroutine of its own if they are in an array. Therefore the
// connection is ours: it discards messages that are long or that come from anyone
// but the bus and logind, closes stray descriptors, and has no goroutine. Only the
// messages are encoded and decoded by dbus.

const (
	// maxMessage is the longest message that is read, in bytes. A list of 2000
	// login sessions is about as long.
	maxMessage = 256 << 10

	// maxSpecified is the longest message that the specification permits.
	maxSpecified = 128 << 20

	// headSize is the size of the fixed part of a message.
	headSize = 16

	// controlSize has room for 253 descriptors, the most that the kernel passes
	// at once.
	controlSize = 1024 + 64

	// patience is how long the bus and logind may take to answer.
	patience = 25 * time.Second
)

// bus is a connection to a message bus.
type bus struct {
	conn    *net.UnixConn
	serial  uint32 // of the last message sent
	owner   string // logind's unique name, whose messages are read besides the bus's; "" for none
	passed  []int  // descriptors that came with the last message
	control [controlSize]byte
}

// dialBus connects to a bus and authenticates.
func dialBus(ctx context.Context, path string) (*bus, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	conn.SetDeadline(time.Now().Add(patience))
	if err := authenticate(conn); err != nil {
		conn.Close()
		return nil, fmt.Errorf("authenticating to the bus: %w", err)
	}
	conn.SetDeadline(time.Time{})
	return &bus{conn: conn.(*net.UnixConn)}, nil
}

// authenticate uses EXTERNAL: the kernel tells the bus who we are. All is sent at
// once, as by systemd.
func authenticate(conn io.ReadWriter) error {
	if _, err := io.WriteString(conn, "\x00AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n"); err != nil {
		return err
	}
	// The bus sends nothing more before it is greeted, so the reader takes no
	// part of a message.
	r := bufio.NewReaderSize(conn, 512)
	for _, want := range []string{"DATA", "OK ", "AGREE_UNIX_FD"} {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if !strings.HasPrefix(string(line), want) {
			return fmt.Errorf("the bus answers %q instead of %s", line, want)
		}
	}
	return nil
}

// newCall returns a method call that does not start a service.
func newCall(to string, path dbus.ObjectPath, method string, args ...any) *dbus.Message {
	dot := strings.LastIndexByte(method, '.')
	m := &dbus.Message{Type: dbus.TypeMethodCall, Flags: dbus.FlagNoAutoStart, Body: args}
	m.Headers = map[dbus.HeaderField]dbus.Variant{
		dbus.FieldDestination: dbus.MakeVariant(to),
		dbus.FieldPath:        dbus.MakeVariant(path),
		dbus.FieldInterface:   dbus.MakeVariant(method[:dot]),
		dbus.FieldMember:      dbus.MakeVariant(method[dot+1:]),
	}
	if len(args) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(args...))
	}
	return m
}

// send sends a message and returns the serial that it gave it.
func (b *bus) send(m *dbus.Message) (serial uint32, err error) {
	var frame bytes.Buffer
	if err := m.EncodeTo(&frame, binary.LittleEndian); err != nil {
		return 0, err
	}
	b.serial++
	binary.LittleEndian.PutUint32(frame.Bytes()[8:], b.serial)
	b.conn.SetWriteDeadline(time.Now().Add(patience))
	_, err = b.conn.Write(frame.Bytes())
	return b.serial, err
}

// receive returns the next message of the bus or of logind, and closes the
// descriptors that came with previous ones. After an error the connection is of no
// more use.
func (b *bus) receive() (*dbus.Message, error) {
	for {
		b.closePassed()
		if m, err := b.next(); m != nil || err != nil {
			return m, err
		}
	}
}

// next reads one message. It returns nil for one that is too long, comes from
// another sender, or cannot be decoded.
func (b *bus) next() (*dbus.Message, error) {
	var head [headSize]byte
	if _, err := io.ReadFull(b, head[:]); err != nil {
		return nil, err
	}
	order, fields, body, err := sizes(head)
	if err != nil {
		return nil, err
	}
	if headSize+fields+body > maxMessage {
		_, err := io.CopyN(io.Discard, b, fields+body)
		return nil, err
	}
	frame := make([]byte, headSize+fields+body)
	copy(frame, head[:])
	if _, err := io.ReadFull(b, frame[headSize:]); err != nil {
		return nil, err
	}
	if from := sender(frame[headSize:headSize+fields], order); from == "" || from != busName && from != b.owner {
		return nil, nil
	}
	return decode(frame), nil
}

// sizes returns the byte order of a message and the sizes of its header fields,
// with their padding, and of its body.
func sizes(head [headSize]byte) (order binary.ByteOrder, fields, body int64, err error) {
	switch head[0] {
	case 'l':
		order = binary.LittleEndian
	case 'B':
		order = binary.BigEndian
	default:
		return nil, 0, 0, fmt.Errorf("the bus sends no message: it starts with the byte %#x", head[0])
	}
	body, fields = int64(order.Uint32(head[4:])), (int64(order.Uint32(head[12:]))+7)&^7
	if size := headSize + fields + body; size > maxSpecified {
		return nil, 0, 0, fmt.Errorf("the bus sends a message of %d bytes", size)
	}
	return order, fields, body, nil
}

// sender returns the unique name of the sender, which the bus has written into the
// header fields, or "" if there is none. It skips the other fields: decoding what
// anyone may send, 256 KiB at a time, would take a tenth of a second each.
func sender(fields []byte, order binary.ByteOrder) string {
	// Each field is a struct of a byte and a variant (D-Bus specification,
	// "Message Format"). Known fields have four types, with one-letter signatures.
	for len(fields) >= 8 {
		value, size := fields[4:], uint64(0)
		switch string(fields[1:4]) {
		case "\x01s\x00", "\x01o\x00":
			size = 4 + uint64(order.Uint32(value)) + 1
			if dbus.HeaderField(fields[0]) == dbus.FieldSender && size <= uint64(len(value)) {
				return string(value[4 : size-1])
			}
		case "\x01g\x00":
			size = 1 + uint64(value[0]) + 1
		case "\x01u\x00":
			size = 4
		default:
			return ""
		}
		next := (4 + size + 7) &^ 7
		fields = fields[min(next, uint64(len(fields))):]
	}
	return ""
}

// decode decodes a message, or returns nil. It survives a panic in dbus.
func decode(frame []byte) (m *dbus.Message) {
	defer func() {
		if recover() != nil {
			m = nil
		}
	}()
	m, err := dbus.DecodeMessage(bytes.NewReader(frame))
	if err != nil {
		return nil
	}
	return m
}

// Read reads from the bus, and keeps the descriptors that come along in passed.
func (b *bus) Read(p []byte) (int, error) {
	n, size, _, _, err := b.conn.ReadMsgUnix(p, b.control[:])
	messages, _ := unix.ParseSocketControlMessage(b.control[:size])
	for _, m := range messages {
		fds, _ := unix.ParseUnixRights(&m) // none in messages of another type
		b.passed = append(b.passed, fds...)
	}
	return max(n, 0), err
}

// take gives the only descriptor that came with the last message to the caller, or
// returns -1.
func (b *bus) take() int {
	if len(b.passed) != 1 {
		return -1
	}
	fd := b.passed[0]
	b.passed = nil
	return fd
}

// close ends the connection.
func (b *bus) close() {
	b.closePassed()
	b.conn.Close()
}

// closePassed closes the descriptors that were not taken.
func (b *bus) closePassed() {
	for _, fd := range b.passed {
		unix.Close(fd)
	}
	b.passed = nil
}

// header returns a header field, or the zero value if m has none of that type.
func header[T any](m *dbus.Message, field dbus.HeaderField) T {
	value, _ := m.Headers[field].Value().(T)
	return value
}

// answered returns the serial of the call that m answers, or 0.
func answered(m *dbus.Message) uint32 {
	if m.Type != dbus.TypeMethodReply && m.Type != dbus.TypeError {
		return 0
	}
	return header[uint32](m, dbus.FieldReplySerial)
}

// failure returns the error that an answer consists of, or nil.
func failure(m *dbus.Message) error {
	if m.Type != dbus.TypeError {
		return nil
	}
	return dbus.Error{Name: header[string](m, dbus.FieldErrorName), Body: m.Body}
}

// first returns the first value of a message.
func first[T any](body []any) (value T, ok bool) {
	if len(body) > 0 {
		value, ok = body[0].(T)
	}
	return value, ok
}
