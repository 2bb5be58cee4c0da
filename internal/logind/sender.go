package logind

import (
	"bytes"
	"encoding/binary"

	"github.com/godbus/dbus/v5"
)

// sender finds out who has sent a message, without reading it as a whole: for
// 256 KiB that can be a tenth of a second's work. The bus has put the name
// there. It is empty where the header is not what a bus sends.
func sender(frame []byte, order binary.ByteOrder) string {
	length := uint64(order.Uint32(frame[12:]))
	if length > uint64(len(frame)-headLength) {
		return ""
	}
	end := headLength + int(length)
	// An array of structs of a byte and a variant: D-Bus specification,
	// "Message Format". Of the types that fields have, there are four.
	for r := (fields{b: frame[:end], at: headLength, order: order}); r.at < end; {
		r.align(8)
		code := dbus.HeaderField(r.byte())
		var value []byte
		switch kind := r.bytes(int(r.byte())); string(kind) {
		case "s", "o":
			r.align(4)
			value = r.bytes(int(r.uint32()))
		case "g":
			value = r.bytes(int(r.byte()))
		case "u":
			r.align(4)
			r.uint32()
		default:
			return ""
		}
		if code == dbus.FieldSender && !r.short {
			return string(value)
		}
	}
	return ""
}

// fields reads the header of a message.
type fields struct {
	b     []byte
	at    int
	order binary.ByteOrder
	short bool // more was read than there is: zeros
}

func (r *fields) align(n int) { r.at += -r.at & (n - 1) }

// next returns n bytes, or as many zeros.
func (r *fields) next(n int) []byte {
	if n < 0 || n > len(r.b)-r.at {
		r.at, r.short = len(r.b), true
		return make([]byte, min(max(n, 0), 4))
	}
	r.at += n
	return r.b[r.at-n : r.at]
}

func (r *fields) byte() byte     { return r.next(1)[0] }
func (r *fields) uint32() uint32 { return r.order.Uint32(r.next(4)) }

// bytes returns n of them, which a NUL follows.
func (r *fields) bytes(n int) []byte { return bytes.TrimSuffix(r.next(n+1), []byte{0}) }
