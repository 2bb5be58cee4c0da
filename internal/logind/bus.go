package logind

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Any user of the machine may send signals to any connection of the system bus,
// of tens of MiB, with descriptors in them. dbus.Conn (v5.2.4) reads all that,
// which takes a gigabyte and half a minute, never closes the descriptors, and
// panics, in a goroutine of its own, when they are in an array. So the connection
// is ours: it throws away what is long or comes from others than the bus and
// logind, closes what nobody takes, and runs in the goroutine of who uses it.
// The messages themselves are dbus's.

const (
	// maxMessage is how long a message can be that is looked at, in bytes. A
	// list of 2000 sessions is about as long.
	maxMessage = 256 << 10

	// longestMessage is how long it can be by the specification.
	longestMessage = 128 << 20

	// headLength is the part of a message that has a fixed length.
	headLength = 16

	// controlSize has room for the 253 descriptors that the kernel lets pass
	// at once.
	controlSize = 1024 + 64

	// patience is how long the bus may take for what it does itself.
	patience = 25 * time.Second
)

// bus is a connection to a message bus.
type bus struct {
	conn    *net.UnixConn
	serial  uint32
	trusted string // whose messages are wanted beside the bus's: a unique name
	passed  []int  // descriptors that came with the message that is being read
	control [controlSize]byte
}

// message is one that has come, with the descriptors in it.
type message struct {
	*dbus.Message
	passed []int
}

// close closes the descriptors that nobody has taken.
func (m *message) close() { closeAll(m.passed) }

// take gives the only descriptor of the message, as its first value, to the
// caller; -1 if that is not what is in it.
func (m *message) take() int {
	if len(m.Body) == 0 || len(m.passed) != 1 {
		return -1
	}
	fd, ok := m.Body[0].(dbus.UnixFD)
	if !ok || int(fd) != m.passed[0] {
		return -1
	}
	m.passed = nil
	return int(fd)
}

// text is a header field that holds a string, or an empty one.
func (m *message) text(field dbus.HeaderField) string {
	s, _ := m.Headers[field].Value().(string)
	return s
}

func (m *message) path() dbus.ObjectPath {
	path, _ := m.Headers[dbus.FieldPath].Value().(dbus.ObjectPath)
	return path
}

// dial connects to the first of the places that answers.
func dial(ctx context.Context, places []string) (*bus, error) {
	var errs []error
	for _, place := range places {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", place)
		if err == nil {
			return &bus{conn: conn.(*net.UnixConn)}, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// open proves to the bus who we are, and says hello to it.
func (b *bus) open() error {
	if err := b.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if err := b.authenticate(); err != nil {
		return fmt.Errorf("authenticating to the bus: %w", err)
	}
	if err := b.hello(); err != nil {
		return fmt.Errorf("saying hello to the bus: %w", err)
	}
	return b.conn.SetDeadline(time.Time{})
}

// authenticate uses EXTERNAL: the kernel tells the bus who we are.
func (b *bus) authenticate() error {
	for _, step := range []struct{ say, want string }{
		{"\x00AUTH EXTERNAL\r\n", "DATA"},
		{"DATA\r\n", "OK"},
		{"NEGOTIATE_UNIX_FD\r\n", "AGREE_UNIX_FD"},
	} {
		if _, err := io.WriteString(b.conn, step.say); err != nil {
			return err
		}
		line, err := b.line()
		if err != nil {
			return err
		}
		if word, _, _ := strings.Cut(line, " "); word != step.want {
			return fmt.Errorf("it answers %q, not %s", line, step.want)
		}
	}
	_, err := io.WriteString(b.conn, "BEGIN\r\n")
	return err
}

// line reads a line of the authentication, and nothing behind it.
func (b *bus) line() (string, error) {
	var line []byte
	for one := make([]byte, 1); len(line) < 512; line = append(line, one[0]) {
		if _, err := io.ReadFull(b.conn, one); err != nil {
			return "", err
		}
		if one[0] == '\n' {
			return strings.TrimSuffix(string(line), "\r"), nil
		}
	}
	return "", errors.New("it sends a line without an end")
}

// hello gets us a name on the bus. Who has none may ask for nothing else.
func (b *bus) hello() error {
	serial, err := b.send(call(busName, busPath, busName+".Hello"))
	if err != nil {
		return err
	}
	for {
		m, err := b.receive()
		if err != nil {
			return err
		}
		m.close()
		if m.answers() == serial {
			return m.failure()
		}
	}
}

// call makes a call of a method, which starts no service.
func call(to string, path dbus.ObjectPath, method string, args ...any) *dbus.Message {
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

// answers is the serial of the call that m is the answer to; 0 if it is none.
func (m *message) answers() uint32 {
	if m.Type != dbus.TypeMethodReply && m.Type != dbus.TypeError {
		return 0
	}
	serial, _ := m.Headers[dbus.FieldReplySerial].Value().(uint32)
	return serial
}

// failure is the error that an answer consists in.
func (m *message) failure() error {
	if m.Type != dbus.TypeError {
		return nil
	}
	return dbus.Error{Name: m.text(dbus.FieldErrorName), Body: m.Body}
}

// send sends a message, and returns the serial that it has been given.
func (b *bus) send(m *dbus.Message) (serial uint32, err error) {
	var frame bytes.Buffer
	if err := m.EncodeTo(&frame, binary.LittleEndian); err != nil {
		return 0, err
	}
	if b.serial++; b.serial == 0 {
		b.serial++
	}
	binary.LittleEndian.PutUint32(frame.Bytes()[8:], b.serial)
	if err := b.conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	_, err = b.conn.Write(frame.Bytes())
	return b.serial, err
}

// receive waits for the next message that can be read. An error means that the
// connection is of no more use.
func (b *bus) receive() (*message, error) {
	for {
		m, err := b.next()
		passed := b.passed
		b.passed = nil
		if m != nil {
			return &message{m, passed}, nil
		}
		closeAll(passed)
		if err != nil {
			return nil, err
		}
	}
}

// next reads one message; nil is one that is not wanted, cannot be read, or is
// too long.
func (b *bus) next() (*dbus.Message, error) {
	var head [headLength]byte
	if _, err := io.ReadFull(b, head[:]); err != nil {
		return nil, err
	}
	order, length, err := messageLength(head)
	switch {
	case err != nil:
		return nil, err
	case length > maxMessage:
		_, err := io.CopyN(io.Discard, b, length-headLength)
		return nil, err
	}
	frame := make([]byte, length)
	copy(frame, head[:])
	if _, err := io.ReadFull(b, frame[headLength:]); err != nil {
		return nil, err
	}
	if from := sender(frame, order); from != busName && (from == "" || from != b.trusted) {
		return nil, nil
	}
	m, _ := decode(frame, b.passed)
	return m, nil
}

// messageLength is what the head of a message says of its byte order and of its
// whole length.
func messageLength(head [headLength]byte) (order binary.ByteOrder, length int64, err error) {
	switch head[0] {
	case 'l':
		order = binary.LittleEndian
	case 'B':
		order = binary.BigEndian
	default:
		return nil, 0, fmt.Errorf("the bus sends no message: it starts with the byte %#x", head[0])
	}
	body, fields := int64(order.Uint32(head[4:])), int64(order.Uint32(head[12:]))
	length = headLength + (fields+7)&^7 + body
	if length > longestMessage {
		return nil, 0, fmt.Errorf("the bus sends a message of %d bytes", length)
	}
	return order, length, nil
}

// decode reads a message. Whatever is in it must not end the program, wherever
// it leads the code of others.
func decode(frame []byte, passed []int) (m *dbus.Message, err error) {
	defer func() {
		if v := recover(); v != nil {
			m, err = nil, fmt.Errorf("reading a message: %v", v)
		}
	}()
	return dbus.DecodeMessageWithFDs(bytes.NewReader(frame), passed)
}

// Read reads what the bus sends, and sets the descriptors aside that come
// along.
func (b *bus) Read(p []byte) (int, error) {
	n, size, _, _, err := b.conn.ReadMsgUnix(p, b.control[:])
	if size > 0 {
		b.passed = append(b.passed, descriptors(b.control[:size])...)
	}
	if err != nil {
		return max(n, 0), err
	}
	return n, nil
}

// descriptors are those in control messages.
func descriptors(control []byte) (fds []int) {
	for len(control) >= unix.SizeofCmsghdr {
		header, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return fds
		}
		control = rest
		if header.Level != unix.SOL_SOCKET || header.Type != unix.SCM_RIGHTS {
			continue
		}
		for ; len(data) >= 4; data = data[4:] {
			if fd := int32(binary.NativeEndian.Uint32(data)); fd >= 0 {
				fds = append(fds, int(fd))
			}
		}
	}
	return fds
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
